"""The pictures of the full study, from its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator

from benchmarks.answers import VARIED, score
from benchmarks.full import TEACHER
from benchmarks.methods import EQUAL, KD, ROBUST
from benchmarks.outcomes import Found, Measure, found, gain, mean_of, singles, values, whole
from benchmarks.report import COLOURS, half
from benchmarks.training import MISSING

STYLES = {  # of the methods that are drawn as curves
    KD: ("o", COLOURS[0]),
    ROBUST: ("s", COLOURS[1]),
    EQUAL: ("^", COLOURS[2]),
    "MSD saliency": ("D", "#cc79a7"),
    "labels": (".", "black"),
}
BASELINES = {"FitNet": ("v", "#56b4e9"), "RKD": ("P", "#e69f00"), "SP": ("X", "#999999")}
MEASURES = ((whole, "whole input", COLOURS[0]), (singles, "one modality", COLOURS[1]))
DISTANCES = (lambda run: run["views"]["full"]["kl"], partial(mean_of, metric="kl"))  # of the same


def draw(dataset: str, folder: Path) -> None:
    """Two pictures of a data set: its methods, and what the other questions vary."""
    of = found(dataset)
    swept = MEASURES if of.answered("population") else ()
    sweeps = [partial(_draw_sweep, measured=measured) for measured in swept]
    _save(of, [_draw_gains, *sweeps, _draw_missing], folder / "full.png")
    teachers = [partial(_draw_gains, question=q) for q in ("weak", "corrupted") if of.answered(q)]
    curves = [partial(_draw_curve, question=q) for q in CURVES if of.answered(q)]
    _save(of, [_draw_fidelity, *teachers, *curves], folder / "questions.png")


def _save(of: Found, parts: Sequence[Callable[[Any, Found], None]], path: Path) -> None:
    lines = -(-len(parts) // 3)
    columns = -(-len(parts) // lines)
    figure, axes = plt.subplots(
        lines, columns, figsize=(13, 4.6 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(parts) :]:
        axis.set_axis_off()
    for axis, draw_part in zip(axes.flat, parts, strict=False):
        draw_part(axis, of)
    figure.suptitle(f"{of.dataset}: {score(of)}")
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _draw_gains(axis: Any, of: Found, question: str = "methods") -> None:
    methods = {method: row for (_, method), row in of.rows(question).items()}
    names = [name for name in methods if name != KD][::-1]
    for (measure, label, colour), shift in zip(MEASURES, (0.15, -0.15), strict=True):
        gains = [gain(methods[name], methods[KD], measure) for name in names]
        middle = np.array([g.mean() for g in gains])
        rows = np.arange(len(names)) + shift
        halves = [*map(half, gains)]
        axis.errorbar(middle, rows, xerr=halves, fmt="o", ms=3.5, color=colour, label=label)
    axis.axvline(0, color="black", lw=0.8, ls="--")
    axis.set_title(VARIED.get(question, ""), fontsize=9)
    axis.set_xlabel("points ahead of KD (95 % interval)")
    _name_rows(axis, names)


def _name_rows(axis: Any, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.legend(frameon=False, fontsize=8)


CURVES = {  # what is varied, of which the usual is 1
    "labelled": "share of the training data that has labels",
    "size": VARIED["size"],
    "epochs": VARIED["epochs"],
}


def _draw_curve(axis: Any, of: Found, question: str) -> None:
    """How the scores on the whole input change with what is varied."""
    rows = of.answered(question)
    for name in dict.fromkeys(method for _, method in rows):
        points = {value: row for (value, method), row in rows.items() if method == name}
        points[1] = of.methods[name]
        ordered = sorted(points)
        scores = [values(points[value], whole) for value in ordered]
        mark, colour = (STYLES | BASELINES)[name]
        _draw_means(axis, ordered, scores, marker=mark, color=colour, label=name)
    axis.set_xscale("log")
    axis.set(
        xticks=ordered, xlabel=CURVES[question], ylabel="%, whole input (bars: standard error)"
    )
    axis.set_xticklabels([f"{value:g}" for value in ordered])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)


def _draw_fidelity(axis: Any, of: Found) -> None:
    """How far each method is from the teacher, on the whole input and on one modality."""
    names = [*of.methods][::-1]
    for measure, (_, label, colour) in zip(DISTANCES, MEASURES, strict=True):
        kl = [values(of.methods[name], measure).mean() for name in names]
        axis.plot(kl, range(len(names)), "o", ms=4, color=colour, label=label)
    axis.set(xscale="log", xlabel="KL to the teacher (nats)")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    _name_rows(axis, names)


def _draw_sweep(axis: Any, of: Found, measured: tuple[Measure, str, str]) -> None:
    measure, label, colour = measured
    rows = of.answered("population")
    scores = [values(row, measure) for row in rows.values()]
    _draw_means(axis, [weight for weight, _ in rows], scores, marker="o", color=colour)
    axis.set_xscale("symlog", linthresh=0.1)
    axis.set(xlabel="weight of a modality alone", ylabel=f"%, {label} (bars: standard error)")


def _draw_means(axis: Any, at: Sequence[float], scores: Sequence[np.ndarray], **style: Any) -> None:
    means = [s.mean() for s in scores]
    error = [s.std(ddof=1) / len(s) ** 0.5 for s in scores]
    axis.errorbar(at, means, yerr=error, ms=4, capsize=2, **style)


def _draw_missing(axis: Any, of: Found) -> None:
    for name, (mark, colour) in {**STYLES, TEACHER: ("x", "#999999")}.items():
        row = of.networks[name]
        curve = [values(row, lambda r, s=s: 100 * r["missing"][f"{s:g}"]).mean() for s in MISSING]
        curve = [values(row, whole).mean(), *curve]
        shares = [0, *(100 * share for share in MISSING)]
        axis.plot(shares, curve, marker=mark, ms=4, color=colour, label=name)
    axis.set(xlabel="modalities missing in the test data (%)", ylabel="%")
    axis.legend(frameon=False, fontsize=8)
