"""Pictures for a notebook or a log: what models say of each view, and how much a view counts.

They need matplotlib, `pip install "msdlosses[plot]"`, and are imported from here alone. Each draws
into the axes that it is given, or into those of a new figure, and returns them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from msdlosses._checks import (
    check_floating,
    check_indices,
    check_integer,
    check_size,
    check_views,
    describe,
    listing,
)
from msdlosses.functional import FULL
from msdlosses.functional._rows import widen
from msdlosses.losses import MSDParts

try:
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Expected matplotlib for `msdlosses.plot`, got none: pip install 'msdlosses[plot]'."
    ) from error

__all__ = ["plot_saliency", "plot_view_densities", "plot_weights"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b")
"""Okabe and Ito's, told apart by colour-blind readers; grey for black, to show on dark pages."""
LINES = {"teacher": "-", "student": "--"}


def plot_view_densities(
    teacher: Mapping[str, Tensor],
    student: Mapping[str, Tensor] | None = None,
    target: Tensor | int | None = None,
    *,
    bins: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """How sure teacher and student are, view by view: the density of a class's probability.

    A colour is a view; the teacher's lines are whole, the student's are dashed. A student that
    was never shown a modality alone has its line far from the teacher's there.

    Args:
        teacher: its logits by view; the probabilities are those of a softmax.
        student: its logits by view; None for the teacher alone.
        target: whose probability: each sample's class; one class for all samples, such as 1 of
            two; or None for the class that the teacher predicts from the whole input.
        bins: how many bars [0, 1] is divided into.
        ax: where to draw; None for a new figure.

    Shape:
        Each view: (N, ..., C). ``target``: (N, ...).

    Returns:
        The axes, with one `matplotlib.patches.StepPatch` for each model and view, whose label
        names both.

    Raises:
        TypeError: no mapping of views to floating-point logits; a target or ``bins`` of another
            kind.
        ValueError: no views or no samples, NaN among the logits, a target of another shape;
            ``bins`` below 1.
        IndexError: a target that is no class.
        KeyError: no target, and the teacher lacks the view ``full``.

    Example:
        >>> from msdlosses.plot import plot_view_densities
        >>> teacher = {"full": torch.eye(4), "text": torch.zeros(4, 4)}
        >>> student = {"full": torch.zeros(4, 4), "text": torch.zeros(4, 4)}
        >>> ax = plot_view_densities(teacher, student, torch.arange(4))
        >>> [patch.get_label() for patch in ax.patches]
        ['teacher: full', 'teacher: text', 'student: full', 'student: text']

    Source: [ours].
    """
    models = {"teacher": teacher} if student is None else {"teacher": teacher, "student": student}
    for model, views in models.items():
        check_views(model, views)
    check_size("bins", bins)
    classes = _predicted(teacher) if target is None else target
    drawn = {
        (model, view): _density(_chances(f"{model}[{view!r}]", logits, classes), bins)
        for model, views in models.items()
        for view, logits in views.items()
    }
    ax, colours = _axes(ax), _colours(view for _, view in drawn)
    for (model, view), density in drawn.items():
        label, edges = f"{model}: {view}", np.linspace(0, 1, bins + 1)
        ax.stairs(density, edges, label=label, color=colours[view], ls=LINES[model], lw=1.8)
    ax.set(xlabel=f"probability of {_name(target)}", ylabel="density", xlim=(0, 1))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))  # beside the lines
    return ax


def plot_weights(parts: MSDParts, *, ax: Axes | None = None) -> Axes:
    """How much each view counts: the weights of a batch, a box for each view.

    The box holds the middle half of the samples, its line is the median and the diamond the mean;
    whiskers reach from the 5th to the 95th percentile. An entry whose weight and term are both 0
    is one that does not count, and is left out.

    Args:
        parts: what `MSDLoss.parts` returns, of a batch or of all data at once.
        ax: where to draw; None for a new figure.

    Shape:
        Its weights and terms: (N, K).

    Returns:
        The axes, with the views as ticks of the x axis.

    Raises:
        TypeError: ``parts`` is no `MSDParts`.

    Example:
        >>> from msdlosses.plot import plot_weights
        >>> views = {"full": torch.eye(4), "text": torch.zeros(4, 4)}
        >>> msd = MSDLoss(KDLoss(), FixedWeighting(full=1.0, text=0.25))
        >>> ax = plot_weights(msd.parts({view: -x for view, x in views.items()}, views))
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['full', 'text']

    Source: [ours].
    """
    if not isinstance(parts, MSDParts):
        raise TypeError(
            f"Expected `parts` to be the MSDParts of `MSDLoss.parts`, got {describe(parts)}."
        )
    counts = (parts.weights != 0) | (parts.terms != 0)
    weights = parts.weights.detach().double()
    columns = [weights[counts[:, k], k].cpu().numpy() for k in range(len(parts.names))]
    ax = _axes(ax)
    drawn = ax.boxplot(
        columns,
        tick_labels=parts.names,
        whis=(5, 95),
        showfliers=False,
        showmeans=True,
        meanprops={"marker": "D", "markerfacecolor": "none"},
    )
    for k, colour in enumerate(_colours(parts.names).values()):
        ends = [line for kind in ("whiskers", "caps") for line in drawn[kind][2 * k : 2 * k + 2]]
        for line in (*ends, *(drawn[kind][k] for kind in ("boxes", "medians", "means"))):
            line.set(color=colour, markeredgecolor=colour)
    ax.set_ylabel("weight")
    ax.set_ylim(bottom=0)
    return ax


def plot_saliency(saliency: Mapping[str, Tensor], *, ax: Axes | None = None) -> Axes:
    """How much each modality matters to the teacher: the share of samples up to each saliency.

    A curve that rises at once is that of a modality which the teacher hardly needs; one that
    rises late, of a modality without which its predictions are others.

    Args:
        saliency: modality -> saliencies, what `modality_saliency` returns. What is infinite lies
            beyond the end of its curve.
        ax: where to draw; None for a new figure.

    Shape:
        Each modality: (N, ...).

    Returns:
        The axes, with one line for each modality.

    Raises:
        TypeError: no mapping of modalities to floating-point tensors.
        ValueError: no modalities or no samples; NaN; the logits of views, not saliencies.

    Example:
        >>> from msdlosses.plot import plot_saliency
        >>> views = {"full": torch.eye(2), "image": torch.eye(2), "text": torch.zeros(2, 2)}
        >>> ax = plot_saliency(modality_saliency(views))
        >>> [line.get_label() for line in ax.lines]
        ['image', 'text']

    Source: [ours].
    """
    _check_saliency(saliency)
    ax = _axes(ax)
    for modality, colour in _colours(saliency).items():
        values = saliency[modality].detach().double().flatten().sort().values.cpu()
        finite = values[values.isfinite()]
        x, y = F.pad(finite, (1, 0)), torch.arange(len(finite) + 1) / len(values)
        ax.step(x.numpy(), y.numpy(), where="post", label=modality, color=colour, lw=1.8)
    ax.set(xlabel="saliency", ylabel="share of samples up to it", xlim=(0, None), ylim=(0, 1.02))
    ax.legend(frameon=False)
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"Expected `ax` to be the axes of a figure, got {describe(ax)}.")
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _colours(names: Iterable[str]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(names), cycle(COLOURS), strict=False))


def _predicted(teacher: Mapping[str, Tensor]) -> Tensor:
    if FULL not in teacher:
        raise KeyError(f"Expected `teacher` to hold the view `{FULL}`, got {listing(teacher)}.")
    return teacher[FULL].argmax(-1)


def _chances(name: str, logits: Tensor, target: Tensor | int) -> Tensor:
    """The probability of the target, one for each row."""
    if not isinstance(target, Tensor):
        check_integer("target", target)
        target = torch.full(logits.shape[:-1], target, device=logits.device)
    check_indices("target", target, logits.shape[:-1], logits.shape[-1], device=logits.device)
    probabilities = widen(logits.detach()).softmax(-1)
    chances = probabilities.gather(-1, target.long().unsqueeze(-1)).flatten()
    if not len(chances) or chances.isnan().any():
        what = "NaN" if len(chances) else "none"
        raise ValueError(f"Expected `{name}` to hold samples without NaN, got {what}.")
    return chances.cpu()


def _density(chances: Tensor, bins: int) -> Any:
    return np.histogram(chances.numpy(), bins, range=(0, 1), density=True)[0]


def _name(target: Tensor | int | None) -> str:
    if isinstance(target, Tensor):
        return "the right class"
    return "the class that the teacher predicts" if target is None else f"class {target}"


def _check_saliency(saliency: Mapping[str, Tensor]) -> None:
    if not isinstance(saliency, Mapping):
        raise TypeError(
            f"Expected `saliency` to map modalities to saliencies, got {describe(saliency)}."
        )
    if not saliency:
        raise ValueError("Expected `saliency` to hold at least one modality, got none.")
    if FULL in saliency:
        raise ValueError(
            f"Expected `saliency` of modalities, got the view `{FULL}`: hand over what "
            "`modality_saliency` makes of the logits."
        )
    for modality, values in saliency.items():
        check_floating(f"saliency[{modality!r}]", values)
        if not values.numel() or values.isnan().any():
            what = "NaN" if values.numel() else "none"
            raise ValueError(
                f"Expected `saliency[{modality!r}]` to hold samples without NaN, got {what}."
            )
