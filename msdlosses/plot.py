"""Plots for a notebook or a log: predictions on each view, weights, and saliencies.

They need matplotlib, ``pip install "msdlosses[plot]"``, and are not imported with the package. Each
draws into the axes that are passed, or into those of a new figure, and returns them.
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
    check_classes_exist,
    check_floating,
    check_holds,
    check_integer,
    check_mapping,
    check_that,
    check_type,
    check_views,
    expected,
)
from msdlosses._formulas.logits import upcast
from msdlosses._linear import LOGITS, Logits, constant, map_rows
from msdlosses._views import FULL
from msdlosses.losses import MSDParts

try:
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
except ModuleNotFoundError as error:
    what, advice = "matplotlib for `msdlosses.plot`", "pip install 'msdlosses[plot]'"
    raise ModuleNotFoundError(expected(what, "none", advice)) from error

__all__ = ["plot_saliency", "plot_view_densities", "plot_weights"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b")
"""The colorblind-safe palette of Okabe and Ito, with gray for black to suit dark pages."""
LINE_STYLES = {"teacher": "-", "student": "--"}


def plot_view_densities(
    teacher: Mapping[str, Logits],
    student: Mapping[str, Logits] | None = None,
    target: Tensor | int | None = None,
    *,
    bins: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Plot the density of a class's probability, for each view of teacher and student.

    Colors are views; the teacher's lines are solid, the student's are dashed. If the student was
    never trained on a view, its line is far from the teacher's.

    Args:
        teacher: logits by view; the probabilities are their softmax.
        student: logits by view; None plots the teacher only.
        target: the class: one per sample; one for all samples, such as 1 in binary classification;
            or None for the class that the teacher predicts on the full view.
        bins: the number of bins of [0, 1].
        ax: the axes to draw into; None for a new figure.

    Shape:
        Each view: (N, ..., C). ``target``: (N, ...).

    Returns:
        The axes, with one `matplotlib.patches.StepPatch` for each model and view, whose label
        names both.

    Raises:
        TypeError: logits are not a mapping from views to floating-point tensors, or ``target`` or
            ``bins`` has the wrong type.
        ValueError: there are no views or no samples, logits contain NaN, ``target`` has another
            shape, or ``bins`` is below 1.
        IndexError: a target is not a class.
        KeyError: there is no target, and the teacher lacks the view ``full``.

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
        check_views(model, views, LOGITS)
    check_integer("bins", bins, least=1)
    classes = _predicted_classes(teacher) if target is None else target
    densities = {
        (model, view): _density(_probabilities(f"{model}[{view!r}]", logits, classes), bins)
        for model, views in models.items()
        for view, logits in views.items()
    }
    ax, colors = _axes(ax), _colors(view for _, view in densities)
    for (model, view), density in densities.items():
        label, edges = f"{model}: {view}", np.linspace(0, 1, bins + 1)
        ax.stairs(density, edges, label=label, color=colors[view], ls=LINE_STYLES[model], lw=1.8)
    ax.set(xlabel=f"probability of {_name_of(target)}", ylabel="density", xlim=(0, 1))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))  # next to the lines
    return ax


def plot_weights(parts: MSDParts, *, ax: Axes | None = None) -> Axes:
    """Plot the weights of a batch as one box per view.

    The box is the interquartile range, with the median as a line and the mean as a diamond. The
    whiskers are the 5th and 95th percentiles. Samples that are not valid, whose weight and term
    are both 0, are left out, and so are positions of weight 0.

    Args:
        parts: what `MSDLoss.parts` returns, for a batch or for all data at once.
        ax: the axes to draw into; None for a new figure.

    Shape:
        The weights of ``parts``: (K,), (N, K), or (N, ..., K). The terms: (N, K).

    Returns:
        The axes, with the views as ticks of the x axis.

    Raises:
        TypeError: ``parts`` is not an `MSDParts`.

    Example:
        >>> from msdlosses.plot import plot_weights
        >>> views = {"full": torch.eye(4), "text": torch.zeros(4, 4)}
        >>> msd = MSDLoss(KDLoss(), FixedWeighting(full=1.0, text=0.25))
        >>> ax = plot_weights(msd.parts({view: -x for view, x in views.items()}, views))
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['full', 'text']

    Source: [ours].
    """
    check_type("parts", parts, MSDParts, "the MSDParts of `MSDLoss.parts`")
    weights, terms = parts.weights.detach().double().cpu(), parts.terms.detach().cpu()
    weights = weights.expand_as(terms) if weights.ndim == 1 else weights
    valid = weights != 0 if weights.ndim > 2 else (weights != 0) | (terms != 0)
    columns = [weights[..., k][valid[..., k]].numpy() for k in range(len(parts.names))]
    ax = _axes(ax)
    artists = ax.boxplot(
        columns,
        tick_labels=parts.names,
        whis=(5, 95),
        showfliers=False,
        showmeans=True,
        meanprops={"marker": "D", "markerfacecolor": "none"},
    )
    for k, color in enumerate(_colors(parts.names).values()):
        pairs = [line for kind in ("whiskers", "caps") for line in artists[kind][2 * k : 2 * k + 2]]
        for line in (*pairs, *(artists[kind][k] for kind in ("boxes", "medians", "means"))):
            line.set(color=color, markeredgecolor=color)
    ax.set_ylabel("weight")
    ax.set_ylim(bottom=0)
    return ax


def plot_saliency(saliency: Mapping[str, Tensor], *, ax: Axes | None = None) -> Axes:
    """Plot the cumulative distribution of saliencies, one curve per modality.

    The curve of a modality that the teacher hardly needs rises immediately. It rises late for a
    modality without which the predictions change.

    Args:
        saliency: modality -> saliencies, as returned by `modality_saliency`. Infinite values lie
            beyond the end of the curve.
        ax: the axes to draw into; None for a new figure.

    Shape:
        Each modality: (N, ...).

    Returns:
        The axes, with one line per modality.

    Raises:
        TypeError: ``saliency`` is not a mapping from modalities to floating-point tensors.
        ValueError: there are no modalities or no samples, values are NaN, or ``saliency`` holds
            the logits of views instead.

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
    for modality, color in _colors(saliency).items():
        values = saliency[modality].detach().double().flatten().sort().values.cpu()
        finite = values[values.isfinite()]
        x, y = F.pad(finite, (1, 0)).numpy(), np.arange(len(finite) + 1) / len(values)
        ax.step(x, y, where="post", label=modality, color=color, lw=1.8)
    ax.set(xlabel="saliency", ylabel="share of samples", xlim=(0, None), ylim=(0, 1.02))
    ax.legend(frameon=False)
    return ax


def _axes(ax: Axes | None) -> Axes:
    check_type("ax", ax, (Axes, type(None)), "the axes of a figure")
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _colors(names: Iterable[str]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(names), cycle(COLORS), strict=False))


def _predicted_classes(teacher: Mapping[str, Logits]) -> Tensor:
    check_holds("teacher", teacher, FULL)
    return map_rows(lambda logits: logits.argmax(-1), constant(teacher[FULL]))


def _probabilities(name: str, logits: Logits, target: Tensor | int) -> Tensor:
    """Return the probability of the target for each sample."""
    if not isinstance(target, Tensor):
        check_integer("target", target)
        target = torch.full(logits.shape[:-1], target, device=logits.device)
    check_classes_exist("target", target, logits)
    probabilities = map_rows(_probability, constant(logits), target=target).flatten()
    _check_samples(name, probabilities)
    return probabilities.cpu()


def _probability(logits: Tensor, target: Tensor) -> Tensor:
    return upcast(logits).softmax(-1).gather(-1, target.long().unsqueeze(-1)).squeeze(-1)


def _density(probabilities: Tensor, bins: int) -> Any:
    return np.histogram(probabilities.numpy(), bins, range=(0, 1), density=True)[0]


def _name_of(target: Tensor | int | None) -> str:
    if isinstance(target, Tensor):
        return "the target class"
    return "the teacher's prediction" if target is None else f"class {target}"


def _check_saliency(saliency: Mapping[str, Tensor]) -> None:
    check_mapping("saliency", saliency, "modalities to saliencies")
    advice = "Call `modality_saliency` on the logits first."
    check_that("`saliency` by modality", FULL not in saliency, f"the view `{FULL}`", advice)
    for modality, values in saliency.items():
        check_floating(f"saliency[{modality!r}]", values)
        _check_samples(f"saliency[{modality!r}]", values)


def _check_samples(name: str, values: Tensor) -> None:
    check_that(f"`{name}` to hold samples", values.numel())
    check_that(f"`{name}` without NaN", not values.isnan().any(), "some")
