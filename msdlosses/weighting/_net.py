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
    over_processes,
    teacher_loss,
    view_of,
    whole_of,
)

LARGEST = 1e30
"""Of the cues: any that is larger says no more."""


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
        synchronize: take that mean, in training mode, over the batches of all processes and not
            of this one alone, as `torch.nn.SyncBatchNorm` does. Each process has to call the
            weighting as often.
        divergence: how far two predictions are apart, as in `SaliencyWeighting`.
        task_loss: unreduced, as in `TeacherLossWeighting`.

    Shape:
        Returns (N, K), in [0, 1], or around 1 when normalised.

    Raises:
        TypeError: names that are one string, sizes that are no integers, ``divergence`` or
            ``task_loss`` not callable.
        ValueError: no names, sizes that are not above 0, ``synchronize`` without ``normalize``;
            when called, other names or another number of classes.
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
        synchronize: bool = False,
        divergence: Divergence = kl_divergence,
        task_loss: TaskLoss | None = None,
    ) -> None:
        super().__init__()
        check_names("names", names)
        check_size("num_classes", num_classes)
        check_size("hidden", hidden)
        check_divergence(divergence)
        if synchronize and not normalize:
            raise ValueError("Expected `normalize` with `synchronize`, got `synchronize` alone.")
        self.names = tuple(names)
        self.num_classes = num_classes
        self.normalize = normalize
        self.synchronize = synchronize
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
        return weights / self._mean(weights, valid) if self.normalize else weights

    def cues(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """What the network sees: (N, K, 4), without gradient, 0 where it is not known."""
        columns = columns_of(valid, self.names)
        rows = [self._of_teacher(view, teacher, target, columns) for view in self.names]
        terms = terms.detach()
        if valid is not None:
            terms = terms.masked_fill(~any_position(valid), 0.0)
        cues = torch.cat([terms.unsqueeze(-1), torch.stack(rows, dim=1)], dim=-1)
        parameter = next(self.network.parameters())
        # A teacher that rules the target out has an infinite loss.
        cues = (cues / log(max(self.num_classes, 2))).clamp(0, LARGEST)
        return torch.log1p(cues).to(parameter.dtype)

    def _of_teacher(
        self,
        view: str,
        teacher: Mapping[str, Tensor],
        target: Tensor | None,
        columns: Mapping[str, Tensor],
    ) -> Tensor:
        """Its loss, how sure it is, and how far from the whole input's prediction: (N, 3)."""
        logits, whole = view_of(teacher, view), view_of(teacher, FULL)
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"Expected `teacher[{view!r}]` of {self.num_classes} classes, "
                f"got {logits.shape[-1]}."
            )
        known, seen = columns.get(view), whole_of(columns)
        loss = logits.new_zeros(len(logits))
        if target is not None:
            loss = teacher_loss(self.task_loss, teacher, view, target, known)
        sure = divergence_rows(self.divergence, torch.zeros_like(logits), logits)
        apart = divergence_rows(self.divergence, logits, whole)
        both = known if known is None or seen is None else known & seen
        return torch.stack(
            [loss, known_per_sample(sure, known), known_per_sample(apart, both)], dim=-1
        )

    def _mean(self, weights: Tensor, valid: Tensor | None) -> Tensor:
        """The mean of the weights that count, never so small that dividing by it gives NaN."""
        if valid is None:
            total, count = weights.sum(), weights.new_full((), weights.numel())
        else:
            counts = any_position(valid)
            total = weights.masked_fill(~counts, 0.0).sum()
            count = counts.sum().to(total.dtype)
        if self.synchronize and self.training:
            total, count = over_processes(torch.stack([total, count])).unbind()
        return (total / count.clamp(min=1)).clamp(min=1e-12)

    def extra_repr(self) -> str:
        return f"names={self.names}, num_classes={self.num_classes}, normalize={self.normalize}"
