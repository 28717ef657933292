"""The tables and verdicts of the full study, from its runs.

`python -m benchmarks.page` puts them into the page that shows them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import full
from benchmarks.jobs import Result
from benchmarks.methods import ALL
from benchmarks.report import interval, paired, spread
from benchmarks.runs import Runs
from benchmarks.training import MISSING

RESULTS = Path(__file__).parent / "results"
SEEDS = 10
WIDTH = 110  # of the tables in a page
KD, ROBUST, EQUAL = "KD", "KD + modality dropout", "MSD equal"
DROPPED = "labels + modality dropout"
FAMILY = (KD, ROBUST, "FitNet", "RKD", "SP", "DKD")  # the baselines of the first claim
MSD = tuple(name for name in ALL if name.startswith("MSD"))
WEIGHTED = ("MSD population", "MSD saliency", "MSD teacher loss", "MSD learned")
SCORE = {"emoji-keywords": "mean average precision"}

Row = dict[int, Result]  # by seed
Measure = Callable[[Result], float]


def whole(run: Result) -> float:
    return 100 * run["views"]["full"]["accuracy"]


def singles(run: Result) -> float:
    return mean_of(run, "accuracy", 100)


def mean_of(run: Result, metric: str, times: float = 1) -> float:
    """The mean over the modalities, each alone."""
    return times * fmean(m[metric] for view, m in run["views"].items() if view != "full")


def blind(row: Row) -> str:
    """How many students of two modalities say of one alone the same as of both."""
    each = [[v["nll"] for v in run["views"].values()] for run in row.values()]
    return f"{sum(whole in alone for whole, *alone in each)}/{len(each)}"


class Found:
    """The runs of one data set, by question."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.runs = Runs(RESULTS / dataset / "full.jsonl")

    def rows(self, question: str) -> dict[tuple[Any, str], Row]:
        """(value, method) -> its runs, as far as they were made."""
        jobs = full.of(question, self.dataset, SEEDS, Path())
        found: dict[tuple[Any, str], Row] = {name: {} for name in self._asked(question)}
        for name, job in zip(cycle(found), jobs, strict=False):
            if self.runs.has(job):
                found[name][job["seed"]] = self.runs.get(job)
        return {name: row for name, row in found.items() if row}

    def answered(self, question: str) -> dict[tuple[Any, str], Row]:
        """The same, but nothing unless there are runs of all that is asked."""
        rows = self.rows(question)
        return rows if len(rows) == len(self._asked(question)) else {}

    def _asked(self, question: str) -> list[tuple[Any, str]]:
        asked = full.QUESTIONS[question]
        pairs = [(value, method) for value in asked.values for method in asked.methods]
        return [(value, method) for value, method in pairs if method in self.chosen]

    @property
    def chosen(self) -> dict[str, Any]:
        return full.settings_of(self.dataset)

    @property
    def methods(self) -> dict[str, Row]:
        return {method: row for (_, method), row in self.rows("methods").items()}

    @property
    def teachers(self) -> Row:
        return {
            run["job"]["seed"]: run
            for run in self.runs.results.values()
            if run["job"]["method"] == full.TEACHER
            and run["job"]["part"] == "test"
            and "weak" not in run["job"]
        }

    def best(self, methods: Iterable[str]) -> str:
        """The method that does best on validation data, on the whole input."""
        known = self.methods
        means = {
            m: values(known[m], lambda run: run["validation"]).mean() for m in methods if m in known
        }
        return max(means, key=means.__getitem__)


@cache
def found(dataset: str) -> Found:
    return Found(dataset)


def score(of: Found) -> str:
    return SCORE.get(of.dataset, "test accuracy")


def _seeds(rows: Mapping[Any, Row]) -> str:
    counts = sorted({len(row) for row in rows.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def values(row: Row, measure: Measure) -> np.ndarray:
    return np.array([measure(row[seed]) for seed in sorted(row)])


def gain(row: Row, other: Row, measure: Measure) -> np.ndarray:
    """What one method is ahead of another, seed by seed, on the seeds that both have."""
    shared = sorted(row.keys() & other.keys())
    return np.array([measure(row[s]) - measure(other[s]) for s in shared])


def told(differences: np.ndarray) -> str:
    return paired(differences) if len(differences) > 1 else ""


def short(differences: np.ndarray) -> str:
    """Without the seeds won."""
    return told(differences).partition("  ")[0]


def verdict(differences: np.ndarray) -> str:
    low, high = interval(differences)
    return "shown" if low > 0 else "opposite" if high < 0 else "not shown"


def methods(of: Found) -> Iterator[Table]:
    """All methods: scores, how calibrated and like the teacher they are, paired differences."""
    rows = of.methods
    title = f"{of.dataset}: {score(of)} in %, mean ± standard deviation"
    first = _table(f"{title} (seeds: {_seeds(rows)})")
    _columns(first, "whole input", "one modality", "half missing", "NLL", "blind", "params")
    for name, row in {"teacher": of.teachers, **rows}.items():
        first.add_row(
            name,
            spread(values(row, whole)),
            spread(values(row, singles)),
            spread(values(row, lambda run: 100 * run["missing"]["0.5"])),
            spread(values(row, lambda run: run["views"]["full"]["nll"]), 3),
            blind(row),
            f"{row[min(row)]['parameters']:,}",
        )
    first.caption = (
        "one modality: the mean over the modalities, each alone; blind: networks that say of one "
        "modality alone just what they say of the whole input; params: of the first seed"
    )
    yield first
    second = _table(
        "points ahead, whole input and one modality: paired mean ± half of the 95 % interval"
    )
    _columns(second, "whole, to KD", "one, to KD", "whole, to KD + drop", "one, to KD + drop")
    for name, row in rows.items():
        cells = [
            "" if name == base else told(gain(row, rows[base], measure))
            for base in (KD, ROBUST)
            for measure in (whole, singles)
        ]
        second.add_row(name, *cells)
    second.caption = "KD + drop: KD + modality dropout; last: seeds won"
    yield second
    if "MSD + FitNet" in rows:
        yield _on_top(rows)


def _on_top(rows: Mapping[str, Row]) -> Table:
    """What MSD adds to each baseline that has another loss besides."""
    table = _table("points that MSD adds to a baseline")
    _columns(table, "whole input", "one modality")
    for name in FAMILY:
        if f"MSD + {name}" in rows:
            pair = rows[f"MSD + {name}"], rows[name]
            table.add_row(name, *(told(gain(*pair, measure)) for measure in (whole, singles)))
    return table


def fidelity(of: Found) -> Iterator[Table]:
    """How well a student's confidence is founded, and how near it is to the teacher."""
    table = _table(f"{of.dataset}: calibration, and fidelity to the teacher")
    _columns(table, "ECE, whole", "ECE, one", "KL, whole", "KL, one", "agree, whole", "agree, one")
    for name, row in of.methods.items():
        cells = []
        for metric, times, digits in (("ece", 100, 1), ("kl", 1, 3), ("agreement", 100, 1)):
            full_view = values(row, lambda r, m=metric, t=times: t * r["views"]["full"][m])
            single = values(row, lambda r, m=metric, t=times: mean_of(r, m, t))
            cells += [spread(full_view, digits), spread(single, digits)]
        table.add_row(name, *cells)
    table.caption = "ECE: expected calibration error, %; KL: nats; agree: % of equal decisions"
    yield table


def modalities(of: Found) -> Iterator[Table]:
    """Each modality alone."""
    table = _table(f"{of.dataset}: {score(of)} in % on one modality")
    rows = {"teacher": of.teachers, **of.methods}
    views = [v for v in next(iter(of.teachers.values()))["views"] if v != "full"]
    _columns(table, *views)
    for name, row in rows.items():
        cells = [values(row, lambda r, v=v: 100 * r["views"][v]["accuracy"]) for v in views]
        table.add_row(name, *map(spread, cells))
    yield table


def missing(of: Found) -> Iterator[Table]:
    """Where modalities are missing at random in the test data."""
    table = _table(f"{of.dataset}: {score(of)} in %, modalities missing")
    _columns(table, *(f"{100 * share:.0f} %" for share in MISSING))
    for name, row in {"teacher": of.teachers, **of.methods}.items():
        cells = [values(row, lambda r, s=s: 100 * r["missing"][f"{s:g}"]) for s in MISSING]
        table.add_row(name, *map(spread, cells))
    yield table


VARIED = {
    "weak": "a teacher that can't read one modality",
    "corrupted": "40 % of the teacher's predictions are wrong",
    "population": "what a modality alone counts",
    "labelled": "few labels, the teacher on all data",
    "size": "the student's width, times the usual",
    "stacked": "the views stacked, where elsewhere each tower runs once",
    "epochs": "the epochs, times the usual",
}
USUAL = ("population", "stacked")  # compared with what is not varied
LONG = 3  # times the usual epochs KD has what MSD costs in a forward for each view


def varied(of: Found, question: str) -> Iterator[Table | str]:
    """One thing varied: scores, and what a method is ahead of another under the same conditions."""
    rows = of.answered(question)
    if not rows:
        yield f"{of.dataset}, {VARIED[question]}: not yet run."
        return
    table = _table(f"{of.dataset}: {VARIED[question]} (seeds: {_seeds(rows)})")
    bases = (KD, EQUAL)
    pairs = [(base, m) for base in bases for m in (whole, singles)]
    named = {whole: "whole", singles: "one", KD: "KD", EQUAL: "equal"}
    if question == "epochs":
        named |= {KD: f"KD x {LONG}", EQUAL: "equal x 1"}
    heads = (f"{named[measure]}, to {named[base]}" for base, measure in pairs)
    _columns(table, "", "whole input", "one modality", *heads)
    for (value, name), row in rows.items():
        others = {base: _other(of, question, rows, value, base) for base in bases}
        table.add_row(
            name,
            "" if isinstance(value, bool) else f"{value:g}",
            spread(values(row, whole)),
            spread(values(row, singles)),
            *("" if others[b] is row else short(gain(row, others[b], m)) for b, m in pairs),
        )
    table.caption = "points ahead, paired mean ± half of the 95 % interval; equal: MSD equal"
    yield table


def _other(of: Found, question: str, rows: Mapping[Any, Row], value: Any, base: str) -> Row:
    """What a row is compared with."""
    if question in USUAL:
        return of.methods[base]
    if question == "epochs":
        return rows[{KD: LONG, EQUAL: 1}[base], base]
    return rows[value, base]


def tiny(of: Found) -> Iterator[Table | str]:
    """What was tried where the student is tiny, on validation data."""
    rows = of.answered("tiny")
    if not rows:
        yield f"{of.dataset}, a student of half the size: not yet run."
        return
    table = _table(
        f"{of.dataset}, a student of half the size: validation accuracy in %, whole input "
        f"(seeds: {_seeds(rows)})"
    )
    _columns(table, KD, "MSD", "whole, to KD", "one, to KD", "blind: KD", "MSD")
    for value in full.TRIED:
        pair = [rows.get((value, method)) for method in full.QUESTIONS["tiny"].methods]
        if all(pair):
            other, row = pair
            cells = [spread(values(r, whole)) for r in (other, row)]
            gains = [told(gain(row, other, measure)) for measure in (whole, singles)]
            table.add_row(value, *cells, *gains, blind(other), blind(row))
    yield table


@dataclass(frozen=True)
class Claim:
    """One method is ahead of another."""

    title: str
    methods: Callable[[Found], tuple[str, str]]
    named: bool = False  # which two they are depends on the data set


CLAIMS = (
    Claim("MSD equal over KD", lambda of: (EQUAL, KD)),
    Claim("MSD equal over KD + drop", lambda of: (EQUAL, ROBUST)),
    Claim("best MSD over best baseline", lambda of: (of.best(MSD), of.best(FAMILY)), named=True),
    Claim("best MSD over labels + drop", lambda of: (of.best(MSD), DROPPED), named=True),
    *(Claim(f"{name[4:]} over equal", lambda of, n=name: (n, EQUAL)) for name in WEIGHTED),
    Claim("best weights over equal", lambda of: (of.best(WEIGHTED), EQUAL), named=True),
)


def unseen(of: Found) -> Iterator[Table | str]:
    """What keeps students from using both modalities, on validation data."""
    rows = of.answered("blind")
    if not rows:
        yield f"{of.dataset}, students that do not use a modality: not yet run."
        return
    table = _table(f"{of.dataset}, MSD equal: validation accuracy in % (seeds: {_seeds(rows)})")
    _columns(table, "whole input", "one modality", "blind", "whole, to as it was")
    usual = rows["as it was", EQUAL]
    for (value, _), row in rows.items():
        ahead = "" if row is usual else told(gain(row, usual, whole))
        cells = [spread(values(row, measure)) for measure in (whole, singles)]
        table.add_row(value, *cells, blind(row), ahead)
    yield table


def verdicts(datasets: Sequence[Found]) -> Iterator[Table]:
    """The paper's claims, each with its interval on each data set."""
    for title, measure in (("the whole input", whole), ("one modality alone", singles)):
        table = _table(f"Verdicts on {title}: points ahead ± half of the 95 % interval")
        _columns(table, *(of.dataset for of in datasets))
        for claim in CLAIMS:
            table.add_row(claim.title, *(_cell(of, claim, measure) for of in datasets))
            table.add_section()
        yield table


def _cell(of: Found, claim: Claim, measure: Measure) -> str:
    one, other = claim.methods(of)
    if not {one, other} <= of.methods.keys():
        return "not yet run"
    ahead = gain(of.methods[one], of.methods[other], measure)
    pair = f"{one[4:]} /\n{other.replace('modality dropout', 'drop')}\n" if claim.named else ""
    return f"{pair}{short(ahead)}\n{verdict(ahead)}"


def text(dataset: str, question: str) -> str:
    """The tables of a question as a page shows them."""
    if dataset == "all":
        tables = verdicts([found(name) for name in full.EPOCHS if was_run(name)])
    elif question in VARIED:
        tables = varied(found(dataset), question)
    else:
        tables = ANSWERS[question](found(dataset))
    page = io.StringIO()
    console = Console(file=page, width=WIDTH, force_terminal=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().strip("\n").split("\n"))


ANSWERS = {
    "methods": methods,
    "fidelity": fidelity,
    "modalities": modalities,
    "missing": missing,
    "tiny": tiny,
    "blind": unseen,
}


def was_run(dataset: str) -> bool:
    """Whether there are results of a data set."""
    return (RESULTS / dataset / "full.jsonl").exists()


def _table(title: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, collapse_padding=True, pad_edge=False)
    table.add_column("")
    return table


def _columns(table: Table, *titles: str) -> None:
    for title in titles:
        table.add_column(title, justify="right")
