"""Put the tables of the committed results into the pages that show them, and draw them.

    python -m benchmarks.page

A page names what it shows between two marks, a result and perhaps one of its groups:
`<!-- benchmark views 0: begin -->` and `<!-- benchmark views 0: end -->`; or a data set and a
question of the full study, `<!-- full hanzi methods: begin -->`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from benchmarks import answers, corrupted, full, measure, pictures, verdicts
from benchmarks.outcomes import found, was_run
from benchmarks.tables import plain

PICTURES = {"views": "docs/views.png", "cost": "docs/cost.png"}  # the first group of a result
SHOWING = ("performance", "learned-weights", "study", "study-tables")
PAGES = (Path("README.md"), *(Path("docs", f"{name}.md") for name in SHOWING))
TEXTS = {"corrupted": corrupted.text}  # all others are tables of times and memory
OF_ALL = {"verdicts": verdicts.verdicts, "conditions": verdicts.conditions}
WIDTH = 132  # of the study's tables
MARKED = re.compile(
    r"(<!-- benchmark ([\w-]+)(?: (\d+))?: begin -->\n).*?(<!-- benchmark \2(?: \3)?: end -->)",
    re.DOTALL,
)
ANSWERED = re.compile(
    r"(<!-- full ([\w-]+) (\w+): begin -->\n).*?(<!-- full \2 \3: end -->)", re.DOTALL
)


def drawn(page: str) -> str:
    """A page with its tables as the results have them now."""
    page = MARKED.sub(lambda found: f"{found[1]}{_table(found[2], found[3])}{found[4]}", page)
    return ANSWERED.sub(lambda found: f"{found[1]}{_answer(found[2], found[3])}{found[4]}", page)


def _answer(dataset: str, question: str) -> str:
    return f"```text\n{printed(dataset, question)}\n```\n"


def printed(dataset: str, question: str) -> str:
    """The tables of a question as a page shows them."""
    if dataset == "all":
        every = [found(name) for name in full.EPOCHS if was_run(name)]
        return plain(OF_ALL[question](every), WIDTH)
    if question in answers.TITLES and not found(dataset).answered(question):
        return f"{dataset}, {answers.TITLES[question]}: not yet run."
    return plain(answers.ANSWERS[question](found(dataset)), WIDTH)


def _table(name: str, number: str | None) -> str:
    content = json.loads((measure.RESULTS / f"{name}.json").read_text())
    if number is not None:
        content |= {"groups": [content["groups"][int(number)]], "notes": {}}
    text = TEXTS.get(name, measure.text)(content)
    return f"```text\n{text}\n```\n\n{_machine(content['machine'])}\n"


def draw(name: str, path: Path) -> None:
    """The ratios of a result's first group, with their quartiles."""
    matplotlib.use("Agg")  # no screen is needed
    group = json.loads((measure.RESULTS / f"{name}.json").read_text())["groups"][0]
    names = list(group["rows"])[::-1]
    low, middle, high = np.array([group["rows"][row]["ratio"] for row in names]).T
    figure, axis = plt.subplots(figsize=(8, 0.45 * len(names) + 1), layout="constrained")
    axis.barh(names, middle, xerr=(middle - low, high - middle), color="#0072b2", ecolor="#d55e00")
    axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axis.set_xlabel(f"time, as a multiple of: {group['baseline']} (bars: median; lines: quartiles)")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _machine(machine: dict) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    where = machine["processor"] if machine["device"] == "CPU" else machine["device"]
    commit = (machine["commit"] or "unknown")[:7]
    return f"*One thread of {where}; {packages}; commit {commit}, {machine['date']}.*"


def main() -> None:
    for page in PAGES:
        page.write_text(drawn(page.read_text()))
    for name, path in PICTURES.items():
        draw(name, Path(path))
    for dataset in filter(was_run, full.EPOCHS):
        pictures.draw(dataset, measure.RESULTS / dataset)


if __name__ == "__main__":
    main()
