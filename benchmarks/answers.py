"""The tables of the full study. `python -m benchmarks.page` writes them into their page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import full
from benchmarks.full import BASELINES, SAMPLE_WEIGHTS
from benchmarks.methods import EQUAL, KD, ROBUST
from benchmarks.outcomes import (
    Measure,
    Row,
    Study,
    best,
    gain,
    on_view,
    singles,
    values,
    whole,
    with_missing,
)
from benchmarks.report import interval_cell, paired_cell, short_name, spread
from benchmarks.tables import new_table
from benchmarks.training import MISSING
from benchmarks.trials import TRIALS
from benchmarks.verdicts import OVER_ALL

SCORE = {"emoji-keywords": "mean average precision"}


def blind(row: Row) -> str:
    """Return how many networks predict the same from a single modality as from the whole input."""
    nlls = [[v["nll"] for v in run["views"].values()] for run in row.values()]
    return f"{sum(full in single for full, *single in nlls)}/{len(nlls)}"


def score(study: Study) -> str:
    return SCORE.get(study.dataset, "test accuracy")


def _seeds(rows: Mapping[Any, Row]) -> str:
    counts = sorted({len(row) for row in rows.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def methods(study: Study) -> Iterator[Table]:
    """All methods: scores, and paired differences."""
    rows = study.methods
    title = f"{study.dataset}: {score(study)} in %, mean ± standard deviation"
    heads = ("whole input", "one modality", "half missing", "NLL", "blind", "params")
    first = new_table(f"{title} (seeds: {_seeds(rows)})", *heads)
    for name, row in study.networks.items():
        first.add_row(
            short_name(name),
            spread(values(row, whole)),
            spread(values(row, singles)),
            spread(values(row, partial(with_missing, share=0.5))),
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
            "" if name == base else paired_cell(gain(row, rows[base], measure))
            for base in (KD, ROBUST)
            for measure in (whole, singles)
        ]
        second.add_row(short_name(name), *cells)
    second.caption = "drop: modality dropout; last: seeds won"
    yield second
    yield _weightings(rows)
    if "MSD + FitNet" in rows:
        yield _on_top(rows)


def _weightings(rows: Mapping[str, Row]) -> Table:
    """Weights per sample, compared with one weight for all samples."""
    bases = {"equal": EQUAL, "population": "MSD population"}
    heads = [f"{view}, to {base}" for base in bases for view in ("whole", "one")]
    table = new_table(
        "points that weights of samples are ahead of equal, and of searched ones", *heads
    )
    for name in SAMPLE_WEIGHTS:
        gains = (gain(rows[name], rows[b], m) for b in bases.values() for m in (whole, singles))
        table.add_row(name, *map(paired_cell, gains))
    return table


def _on_top(rows: Mapping[str, Row]) -> Table:
    """The gain from adding MSD to each baseline that can be combined with it."""
    table = new_table("points that MSD adds to a baseline", "whole input", "one modality")
    for name in BASELINES:
        if f"MSD + {name}" in rows:
            pair = rows[f"MSD + {name}"], rows[name]
            gains = (gain(*pair, measure) for measure in (whole, singles))
            table.add_row(name, *map(paired_cell, gains))
    return table


FIDELITY = {
    "expected calibration error in %": "ece",
    "KL to the teacher, in hundredths of a nat": "kl",
    "% of its decisions that are the teacher's": "agreement",
}


def fidelity(study: Study) -> Iterator[Table]:
    """Calibration, and fidelity to the teacher."""
    for what, metric in FIDELITY.items():
        yield from _compared(study, what, study.methods, _by_view(study, metric))


def modalities(study: Study) -> Iterator[Table]:
    """Scores on each single modality."""
    measures = _by_view(study, "accuracy")
    del measures["full"]
    what = f"{score(study)} in % on one modality"
    yield from _compared(study, what, study.networks, measures)


def _by_view(study: Study, metric: str) -> dict[str, Measure]:
    views = next(iter(study.teachers.values()))["views"]
    return {view: partial(on_view, view=view, metric=metric) for view in views}


def missing(study: Study) -> Iterator[Table]:
    """Scores with modalities missing at random in the test data."""
    measures = {f"{100 * share:.0f} %": partial(with_missing, share=share) for share in MISSING}
    what = f"{score(study)} in %, modalities missing"
    yield from _compared(study, what, study.networks, measures)


def _compared(
    study: Study,
    what: str,
    rows: Mapping[str, Row],
    measures: Mapping[str, Measure],
) -> Iterator[Table]:
    """Yield the values of all methods, and their differences to KD."""
    absolute = new_table(f"{study.dataset}: {what}", *measures)
    title = "the same, less that of KD: paired mean ± half of the 95 % interval"
    relative = new_table(title, *measures)
    for name, row in rows.items():
        cells = (spread(values(row, measure)) for measure in measures.values())
        absolute.add_row(short_name(name), *cells)
        if name not in (KD, full.TEACHER):
            gains = (gain(row, rows[KD], measure) for measure in measures.values())
            relative.add_row(short_name(name), *map(interval_cell, gains))
    yield from (absolute, relative)


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
UNVARIED = ("population", "stacked")  # compared with the runs of the question `methods`
LONG = 3  # with so many times the epochs, KD costs as much as MSD with separate forward passes


def varied(study: Study, question: str) -> Iterator[Table]:
    """Scores, and differences under the same conditions, with one variable varied."""
    rows = study.answered(question)
    bases = (KD, EQUAL)
    pairs = [(base, m) for base in bases for m in (whole, singles)]
    measure_names, base_names = {whole: "whole", singles: "one"}, {KD: "KD", EQUAL: "equal"}
    if question == "epochs":
        base_names = {KD: f"KD x{LONG}", EQUAL: "equal x1"}
    heads = (f"{measure_names[measure]}, to {base_names[base]}" for base, measure in pairs)
    title = f"{study.dataset}: {VARIED[question]} (seeds: {_seeds(rows)})"
    table = new_table(title, "", "whole input", "one modality", *heads)
    for (value, name), row in rows.items():
        others = {base: _baseline(study, question, rows, value, base) for base in bases}
        table.add_row(
            short_name(name),
            "" if isinstance(value, bool) else f"{value:g}",
            spread(values(row, whole)),
            spread(values(row, singles)),
            *("" if others[b] is row else interval_cell(gain(row, others[b], m)) for b, m in pairs),
        )
    table.caption = "points ahead, paired mean ± half of the 95 % interval; drop: modality dropout"
    yield table


def _baseline(study: Study, question: str, rows: Mapping[Any, Row], value: Any, method: str) -> Row:
    """Return the results of a method to compare with those under one condition."""
    if question in UNVARIED:
        return study.methods[method]
    if question == "epochs":
        return rows[{KD: LONG, EQUAL: 1}[method], method]
    return rows[value, method]


PAIRS = ((EQUAL, KD), (EQUAL, ROBUST), ("MSD population", KD), ("RKD", KD), ("MSD + RKD", "RKD"))


def shared(study: Study) -> Iterator[Table]:
    """The same settings for all methods: the mean over them, and the best on validation data."""
    rows = study.answered("shared")
    every = {m: [row for (_, method), row in rows.items() if method == m] for _, m in rows}
    chosen = {m: [each[best(dict(enumerate(each)))]] for m, each in every.items()}
    columns = [(measure, some) for measure in (whole, singles) for some in (every, chosen)]
    heads = ("whole, all", "whole, best", "one, all", "one, best")
    title = f"{study.dataset}: {len(every[KD])} settings for all (seeds: {_seeds(rows)})"
    absolute = new_table(title, *heads)
    relative = new_table("points ahead: paired mean ± half of the 95 % interval, seeds won", *heads)
    for name in every:
        absolute.add_row(short_name(name), *(spread(_mean(some[name], m)) for m, some in columns))
    leading = OVER_ALL.pair({m: row for m, (row,) in chosen.items()})
    for one, other in (*PAIRS, leading):
        ahead = (_mean(some[one], m) - _mean(some[other], m) for m, some in columns)
        relative.add_row(f"{one} over {short_name(other)}", *map(paired_cell, ahead))
    relative.caption = (
        "all: the mean over the settings; best: as the seeds' validation parts choose; last row: "
        "the best MSD and the best baseline, chosen alike"
    )
    yield from (absolute, relative)


def _mean(rows: Sequence[Row], measure: Measure) -> np.ndarray:
    """Return the mean over several settings, for each seed."""
    mean: np.ndarray = np.mean([values(row, measure) for row in rows], axis=0)
    return mean


def tiny(study: Study) -> Iterator[Table]:
    """Ablations with a tiny student, on validation data."""
    rows = study.answered("tiny")
    table = new_table(
        f"{study.dataset}, a student of half the size: validation accuracy in %, whole input "
        f"(seeds: {_seeds(rows)})",
        *(KD, "MSD", "whole, to KD", "one, to KD", "blind: KD", "MSD"),
    )
    for value in TRIALS["tiny"]:
        other, row = (rows[value, method] for method in full.QUESTIONS["tiny"].methods)
        cells = [spread(values(r, whole)) for r in (other, row)]
        gains = [paired_cell(gain(row, other, measure)) for measure in (whole, singles)]
        table.add_row(value, *cells, *gains, blind(other), blind(row))
    yield table


def unused_modality(study: Study) -> Iterator[Table]:
    """Ablations for students that use only one modality, on validation data."""
    rows = study.answered("blind")
    title = f"{study.dataset}, MSD equal: validation accuracy in % (seeds: {_seeds(rows)})"
    table = new_table(title, "whole input", "one modality", "blind", "whole, to as it was")
    unchanged = rows["as it was", EQUAL]
    for (value, _), row in rows.items():
        ahead = "" if row is unchanged else paired_cell(gain(row, unchanged, whole))
        cells = [spread(values(row, measure)) for measure in (whole, singles)]
        table.add_row(value, *cells, blind(row), ahead)
    yield table


def learning(study: Study) -> Iterator[Table]:
    """The gain from learned weights over equal ones, if the teacher is often wrong."""
    rows = study.answered("learning")
    metric = SCORE.get(study.dataset, "accuracy")
    title = f"{study.dataset}, 40 % wrong: {metric} in % on validation data (seeds: {_seeds(rows)})"
    table = new_table(title, "whole input", "one modality", "whole, to equal", "one, to equal")
    equal, *_ = rows.values()
    for (value, _), row in rows.items():
        cells = [spread(values(row, measure)) for measure in (whole, singles)]
        gains = [gain(row, equal, measure) for measure in (whole, singles)]
        table.add_row(value, *cells, *("" if row is equal else paired_cell(g) for g in gains))
    yield table


ANSWERS: dict[str, Callable[[Study], Iterator[Table]]] = {
    **{question: partial(varied, question=question) for question in VARIED},
    "methods": methods,
    "fidelity": fidelity,
    "modalities": modalities,
    "missing": missing,
    "shared": shared,
    "tiny": tiny,
    "blind": unused_modality,
    "learning": learning,
}
