"""The pictures of the full study, from its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import numpy as np
from matplotlib import pyplot as plt

from benchmarks.answers import EQUAL, KD, ROBUST, Found, found, gain, score, singles, values, whole
from benchmarks.report import COLOURS, interval
from benchmarks.training import MISSING

SHOWN = (KD, ROBUST, EQUAL, "MSD saliency")


def draw(dataset: str, path: Path) -> None:
    """What each method is ahead of KD; the sweep of weights; modalities missing."""
    of = found(dataset)
    drawn = [_draw_gains, *([_draw_sweep] if of.answered("population") else []), _draw_missing]
    figure, axes = plt.subplots(1, len(drawn), figsize=(13, 5.2), layout="constrained")
    for axis, draw_part in zip(axes, drawn, strict=True):
        draw_part(axis, of)
    figure.suptitle(f"{dataset}: {score(of)}")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _draw_gains(axis: Any, of: Found) -> None:
    names = [name for name in of.methods if name != KD][::-1]
    for measure, label, colour, shift in (
        (whole, "whole input", COLOURS[0], 0.15),
        (singles, "one modality", COLOURS[1], -0.15),
    ):
        gains = [gain(of.methods[name], of.methods[KD], measure) for name in names]
        middle = np.array([g.mean() for g in gains])
        halves = [(interval(g)[1] - interval(g)[0]) / 2 for g in gains]
        rows = np.arange(len(names)) + shift
        axis.errorbar(middle, rows, xerr=halves, fmt="o", ms=3.5, color=colour, label=label)
    axis.axvline(0, color="black", lw=0.8, ls="--")
    axis.set(yticks=range(len(names)), xlabel="points ahead of KD (95 % interval)")
    axis.set_yticklabels(names, fontsize=8)
    axis.legend(frameon=False, fontsize=8)


def _draw_sweep(axis: Any, of: Found) -> None:
    rows = of.answered("population")
    for measure, label, colour in (
        (whole, "whole input", COLOURS[0]),
        (singles, "one modality", COLOURS[1]),
    ):
        weights = [value for value, _ in rows]
        middle = [values(row, measure).mean() for row in rows.values()]
        axis.plot(weights, middle, "o-", ms=4, color=colour, label=label)
    axis.set_xscale("symlog", linthresh=0.1)
    axis.set(xlabel="weight of a modality alone", ylabel="%")
    axis.legend(frameon=False, fontsize=8)


def _draw_missing(axis: Any, of: Found) -> None:
    styles = zip((*SHOWN, "teacher"), "os^D.", (*COLOURS, "#cc79a7", "black"), strict=True)
    for name, mark, colour in styles:
        row = of.teachers if name == "teacher" else of.methods[name]
        curve = [values(row, lambda r, s=s: 100 * r["missing"][f"{s:g}"]).mean() for s in MISSING]
        curve = [values(row, whole).mean(), *curve]
        shares = [0, *(100 * share for share in MISSING)]
        axis.plot(shares, curve, marker=mark, ms=4, color=colour, label=name)
    axis.set(xlabel="modalities missing in the test data (%)", ylabel="%")
    axis.legend(frameon=False, fontsize=8)
