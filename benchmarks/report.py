"""Tables and pictures of the study's runs.

    python -m benchmarks.report RUNS.jsonl --page README.md --pictures FOLDER

prints the tables, writes them into a page between its marks, and draws the pictures anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import numpy as np
from matplotlib import pyplot as plt
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy import stats

from benchmarks.full import TEACHER
from benchmarks.methods import EQUAL, KD
from benchmarks.runs import read
from benchmarks.tables import plain

VIEWS = {"full": "whole input", "image": "image alone", "text": "text alone"}
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by colour-blind readers
WIDTH = 80  # of the tables in a page
MARKS = "<!-- study of {}: begin -->", "<!-- study of {}: end -->"

Run = dict[str, Any]


class Results:
    """Numbers by method: arrays over the seeds, in one order for all methods."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = sorted(runs, key=lambda run: run["job"]["seed"])
        self.methods = list(dict.fromkeys(run["job"]["method"] for run in runs))
        self.seeds = len({run["job"]["seed"] for run in runs})

    def values(self, method: str, view: str, metric: str = "accuracy") -> np.ndarray:
        chosen = [run for run in self.runs if run["job"]["method"] == method]
        return np.array([run["views"][view][metric] for run in chosen])

    def parameters(self, method: str) -> int:
        return next(run["parameters"] for run in self.runs if run["job"]["method"] == method)

    def gain(self, method: str, view: str) -> np.ndarray:
        """What a method is ahead of KD, in points, seed by seed."""
        return 100 * (self.values(method, view) - self.values(KD, view))


def tables(runs: Sequence[Run]) -> Iterator[Table | str]:
    """The results, the paired differences to KD, and what speaks against MSD."""
    results = Results(runs)
    yield _accuracies(results)
    if KD in results.methods and results.seeds > 1:
        yield _differences(results)
        yield _footer(results)


def _accuracies(results: Results) -> Table:
    job = results.runs[0]["job"]
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{job['dataset']}: test accuracy in %, mean ± standard deviation "
        f"(seeds: {results.seeds}, epochs: {job['epochs']})",
    )
    table.add_column("method")
    for title in (*VIEWS.values(), "NLL"):
        table.add_column(title, justify="right", no_wrap=True)
    for method in results.methods:
        cells = [spread(100 * results.values(method, view)) for view in VIEWS]
        nll = spread(results.values(method, "full", "nll"), 3)
        table.add_row(method, *cells, nll)
    sizes = dict.fromkeys(f"{results.parameters(method):,}" for method in results.methods)
    table.caption = f"{' and '.join(sizes)} parameters; NLL: negative log-likelihood, whole input"
    return table


def _differences(results: Results) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title="points ahead of KD: paired mean ± half of the 95 % interval, seeds won",
    )
    table.add_column("method")
    for title in VIEWS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for method in results.methods:
        if method not in (TEACHER, KD):
            table.add_row(method, *(paired(results.gain(method, view)) for view in VIEWS))
    return table


def _footer(results: Results) -> str:
    """Where MSD is not ahead of KD, said plainly."""
    lines = []
    for method in results.methods:
        for view, title in VIEWS.items():
            gain = results.gain(method, view)
            low, _ = interval(gain)
            if method.startswith("MSD") and low <= 0:
                word = "behind KD" if gain.mean() < 0 else "not surely ahead of KD"
                lines.append(f"{method} is {word} on the {title} ({paired(gain)}).")
    return "\n".join(lines or ["Every MSD method is ahead of KD on every view."])


def spread(values: np.ndarray, digits: int = 1) -> str:
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.{digits}f} ± {deviation:.{digits}f}"


def paired(gain: np.ndarray) -> str:
    return f"{gain.mean():+.2f} ± {half(gain):.2f}  {(gain > 0).sum()}/{len(gain)}"


def told(differences: np.ndarray) -> str:
    return paired(differences) if len(differences) > 1 else ""


def short(differences: np.ndarray) -> str:
    """Without the seeds won."""
    return told(differences).partition("  ")[0]


def dropped(name: str) -> str:
    """A method's name, shorter."""
    return name.replace("modality dropout", "drop")


def half(gain: np.ndarray) -> float:
    """Of the interval's width."""
    low, high = interval(gain)
    return (high - low) / 2


def interval(gain: np.ndarray) -> tuple[float, float]:
    """Student's interval of a mean of paired differences."""
    interval = stats.ttest_1samp(gain, 0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def pictures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Accuracy by view and method, and the densities of what the networks say."""
    results = Results(runs)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"accuracy.png": _draw_accuracies(results), "densities.png": _draw_densities(results)}
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=120, metadata={"Software": None})
        plt.close(figure)
    return [folder / name for name in drawn]


def _draw_accuracies(results: Results) -> plt.Figure:
    figure, axes = plt.subplots(1, len(VIEWS), figsize=(11, 3.6), sharey=True, layout="constrained")
    methods = results.methods[::-1]
    for axis, (view, title), colour in zip(axes, VIEWS.items(), COLOURS, strict=True):
        values = [100 * results.values(method, view) for method in methods]
        for row, accuracies in enumerate(values):
            axis.plot(accuracies, [row] * len(accuracies), ".", color=colour, alpha=0.35)
            axis.plot(accuracies.mean(), row, "|", color=colour, markersize=16, markeredgewidth=2)
        axis.set(title=title, xlabel="test accuracy (%)", yticks=range(len(methods)))
        axis.set_yticklabels(methods)
        axis.grid(axis="x", alpha=0.3)
    return figure


def _draw_densities(results: Results) -> plt.Figure:
    shown = [m for m in (TEACHER, KD, EQUAL) if m in results.methods] or results.methods
    figure, axes = plt.subplots(1, len(VIEWS), figsize=(11, 3.2), layout="constrained")
    for axis, (view, title) in zip(axes, VIEWS.items(), strict=True):
        for method, colour, dash in zip(shown, COLOURS, ("-", "--", "-."), strict=False):
            density = results.values(method, view, "density").mean(0)
            borders = np.linspace(0, 1, len(density) + 1)
            axis.stairs(
                density * len(density), borders, label=method, color=colour, linestyle=dash, lw=1.8
            )
        axis.set(title=title, xlabel="probability given to the right class", yscale="log")
    axes[0].set_ylabel("density")
    axes[0].legend(frameon=False)
    return figure


def text(runs: Sequence[Run]) -> str:
    """The tables as the study prints them."""
    return plain(tables(runs), WIDTH)


def write(page: Path, runs: Sequence[Run]) -> None:
    """Put the tables between the data set's marks in a page."""
    begin, end = (mark.format(runs[0]["job"]["dataset"]) for mark in MARKS)
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n```text\n{text(runs)}\n```\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, help="the runs.jsonl of a study")
    parser.add_argument("--page", type=Path, help="a page with marks for the tables")
    parser.add_argument("--pictures", type=Path, help="a folder for the pictures")
    args = parser.parse_args()
    runs = read(args.runs)
    if args.page:
        write(args.page, runs)
    if args.pictures:
        pictures(runs, args.pictures)
    print(text(runs))


if __name__ == "__main__":
    main()
