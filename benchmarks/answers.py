"""The tables of the full study, from its runs.

`python -m benchmarks.page` puts them into the page that shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import full
from benchmarks.full import FAMILY, OF_SAMPLES
from benchmarks.methods import EQUAL, KD, ROBUST
from benchmarks.outcomes import Found, Measure, Row, best, gain, singles, values, whole
from benchmarks.report import dropped, short, spread, told
from benchmarks.tables import new_table
from benchmarks.training import MISSING
from benchmarks.trials import TRIALS
from benchmarks.verdicts import OVER_ALL

SCORE = {"emoji-keywords": "mean average precision"}


def blind(row: Row) -> str:
    """How many students of two modalities say of one alone the same as of both."""
    each = [[v["nll"] for v in run["views"].values()] for run in row.values()]
    return f"{sum(whole in alone for whole, *alone in each)}/{len(each)}"


def score(of: Found) -> str:
    return SCORE.get(of.dataset, "test accuracy")


def _seeds(rows: Mapping[Any, Row]) -> str:
    counts = sorted({len(row) for row in rows.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def methods(of: Found) -> Iterator[Table]:
    """All methods: scores, how calibrated and like the teacher they are, paired differences."""
    rows = of.methods
    title = f"{of.dataset}: {score(of)} in %, mean ± standard deviation"
    heads = ("whole input", "one modality", "half missing", "NLL", "blind", "params")
    first = new_table(f"{title} (seeds: {_seeds(rows)})", *heads)
    for name, row in of.networks.items():
        first.add_row(
            dropped(name),
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
    second = new_table(
        "points ahead, whole input and one modality: paired mean ± half of the 95 % interval",
        *("whole, to KD", "one, to KD", "whole, to KD + drop", "one, to KD + drop"),
    )
    for name, row in rows.items():
        cells = [
            "" if name == base else told(gain(row, rows[base], measure))
            for base in (KD, ROBUST)
            for measure in (whole, singles)
        ]
        second.add_row(dropped(name), *cells)
    second.caption = "drop: modality dropout; last: seeds won"
    yield second
    yield _weightings(rows)
    if "MSD + FitNet" in rows:
        yield _on_top(rows)


def _weightings(rows: Mapping[str, Row]) -> Table:
    """Weights of samples against one weight for all."""
    bases = {"equal": EQUAL, "population": "MSD population"}
    heads = [f"{view}, to {base}" for base in bases for view in ("whole", "one")]
    table = new_table(
        "points that weights of samples are ahead of equal, and of searched ones", *heads
    )
    for name in OF_SAMPLES:
        gains = (gain(rows[name], rows[b], m) for b in bases.values() for m in (whole, singles))
        table.add_row(name, *map(told, gains))
    return table


def _on_top(rows: Mapping[str, Row]) -> Table:
    """What MSD adds to each baseline that has another loss besides."""
    table = new_table("points that MSD adds to a baseline", "whole input", "one modality")
    for name in FAMILY:
        if f"MSD + {name}" in rows:
            pair = rows[f"MSD + {name}"], rows[name]
            table.add_row(name, *(told(gain(*pair, measure)) for measure in (whole, singles)))
    return table


FIDELITY = {
    "expected calibration error in %": "ece",
    "KL to the teacher, in hundredths of a nat": "kl",
    "% of its decisions that are the teacher's": "agreement",
}


def fidelity(of: Found) -> Iterator[Table]:
    """How well a student's confidence is founded, and how near it is to the teacher."""
    for what, metric in FIDELITY.items():
        yield from _compared(of, what, of.methods, _by_view(of, metric))


def modalities(of: Found) -> Iterator[Table]:
    """Each modality alone."""
    measures = _by_view(of, "accuracy")
    del measures["full"]
    yield from _compared(of, f"{score(of)} in % on one modality", of.networks, measures)


def _by_view(of: Found, metric: str) -> dict[str, Measure]:
    views = next(iter(of.teachers.values()))["views"]
    return {v: lambda run, v=v: 100 * run["views"][v][metric] for v in views}


def missing(of: Found) -> Iterator[Table]:
    """Where modalities are missing at random in the test data."""
    measures = {
        f"{100 * share:.0f} %": lambda run, s=share: 100 * run["missing"][f"{s:g}"]
        for share in MISSING
    }
    yield from _compared(of, f"{score(of)} in %, modalities missing", of.networks, measures)


def _compared(
    of: Found,
    what: str,
    rows: Mapping[str, Row],
    measures: Mapping[str, Measure],
) -> Iterator[Table]:
    """What each method reaches, and how far that is from what KD does."""
    reached = new_table(f"{of.dataset}: {what}", *measures)
    title = "the same, less that of KD: paired mean ± half of the 95 % interval"
    apart = new_table(title, *measures)
    for name, row in rows.items():
        cells = (spread(values(row, measure)) for measure in measures.values())
        reached.add_row(dropped(name), *cells)
        if name not in (KD, full.TEACHER):
            gains = (gain(row, rows[KD], measure) for measure in measures.values())
            apart.add_row(dropped(name), *map(short, gains))
    yield from (reached, apart)


VARIED = {
    "weak": "a teacher that can't read one modality",
    "corrupted": "40 % of the teacher's predictions are wrong",
    "population": "what a modality alone counts",
    "labelled": "few labels, the teacher on all data",
    "size": "the student's width, times the usual",
    "stacked": "the views stacked, where elsewhere each tower runs once",
    "epochs": "the epochs, times the usual",
}
TITLES = VARIED | {
    "shared": "the same settings",
    "tiny": "a student of half the size",
    "blind": "students that do not use a modality",
    "learning": "what keeps weights from learning who is wrong",
}
USUAL = ("population", "stacked")  # compared with what is not varied
LONG = 3  # times the usual epochs KD has what MSD costs in a forward for each view


def varied(of: Found, question: str) -> Iterator[Table]:
    """One thing varied: scores, and what a method is ahead of another under the same conditions."""
    rows = of.answered(question)
    bases = (KD, EQUAL)
    pairs = [(base, m) for base in bases for m in (whole, singles)]
    named = {whole: "whole", singles: "one", KD: "KD", EQUAL: "equal"}
    if question == "epochs":
        named |= {KD: f"KD x{LONG}", EQUAL: "equal x1"}
    heads = (f"{named[measure]}, to {named[base]}" for base, measure in pairs)
    title = f"{of.dataset}: {VARIED[question]} (seeds: {_seeds(rows)})"
    table = new_table(title, "", "whole input", "one modality", *heads)
    for (value, name), row in rows.items():
        others = {base: _other(of, question, rows, value, base) for base in bases}
        table.add_row(
            dropped(name),
            "" if isinstance(value, bool) else f"{value:g}",
            spread(values(row, whole)),
            spread(values(row, singles)),
            *("" if others[b] is row else short(gain(row, others[b], m)) for b, m in pairs),
        )
    table.caption = "points ahead, paired mean ± half of the 95 % interval; drop: modality dropout"
    yield table


def _other(of: Found, question: str, rows: Mapping[Any, Row], value: Any, base: str) -> Row:
    """What a row is compared with."""
    if question in USUAL:
        return of.methods[base]
    if question == "epochs":
        return rows[{KD: LONG, EQUAL: 1}[base], base]
    return rows[value, base]


PAIRS = ((EQUAL, KD), (EQUAL, ROBUST), ("MSD population", KD), ("RKD", KD), ("MSD + RKD", "RKD"))


def shared(of: Found) -> Iterator[Table]:
    """The same settings for all: the mean over them, and what validation data chose of them."""
    rows = of.answered("shared")
    every = {m: [row for (_, method), row in rows.items() if method == m] for _, m in rows}
    chosen = {m: [tried[best(dict(enumerate(tried)))]] for m, tried in every.items()}
    columns = [(measure, some) for measure in (whole, singles) for some in (every, chosen)]
    heads = ("whole, all", "whole, best", "one, all", "one, best")
    title = f"{of.dataset}: {len(every[KD])} settings for all (seeds: {_seeds(rows)})"
    reached = new_table(title, *heads)
    apart = new_table("points ahead: paired mean ± half of the 95 % interval, seeds won", *heads)
    for name in every:
        reached.add_row(dropped(name), *(spread(_mean(some[name], m)) for m, some in columns))
    leading = OVER_ALL.pair({m: row for m, (row,) in chosen.items()})
    for one, other in (*PAIRS, leading):
        ahead = (_mean(some[one], m) - _mean(some[other], m) for m, some in columns)
        apart.add_row(f"{one} over {dropped(other)}", *map(told, ahead))
    apart.caption = (
        "all: the mean over the settings; best: as the seeds' validation parts choose; last row: "
        "the best MSD and the best baseline, chosen alike"
    )
    yield from (reached, apart)


def _mean(rows: Sequence[Row], measure: Measure) -> np.ndarray:
    """Over several settings, seed by seed."""
    return np.mean([values(row, measure) for row in rows], axis=0)


def tiny(of: Found) -> Iterator[Table]:
    """What was tried where the student is tiny, on validation data."""
    rows = of.answered("tiny")
    table = new_table(
        f"{of.dataset}, a student of half the size: validation accuracy in %, whole input "
        f"(seeds: {_seeds(rows)})",
        *(KD, "MSD", "whole, to KD", "one, to KD", "blind: KD", "MSD"),
    )
    for value in TRIALS["tiny"]:
        other, row = (rows[value, method] for method in full.QUESTIONS["tiny"].methods)
        cells = [spread(values(r, whole)) for r in (other, row)]
        gains = [told(gain(row, other, measure)) for measure in (whole, singles)]
        table.add_row(value, *cells, *gains, blind(other), blind(row))
    yield table


def unseen(of: Found) -> Iterator[Table]:
    """What keeps students from using both modalities, on validation data."""
    rows = of.answered("blind")
    title = f"{of.dataset}, MSD equal: validation accuracy in % (seeds: {_seeds(rows)})"
    table = new_table(title, "whole input", "one modality", "blind", "whole, to as it was")
    usual = rows["as it was", EQUAL]
    for (value, _), row in rows.items():
        ahead = "" if row is usual else told(gain(row, usual, whole))
        cells = [spread(values(row, measure)) for measure in (whole, singles)]
        table.add_row(value, *cells, blind(row), ahead)
    yield table


def learning(of: Found) -> Iterator[Table]:
    """What learned weights gain on equal ones where the teacher is often wrong."""
    rows = of.answered("learning")
    scored = SCORE.get(of.dataset, "accuracy")
    title = f"{of.dataset}, 40 % wrong: {scored} in % on validation data (seeds: {_seeds(rows)})"
    table = new_table(title, "whole input", "one modality", "whole, to equal", "one, to equal")
    equal, *_ = rows.values()
    for (value, _), row in rows.items():
        cells = [spread(values(row, measure)) for measure in (whole, singles)]
        ahead = [gain(row, equal, measure) for measure in (whole, singles)]
        table.add_row(value, *cells, *("" if row is equal else told(part) for part in ahead))
    yield table


ANSWERS = {
    **{question: partial(varied, question=question) for question in VARIED},
    "methods": methods,
    "fidelity": fidelity,
    "modalities": modalities,
    "missing": missing,
    "shared": shared,
    "tiny": tiny,
    "blind": unseen,
    "learning": learning,
}
