"""The verdict on each claim on each data set: shown, not shown, or the opposite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.full import BASELINES, MSD, SAMPLE_WEIGHTS
from benchmarks.methods import EQUAL, KD, ROBUST
from benchmarks.outcomes import Measure, Row, Study, best, gain, singles, whole
from benchmarks.report import interval, interval_cell, short_name
from benchmarks.tables import new_table

LABELS_DROPOUT = "labels + modality dropout"
WEIGHTED = ("MSD population", *SAMPLE_WEIGHTS)


@dataclass(frozen=True)
class Claim:
    """The claim that one method beats another.

    If there are several methods on a side, validation data choose the best of them.
    """

    title: str
    methods: tuple[str, ...]
    others: tuple[str, ...]

    def pair(self, rows: Mapping[str, Row]) -> tuple[str, str]:
        one, other = (
            best({name: rows[name] for name in names if name in rows})
            for names in (self.methods, self.others)
        )
        return one, other

    @property
    def chosen(self) -> bool:
        """Whether validation data choose one of the two methods."""
        return len(self.methods) > 1 or len(self.others) > 1


OVER_KD = Claim("MSD equal over KD", (EQUAL,), (KD,))
OVER_ALL = Claim("best MSD over best baseline", MSD, BASELINES)
OVER_LABELS = Claim("best MSD over labels + drop", MSD, (LABELS_DROPOUT,))
WEIGHTS = Claim("best weights over equal", WEIGHTED, (EQUAL,))
CLAIMS = (
    OVER_KD,
    Claim("MSD equal over KD + drop", (EQUAL,), (ROBUST,)),
    OVER_ALL,
    OVER_LABELS,
    *(Claim(f"{name[4:]} over equal", (name,), (EQUAL,)) for name in WEIGHTED),
    WEIGHTS,
)
Condition = tuple[str, Any]  # a question, and a value of it
CONDITIONS: dict[str, tuple[Condition, tuple[Claim, ...]]] = {
    "10 % of the labels": (("labelled", 0.1), (OVER_KD, OVER_ALL, WEIGHTS)),
    "30 % of the labels": (("labelled", 0.3), (OVER_KD, OVER_ALL, WEIGHTS)),
    "weak teacher": (("weak", True), (OVER_KD, OVER_ALL, OVER_LABELS, WEIGHTS)),
    "wrong teacher": (("corrupted", True), (OVER_KD, OVER_ALL, OVER_LABELS, WEIGHTS)),
    "half the width": (("size", 0.5), (OVER_KD, OVER_ALL, WEIGHTS)),
    "twice the width": (("size", 2.0), (OVER_KD, OVER_ALL, WEIGHTS)),
    "3 x the epochs": (("epochs", 3), (OVER_KD, OVER_ALL)),
}


def verdicts(datasets: Sequence[Study]) -> Iterator[Table]:
    """Yield the verdicts on all claims, with their intervals."""
    lines = [(claim.title, "methods", None, claim) for claim in CLAIMS]
    yield from _tables("Verdicts", lines, datasets)


def conditions(datasets: Sequence[Study]) -> Iterator[Table]:
    """Yield the verdicts on some of the claims under other conditions."""
    lines = [
        (f"{name}:\n{claim.title}", *condition, claim)
        for name, (condition, claims) in CONDITIONS.items()
        for claim in claims
    ]
    yield from _tables("Under other conditions", lines, datasets)


def _tables(
    what: str, lines: Sequence[tuple[str, str, Any, Claim]], datasets: Sequence[Study]
) -> Iterator[Table]:
    for view, measure in (("the whole input", whole), ("one modality alone", singles)):
        title = f"{what}, on {view}: points ahead ± half of the 95 % interval"
        table = new_table(title, *(study.dataset for study in datasets))
        for name, question, value, claim in lines:
            by_dataset = (_rows_under(study, question, value) for study in datasets)
            table.add_row(name, *(_cell(rows, claim, measure) for rows in by_dataset))
            table.add_section()
        yield table


def _rows_under(study: Study, question: str, value: Any) -> dict[str, Row]:
    """Return the results under one condition, by method.

    Training with labels is the same with another teacher, so its usual results are included.
    """
    rows = {m: row for (v, m), row in study.answered(question).items() if v == value}
    if rows and question in ("weak", "corrupted"):
        rows[LABELS_DROPOUT] = study.methods[LABELS_DROPOUT]
    return rows


def _cell(rows: Mapping[str, Row], claim: Claim, measure: Measure) -> str:
    if not rows:
        return "not run"
    one, other = claim.pair(rows)
    ahead = gain(rows[one], rows[other], measure)
    pair = f"{one[4:]} /\n{short_name(other)}\n" if claim.chosen else ""
    return f"{pair}{interval_cell(ahead)}\n{verdict(ahead)}"


def verdict(differences: np.ndarray) -> str:
    low, high = interval(differences)
    return "shown" if low > 0 else "opposite" if high < 0 else "not shown"
