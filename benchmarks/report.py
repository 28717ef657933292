"""Tables and pictures of the study's results.

    python -m benchmarks.report RUNS.jsonl --page docs/reproduce.md --pictures FOLDER

prints the tables, writes them into a page between two marks, and draws the pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # needs no screen

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy import stats

from benchmarks.full import TEACHER
from benchmarks.methods import EQUAL, KD
from benchmarks.runs import Result, read
from benchmarks.tables import plain
from msdlosses.plot import COLORS

VIEWS = {"full": "whole input", "image": "image alone", "text": "text alone"}
WIDTH = 80  # of the tables
MARKS = "<!-- study of {}: begin -->", "<!-- study of {}: end -->"


class Results:
    """The numbers of each method, as arrays over the seeds in the same order."""

    def __init__(self, runs: Sequence[Result]) -> None:
        self.runs = sorted(runs, key=lambda run: run["job"]["seed"])
        self.methods = list(dict.fromkeys(run["job"]["method"] for run in runs))
        self.seeds = len({run["job"]["seed"] for run in runs})

    def values(self, method: str, view: str, metric: str = "accuracy") -> np.ndarray:
        chosen = [run for run in self.runs if run["job"]["method"] == method]
        return np.array([run["views"][view][metric] for run in chosen])

    def parameters(self, method: str) -> int:
        counts: list[int] = [r["parameters"] for r in self.runs if r["job"]["method"] == method]
        return counts[0]

    def gain(self, method: str, view: str) -> np.ndarray:
        """Return a method's lead over KD for each seed, in percentage points."""
        gain: np.ndarray = 100 * (self.values(method, view) - self.values(KD, view))
        return gain


def tables(runs: Sequence[Result]) -> Iterator[Table | str]:
    """Yield the results, the paired differences to KD, and where MSD is not ahead."""
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
    """List where MSD is not ahead of KD."""
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
    return f"{gain.mean():+.2f} ± {half_width(gain):.2f}  {(gain > 0).sum()}/{len(gain)}"


def paired_cell(differences: np.ndarray) -> str:
    """Return `paired` for a table: empty for a single seed, which has no interval."""
    return paired(differences) if len(differences) > 1 else ""


def interval_cell(differences: np.ndarray) -> str:
    """Return `paired_cell` without the seeds won."""
    return paired_cell(differences).partition("  ")[0]


def short_name(method: str) -> str:
    return method.replace("modality dropout", "drop")


def half_width(gain: np.ndarray) -> float:
    """Return half of the width of the confidence interval."""
    low, high = interval(gain)
    return (high - low) / 2


def interval(gain: np.ndarray) -> tuple[float, float]:
    """Return Student's confidence interval of the mean of paired differences."""
    interval = stats.ttest_1samp(gain, 0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def pictures(runs: Sequence[Result], folder: Path) -> list[Path]:
    """Plot accuracy by view and method, and the densities of the true class's probability."""
    results = Results(runs)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"accuracy.png": _draw_accuracies(results), "densities.png": _draw_densities(results)}
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120, metadata={"Software": None})
        plt.close(figure)
    return [folder / name for name in figures]


def _draw_accuracies(results: Results) -> Figure:
    figure, axes = plt.subplots(1, len(VIEWS), figsize=(11, 3.6), sharey=True, layout="constrained")
    methods = results.methods[::-1]
    for axis, (view, title), color in zip(axes, VIEWS.items(), COLORS, strict=False):
        values = [100 * results.values(method, view) for method in methods]
        for row, accuracies in enumerate(values):
            axis.plot(accuracies, [row] * len(accuracies), ".", color=color, alpha=0.35)
            axis.plot(accuracies.mean(), row, "|", color=color, markersize=16, markeredgewidth=2)
        axis.set(title=title, xlabel="test accuracy (%)", yticks=range(len(methods)))
        axis.set_yticklabels(methods)
        axis.grid(axis="x", alpha=0.3)
    return figure


def _draw_densities(results: Results) -> Figure:
    shown = [m for m in (TEACHER, KD, EQUAL) if m in results.methods] or results.methods
    figure, axes = plt.subplots(1, len(VIEWS), figsize=(11, 3.2), layout="constrained")
    for axis, (view, title) in zip(axes, VIEWS.items(), strict=True):
        for method, color, style in zip(shown, COLORS, ("-", "--", "-."), strict=False):
            density = results.values(method, view, "density").mean(0)
            edges = np.linspace(0, 1, len(density) + 1)
            axis.stairs(
                density * len(density), edges, label=method, color=color, linestyle=style, lw=1.8
            )
        axis.set(title=title, xlabel="probability given to the right class", yscale="log")
    axes[0].set_ylabel("density")
    axes[0].legend(frameon=False)
    return figure


def text(runs: Sequence[Result]) -> str:
    """Return the tables as the study prints them."""
    return plain(tables(runs), WIDTH)


def write(page: Path, runs: Sequence[Result]) -> None:
    """Write the tables between a page's marks for the data set."""
    begin, end = (mark.format(runs[0]["job"]["dataset"]) for mark in MARKS)
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n```text\n{text(runs)}\n```\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, help="the runs.jsonl of a study")
    parser.add_argument("--page", type=Path, help="page with marks, to write the tables into")
    parser.add_argument("--pictures", type=Path, help="folder to draw the pictures into")
    args = parser.parse_args()
    runs = read(args.runs)
    if args.page:
        write(args.page, runs)
    if args.pictures:
        pictures(runs, args.pictures)
    print(text(runs))


if __name__ == "__main__":
    main()
