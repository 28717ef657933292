"""Write the output of code blocks into their pages, and draw the pictures.

    python -m docs.draw

Each picture is drawn for light and for dark pages. Code blocks of the tutorial draw its pictures.
The picture on the front page shows the method for one character and the tutorial's models.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # needs no screen

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.data._pack import decode
from benchmarks.datasets import DATA, Split
from msdlosses.functional import kl_divergence
from msdlosses.plot import COLORS

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
TUTORIALS = (HERE / "tutorial.md", HERE / "tutorial-weights.md")
WITH_OUTPUT = (HERE.parent / "README.md", HERE / "index.md", HERE / "quickstart.md")
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?P<rest>\n```text\n.*?```\n)?", re.DOTALL)
PICTURE = re.compile(r"\{image\} pictures/(.*)-light\.svg")
INK = {"light": "#1f2328", "dark": "#e6edf3"}  # the background is transparent
TEACHER, STUDENT = COLORS[0], COLORS[4]
WIDTHS = (1, 1.5, 1.7, 1.7, 2.3)  # of the columns
SHOWN = 5  # classes
LARGE = {"fontsize": 15, "va": "center"}

Logits = Mapping[str, Tensor]


def run(page: str, namespace: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the page with the current output of its code, and the code blocks that draw."""
    drawing: list[str] = []

    def run_block(match: re.Match[str]) -> str:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(match["code"], namespace)
        if "plot_" in match["code"]:
            drawing.append(match["code"])
        output = f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else ""
        return f"```python\n{match['code']}```\n{output}"

    return BLOCK.sub(run_block, page), drawing


def style(ink: str) -> dict[str, Any]:
    """Return settings for matplotlib."""
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    transparent = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    size = {"figure.figsize": (6, 3.2), "font.size": 11, "svg.hashsalt": "msdlosses"}
    return {**dict.fromkeys(inked, ink), **dict.fromkeys(transparent, "none"), **size}


def save(figure: Figure, name: str) -> None:
    figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def method(namespace: Mapping[str, Any], ink: str) -> Figure:
    """Draw the predictions of the teacher and of the KD student for one character, by view."""
    teacher, student = namespace["teacher_logits"], namespace["kd_logits"]
    number, glyph, gloss = character(namespace["task"].test, teacher)
    classes = teacher["full"][number].topk(SHOWN).indices
    figure = plt.figure(figsize=(6.4, 3.6), layout="constrained")
    grid = figure.subplots(3, 5, width_ratios=WIDTHS)
    heads = ("image", "text", "teacher", "student", "term")
    for axis, head in zip(grid[0], heads, strict=True):
        axis.set_title(head, fontsize=12, color=ink)
    for row, view in zip(grid, teacher, strict=True):
        for axis, width in zip(row, WIDTHS, strict=True):
            axis.set_box_aspect(1 / width)  # all axes have the same height
        draw_input(row[0], row[1], view, glyph, gloss, ink)
        pair = [logits[view][number] for logits in (teacher, student)]
        for axis, logits, color in zip(row[2:4], pair, (TEACHER, STUDENT), strict=True):
            draw_prediction(axis, logits.softmax(-1)[classes].tolist(), color)
        term = kl_divergence(pair[1], pair[0]).item()
        plus = "" if view == "full" else "+"
        row[4].text(0, 0.5, f"{plus:3} $w_\\mathrm{{{view}}} \\cdot {term:.2f}$", **LARGE)
        row[4].set_axis_off()
    figure.supxlabel(
        "loss of a sample: the weighted sum of the divergences of student and teacher\n"
        "on the whole input, on the image only, and on the text only",
        fontsize=11,
        color=ink,
    )
    return figure


def character(test: Split, teacher: Logits) -> tuple[int, np.ndarray, str]:
    """Return the number, glyph, and gloss of a character with a short gloss.

    The teacher is right on all views, and most confident on the text.
    """
    pack = np.load(DATA / "hanzi12.npz")
    glosses = decode(pack["gloss"])
    rows = {glyph.tobytes(): row for row, glyph in enumerate(pack["glyph"])}
    glyphs = (7 * test.inputs["pixels"][:, 0]).round().to(torch.uint8).numpy()
    gloss = [glosses[rows[glyph.tobytes()]] for glyph in glyphs]
    probabilities = torch.stack(
        [x.softmax(-1).gather(1, test.target[:, None])[:, 0] for x in teacher.values()]
    )
    suitable = torch.tensor([len(words) < 12 for words in gloss]) & (probabilities > 0.5).all(0)
    number = int(probabilities[-1].masked_fill(~suitable, 0.0).argmax())
    return number, glyphs[number], gloss[number]


def draw_input(left: Axes, right: Axes, view: str, glyph: np.ndarray, gloss: str, ink: str) -> None:
    for axis, modality in ((left, "image"), (right, "text")):
        axis.set(xticks=[], yticks=[])
        if view not in ("full", modality):
            axis.spines[:].set(linestyle=(0, (2, 3)), alpha=0.6)
        elif modality == "image":
            axis.imshow(glyph, cmap="gray_r" if ink == INK["light"] else "gray")
        else:
            axis.text(0.5, 0.5, gloss, ha="center", va="center", transform=axis.transAxes)
    left.set_ylabel(view, fontsize=12)


def draw_prediction(axis: Axes, probabilities: list[float], color: str) -> None:
    """Draw the probabilities of the classes that the teacher predicts on the full view."""
    axis.bar(range(SHOWN), probabilities, color=color)
    axis.set(ylim=(0, 1), xticks=[], yticks=[])
    axis.spines[["top", "right", "left"]].set_visible(False)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for path in WITH_OUTPUT:
        path.write_text(run(path.read_text(), {})[0])
    for path in TUTORIALS:
        namespace: dict[str, Any] = {}
        page, drawing = run(path.read_text(), namespace)
        for name, ink in INK.items():
            with plt.rc_context(style(ink)):
                if "kd_logits" in namespace:
                    save(method(namespace, ink), f"msd-{name}")
                for picture, code in zip(PICTURE.findall(page), drawing, strict=True):
                    exec(code, namespace)
                    save(namespace["ax"].figure, f"{picture}-{name}")
        path.write_text(page)


if __name__ == "__main__":
    main()
