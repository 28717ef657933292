"""Write the tables of the committed results into the pages that show them, and draw the pictures.

    python -m benchmarks.page

Two marks in a page enclose a table. They name a result and optionally one of its groups,
`<!-- benchmark views 0: begin -->` and `<!-- benchmark views 0: end -->`, or a data set and a
question of the full study, `<!-- full hanzi methods: begin -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from rich.table import Table

from benchmarks import answers, corrupted, full, measure, pictures, verdicts
from benchmarks.outcomes import Study, has_results, study_of
from benchmarks.runs import RESULTS
from benchmarks.tables import plain
from msdlosses.plot import COLORS

PICTURES = {"views": "docs/views.png", "cost": "docs/cost.png"}  # of a result's first group
DOCS = ("performance", "learned-weights", "study", "study-tables")
PAGES = tuple(Path("docs", f"{name}.md") for name in DOCS)
TEXTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "corrupted": corrupted.text
}  # others: measure
OVERVIEWS: dict[str, Callable[[Sequence[Study]], Iterator[Table]]] = {
    "verdicts": verdicts.verdicts,
    "conditions": verdicts.conditions,
}
WIDTH = 132  # of the study's tables
BENCHMARK_MARKS = re.compile(
    r"(<!-- benchmark ([\w-]+)(?: (\d+))?: begin -->\n).*?(<!-- benchmark \2(?: \3)?: end -->)",
    re.DOTALL,
)
QUESTION_MARKS = re.compile(
    r"(<!-- full ([\w-]+) (\w+): begin -->\n).*?(<!-- full \2 \3: end -->)", re.DOTALL
)


def updated(page: str) -> str:
    """Return a page with the tables of the current results."""
    page = BENCHMARK_MARKS.sub(
        lambda match: f"{match[1]}{_table(match[2], match[3])}{match[4]}", page
    )
    return QUESTION_MARKS.sub(
        lambda match: f"{match[1]}{_answer(match[2], match[3])}{match[4]}", page
    )


def _answer(dataset: str, question: str) -> str:
    return f"```text\n{printed(dataset, question)}\n```\n"


def printed(dataset: str, question: str) -> str:
    """Return the tables of a question as plain text."""
    if dataset == "all":
        studies = [study_of(name) for name in full.EPOCHS if has_results(name)]
        return plain(OVERVIEWS[question](studies), WIDTH)
    study = study_of(dataset)
    if question in answers.TITLES and not study.answered(question):
        return f"{dataset}, {answers.TITLES[question]}: not yet run."
    return plain(answers.ANSWERS[question](study), WIDTH)


def _table(name: str, number: str | None) -> str:
    content = json.loads((RESULTS / f"{name}.json").read_text())
    if number is not None:
        content |= {"groups": [content["groups"][int(number)]], "notes": {}}
    text = TEXTS.get(name, measure.text)(content)
    return f"```text\n{text}\n```\n\n{_machine(content['machine'])}\n"


def draw(name: str, path: Path) -> None:
    """Draw the ratios of a result's first group, with their quartiles."""
    matplotlib.use("Agg")  # needs no screen
    group = json.loads((RESULTS / f"{name}.json").read_text())["groups"][0]
    names = list(group["rows"])[::-1]
    low, median, high = np.array([group["rows"][row]["ratio"] for row in names]).T
    figure, axis = plt.subplots(figsize=(8, 0.45 * len(names) + 1), layout="constrained")
    errors = (median - low, high - median)
    axis.barh(names, median, xerr=errors, color=COLORS[0], ecolor=COLORS[1])
    axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axis.set_xlabel(f"time, as a multiple of: {group['baseline']} (bars: median; lines: quartiles)")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _machine(machine: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    device = machine["processor"] if machine["device"] == "CPU" else machine["device"]
    commit = (machine["commit"] or "unknown")[:7]
    return f"*One thread of {device}; {packages}; commit {commit}, {machine['date']}.*"


def main() -> None:
    for page in PAGES:
        page.write_text(updated(page.read_text()))
    for name, path in PICTURES.items():
        draw(name, Path(path))
    for dataset in filter(has_results, full.EPOCHS):
        pictures.draw(dataset, RESULTS / dataset)


if __name__ == "__main__":
    main()
