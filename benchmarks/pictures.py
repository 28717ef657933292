"""The pictures of the full study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # needs no screen

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from benchmarks.answers import VARIED, score
from benchmarks.full import TEACHER
from benchmarks.methods import EQUAL, KD, ROBUST
from benchmarks.outcomes import (
    Measure,
    Study,
    gain,
    mean_of,
    singles,
    study_of,
    values,
    whole,
    with_missing,
)
from benchmarks.report import half_width
from benchmarks.runs import Result
from benchmarks.training import MISSING
from msdlosses.plot import COLORS

GRAY = "#999999"
STYLES = {  # marker and color of the methods that are drawn as curves
    KD: ("o", COLORS[0]),
    ROBUST: ("s", COLORS[1]),
    EQUAL: ("^", COLORS[2]),
    "MSD saliency": ("D", COLORS[3]),
    "labels": (".", "black"),
}
BASELINE_STYLES = {"FitNet": ("v", COLORS[5]), "RKD": ("P", COLORS[4]), "SP": ("X", GRAY)}


def full_kl(run: Result) -> float:
    kl: float = run["views"]["full"]["kl"]
    return kl


ScoreStyle = tuple[Measure, str, str]  # a score, its label, and its color
SCORES: tuple[ScoreStyle, ...] = (
    (whole, "whole input", COLORS[0]),
    (singles, "one modality", COLORS[1]),
)
DISTANCES: tuple[Measure, ...] = (full_kl, partial(mean_of, metric="kl"))  # on the same views


def draw(dataset: str, folder: Path) -> None:
    """Draw the two pictures of a data set: its methods, and the other questions."""
    study = study_of(dataset)
    swept = SCORES if study.answered("population") else ()
    sweeps = [partial(_draw_sweep, style=style) for style in swept]
    _save(study, [_draw_gains, *sweeps, _draw_missing], folder / "full.png")
    questions = [q for q in ("weak", "corrupted") if study.answered(q)]
    teachers = [partial(_draw_gains, question=question) for question in questions]
    curves = [partial(_draw_curve, question=q) for q in CURVES if study.answered(q)]
    _save(study, [_draw_fidelity, *teachers, *curves], folder / "questions.png")


def _save(study: Study, parts: Sequence[Callable[[Axes, Study], None]], path: Path) -> None:
    lines = -(-len(parts) // 3)
    columns = -(-len(parts) // lines)
    figure, axes = plt.subplots(
        lines, columns, figsize=(13, 4.6 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(parts) :]:
        axis.set_axis_off()
    for axis, draw_part in zip(axes.flat, parts, strict=False):
        draw_part(axis, study)
    figure.suptitle(f"{study.dataset}: {score(study)}")
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _draw_gains(axis: Axes, study: Study, question: str = "methods") -> None:
    methods = {method: row for (_, method), row in study.rows(question).items()}
    names = [name for name in methods if name != KD][::-1]
    for (measure, label, color), shift in zip(SCORES, (0.15, -0.15), strict=True):
        gains = [gain(methods[name], methods[KD], measure) for name in names]
        means = np.array([g.mean() for g in gains])
        rows = np.arange(len(names)) + shift
        widths = [*map(half_width, gains)]
        axis.errorbar(means, rows, xerr=widths, fmt="o", ms=3.5, color=color, label=label)
    axis.axvline(0, color="black", lw=0.8, ls="--")
    axis.set_title(VARIED.get(question, ""), fontsize=9)
    axis.set_xlabel("points ahead of KD (95 % interval)")
    _name_rows(axis, names)


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.legend(frameon=False, fontsize=8)


CURVES = {  # question -> label of the varied value, which is usually 1
    "labelled": "share of the training data that has labels",
    "size": VARIED["size"],
    "epochs": VARIED["epochs"],
}


def _draw_curve(axis: Axes, study: Study, question: str) -> None:
    """Draw the scores on the whole input by the varied value."""
    rows = study.answered(question)
    for name in dict.fromkeys(method for _, method in rows):
        points = {value: row for (value, method), row in rows.items() if method == name}
        points[1] = study.methods[name]
        ordered = sorted(points)
        scores = [values(points[value], whole) for value in ordered]
        marker, color = (STYLES | BASELINE_STYLES)[name]
        _draw_means(axis, ordered, scores, marker=marker, color=color, label=name)
    axis.set_xscale("log")
    axis.set(
        xticks=ordered, xlabel=CURVES[question], ylabel="%, whole input (bars: standard error)"
    )
    axis.set_xticklabels([f"{value:g}" for value in ordered])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)


def _draw_fidelity(axis: Axes, study: Study) -> None:
    """Draw the divergence of each method from the teacher."""
    names = [*study.methods][::-1]
    for measure, (_, label, color) in zip(DISTANCES, SCORES, strict=True):
        kl = [values(study.methods[name], measure).mean() for name in names]
        axis.plot(kl, range(len(names)), "o", ms=4, color=color, label=label)
    axis.set(xscale="log", xlabel="KL to the teacher (nats)")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    _name_rows(axis, names)


def _draw_sweep(axis: Axes, study: Study, style: ScoreStyle) -> None:
    measure, label, color = style
    rows = study.answered("population")
    scores = [values(row, measure) for row in rows.values()]
    _draw_means(axis, [weight for weight, _ in rows], scores, marker="o", color=color)
    axis.set_xscale("symlog", linthresh=0.1)
    axis.set(xlabel="weight of a modality alone", ylabel=f"%, {label} (bars: standard error)")


def _draw_means(
    axis: Axes,
    x: Sequence[float],
    scores: Sequence[np.ndarray],
    *,
    marker: str,
    color: str,
    label: str | None = None,
) -> None:
    """Draw the mean scores with their standard errors."""
    means = [s.mean() for s in scores]
    errors = [s.std(ddof=1) / len(s) ** 0.5 for s in scores]
    axis.errorbar(x, means, yerr=errors, ms=4, capsize=2, marker=marker, color=color, label=label)


def _draw_missing(axis: Axes, study: Study) -> None:
    """Draw the scores by the share of missing modalities."""
    for name, (marker, color) in {**STYLES, TEACHER: ("x", GRAY)}.items():
        row = study.networks[name]
        measures: list[Measure] = [whole, *(partial(with_missing, share=s) for s in MISSING)]
        curve = [values(row, measure).mean() for measure in measures]
        shares = [0, *(100 * s for s in MISSING)]
        axis.plot(shares, curve, marker=marker, ms=4, color=color, label=name)
    axis.set(xlabel="modalities missing in the test data (%)", ylabel="%")
    axis.legend(frameon=False, fontsize=8)
