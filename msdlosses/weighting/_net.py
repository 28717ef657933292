"""Weights learned by a small network from what the teacher says of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import torch
from torch import Tensor, nn

from msdlosses._checks import check_names, check_size, listing
from msdlosses.functional import FULL, kl_divergence
from msdlosses.functional._rows import any_position, known_per_sample
from msdlosses.functional._saliency import Divergence, check_divergence, divergence_rows
from msdlosses.weighting._base import (
    TaskLoss,
    Weighting,
    checked_task_loss,
    columns_of,
    teacher_loss,
    view_of,
)


class WeightNet(Weighting):
    """Weights learned from what the teacher says of a sample, by a `MetaLearner`.

    A small network, Linear-ReLU-Linear and a sigmoid, turns cues into one weight per view. For
    each view the cues are the detached term, the teacher's loss on the target (0 without one),
    how sure the teacher is (the divergence from a flat prediction), and how far its prediction
    is from the one on the whole input (with two modalities these are the saliencies). They are
    divided by log C and squeezed by log(1 + x), so that their size depends on neither.

    Args:
        names: the views of the terms, such as ``views.names``.
        num_classes: C, the length of the teacher's logits.
        hidden: width of the hidden layer.
        normalize: divide by the mean over the batch. Without it the weights drift towards 0 over
            thousands of steps, and the learning rate with them.
        divergence: how far two predictions are apart, as in `SaliencyWeighting`.
        task_loss: unreduced, as in `TeacherLossWeighting`.

    Shape:
        Returns (N, K), in [0, 1], or around 1 when normalised.

    Raises:
        TypeError: names that are one string, sizes that are no integers, ``divergence`` or
            ``task_loss`` not callable.
        ValueError: no names, sizes that are not above 0; when called, other names or another
            number of classes.
        KeyError: when called, the teacher lacks a view, or ``full``.

    Example:
        >>> views = ("full", "image", "text")
        >>> weighting = WeightNet(views, num_classes=5)
        >>> teacher = {view: torch.randn(4, 5) for view in views}
        >>> weighting(torch.rand(4, 3), teacher, names=views).shape
        torch.Size([4, 3])

    Source: [paper] "a meta-learning approach to learn the optimal weights"; the form: [built on]
    Meta-Weight-Net (Shu et al. 2019, arXiv 1902.07379); the cues: [ours].
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        num_classes: int,
        hidden: int = 100,
        normalize: bool = True,
        divergence: Divergence = kl_divergence,
        task_loss: TaskLoss | None = None,
    ) -> None:
        super().__init__()
        check_names("names", names)
        check_size("num_classes", num_classes)
        check_size("hidden", hidden)
        check_divergence(divergence)
        self.names = tuple(names)
        self.num_classes = num_classes
        self.normalize = normalize
        self.divergence = divergence
        self.task_loss = checked_task_loss(task_loss)
        self.network = nn.Sequential(
            nn.Linear(4 * len(self.names), hidden), nn.ReLU(), nn.Linear(hidden, len(self.names))
        )

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        if tuple(names) != self.names:
            raise ValueError(f"Expected `names` to be {listing(self.names)}, got {listing(names)}.")
        cues = self.cues(terms, teacher, target, valid=valid)
        weights = torch.sigmoid(self.network(cues.flatten(1))).to(terms.dtype)
        return weights / _mean(weights, valid) if self.normalize else weights

    def cues(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """What the network sees: (N, K, 4), without gradient, 0 where it is not known."""
        valid_of = columns_of(valid, self.names)
        whole = _whole(valid_of)
        rows = []
        for view, term in zip(self.names, terms.unbind(-1), strict=True):
            known = valid_of.get(view)
            seen = None if known is None or whole is None else known & whole
            rows.append(self._cues_of(view, term, teacher, target, known, seen))
        cues = torch.stack(rows, dim=1) / log(max(self.num_classes, 2))
        parameter = next(self.network.parameters())
        return torch.log1p(cues.clamp(min=0)).to(parameter.dtype)

    def _cues_of(
        self,
        view: str,
        term: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None,
        known: Tensor | None,
        seen: Tensor | None,
    ) -> Tensor:
        """The four of a view, (N, 4); the last one needs what is `seen` of the whole input too."""
        logits, whole = view_of(teacher, view), view_of(teacher, FULL)
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"Expected `teacher[{view!r}]` of {self.num_classes} classes, "
                f"got {logits.shape[-1]}."
            )
        loss = torch.zeros_like(term)
        if target is not None:
            loss = teacher_loss(self.task_loss, teacher, view, target, known)
        sure = divergence_rows(self.divergence, torch.zeros_like(logits), logits)
        apart = divergence_rows(self.divergence, logits, whole)
        term = term.detach() if known is None else known_per_sample(term.detach(), known)
        parts = [term, loss, known_per_sample(sure, known), known_per_sample(apart, seen)]
        return torch.stack(parts, dim=-1)

    def extra_repr(self) -> str:
        return f"names={self.names}, num_classes={self.num_classes}, normalize={self.normalize}"


def _whole(columns: Mapping[str, Tensor]) -> Tensor | None:
    """Where the whole input is known: where it counts, or where no view is lacking."""
    if FULL in columns or not columns:
        return columns.get(FULL)
    return torch.stack(list(columns.values())).all(0)


def _mean(weights: Tensor, valid: Tensor | None) -> Tensor:
    """The mean of the weights that count, never so small that dividing by it gives NaN."""
    if valid is None:
        mean = weights.sum() / max(weights.numel(), 1)
    else:
        counts = any_position(valid)
        mean = weights.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)
    return mean.clamp(min=1e-12)
