"""Whether each claim holds on each data set: shown, not shown, or the opposite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.full import FAMILY, MSD, OF_SAMPLES
from benchmarks.methods import EQUAL, KD, ROBUST
from benchmarks.outcomes import Found, Measure, Row, best, gain, singles, whole
from benchmarks.report import dropped, interval, short
from benchmarks.tables import new_table

DROPPED = "labels + modality dropout"
WEIGHTED = ("MSD population", *OF_SAMPLES)


@dataclass(frozen=True)
class Claim:
    """A method is ahead of another; of several, those that do best on validation data."""

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
        """Whether which two they are depends on the data set."""
        return len(self.methods) > 1 or len(self.others) > 1


OVER_KD = Claim("MSD equal over KD", (EQUAL,), (KD,))
OVER_ALL = Claim("best MSD over best baseline", MSD, FAMILY)
OVER_LABELS = Claim("best MSD over labels + drop", MSD, (DROPPED,))
WEIGHTS = Claim("best weights over equal", WEIGHTED, (EQUAL,))
CLAIMS = (
    OVER_KD,
    Claim("MSD equal over KD + drop", (EQUAL,), (ROBUST,)),
    OVER_ALL,
    OVER_LABELS,
    *(Claim(f"{name[4:]} over equal", (name,), (EQUAL,)) for name in WEIGHTED),
    WEIGHTS,
)
Condition = tuple[str, Any]  # a question, and what it varies
CONDITIONS: dict[str, tuple[Condition, tuple[Claim, ...]]] = {
    "10 % of the labels": (("labelled", 0.1), (OVER_KD, OVER_ALL, WEIGHTS)),
    "30 % of the labels": (("labelled", 0.3), (OVER_KD, OVER_ALL, WEIGHTS)),
    "weak teacher": (("weak", True), (OVER_KD, OVER_ALL, OVER_LABELS, WEIGHTS)),
    "wrong teacher": (("corrupted", True), (OVER_KD, OVER_ALL, OVER_LABELS, WEIGHTS)),
    "half the width": (("size", 0.5), (OVER_KD, OVER_ALL, WEIGHTS)),
    "twice the width": (("size", 2.0), (OVER_KD, OVER_ALL, WEIGHTS)),
    "3 x the epochs": (("epochs", 3), (OVER_KD, OVER_ALL)),
}


def verdicts(datasets: Sequence[Found]) -> Iterator[Table]:
    """The paper's claims, each with its interval on each data set."""
    lines = [(claim.title, "methods", None, claim) for claim in CLAIMS]
    yield from _tables("Verdicts", lines, datasets)


def conditions(datasets: Sequence[Found]) -> Iterator[Table]:
    """Some of them where one thing is other than usual."""
    lines = [
        (f"{name}:\n{claim.title}", *condition, claim)
        for name, (condition, claims) in CONDITIONS.items()
        for claim in claims
    ]
    yield from _tables("Under other conditions", lines, datasets)


def _tables(
    what: str, lines: Sequence[tuple[str, str, Any, Claim]], datasets: Sequence[Found]
) -> Iterator[Table]:
    for view, measure in (("the whole input", whole), ("one modality alone", singles)):
        title = f"{what}, on {view}: points ahead ± half of the 95 % interval"
        table = new_table(title, *(of.dataset for of in datasets))
        for name, question, value, claim in lines:
            found = (_under(of, question, value) for of in datasets)
            table.add_row(name, *(_cell(rows, claim, measure) for rows in found))
            table.add_section()
        yield table


def _under(of: Found, question: str, value: Any) -> dict[str, Row]:
    """The runs by method, under one condition; of labels too, where only the teacher is another."""
    rows = {m: row for (varied, m), row in of.answered(question).items() if varied == value}
    if rows and question in ("weak", "corrupted"):
        rows[DROPPED] = of.methods[DROPPED]
    return rows


def _cell(rows: Mapping[str, Row], claim: Claim, measure: Measure) -> str:
    if not rows:
        return "not run"
    one, other = claim.pair(rows)
    ahead = gain(rows[one], rows[other], measure)
    pair = f"{one[4:]} /\n{dropped(other)}\n" if claim.chosen else ""
    return f"{pair}{short(ahead)}\n{verdict(ahead)}"


def verdict(differences: np.ndarray) -> str:
    low, high = interval(differences)
    return "shown" if low > 0 else "opposite" if high < 0 else "not shown"
