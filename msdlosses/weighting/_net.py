"""Weights learned by a small network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from msdlosses._checks import (
    check_callable,
    check_integer,
    check_names,
    check_that,
    expected,
    join_names,
)
from msdlosses._formulas.logits import upcast
from msdlosses._formulas.saliency import (
    Divergence,
    check_divergence,
    compare_views,
    divergence_function,
    get_view,
)
from msdlosses._linear import Logits, map_rows
from msdlosses._masks import any_position, intersect, mean_over_valid
from msdlosses._reduce import all_reduce_sum
from msdlosses._views import FULL
from msdlosses.weighting._base import Weighting
from msdlosses.weighting._teacher import (
    TaskLoss,
    teacher_losses,
    valid_by_view,
    valid_full,
)

MAX_CUE = 1e30
"""Larger cues carry no more information."""


class WeightNet(Weighting):
    """A small network that learns the weights from cues, trained by a `MetaLearner`.

    Linear, ReLU, Linear, and a sigmoid map the cues of a sample to one weight per view. The cues of
    a view are the detached term, the teacher's loss on the target (0 without a target), the
    teacher's confidence (the divergence from a uniform prediction), and the distance of its
    prediction from the one on the full view (with two modalities these are the saliencies). They
    are divided by log C and compressed by log(1 + x), so that their scale depends on neither.

    Args:
        names: the views of the terms, such as ``views.names``.
        num_classes: C, the number of the teacher's classes.
        hidden: the width of the hidden layer.
        normalize: divide the weights by their mean over the batch. Otherwise they drift towards 0
            over thousands of steps, and the effective learning rate with them.
        synchronize: in training mode, take that mean over the batches of all processes, as
            `torch.nn.SyncBatchNorm` does. All processes must then call the weighting equally often.
        group: the processes to average over; None for all of them.
        divergence: the distance between two predictions, as in `SaliencyWeighting`.
        task_loss: the teacher's loss, as in `TeacherLossWeighting`.

    Shape:
        Returns (N, K), in [0, 1], or around 1 with ``normalize``.

    Raises:
        TypeError: ``names`` is a string, a size is not an integer, or ``divergence`` or
            ``task_loss`` is not callable.
        ValueError: ``names`` is empty, a size is not positive, ``synchronize`` is set without
            ``normalize``, or the ``dim`` of the ``divergence`` is not -1; when called, the views or
            the number of classes differ, or the network is on another device.
        KeyError: when called, the teacher lacks a view, or ``full``.

    Example:
        >>> views = ("full", "image", "text")
        >>> weighting = WeightNet(views, num_classes=5)
        >>> teacher = {view: torch.randn(4, 5) for view in views}
        >>> weighting(torch.rand(4, 3), teacher, names=views).shape
        torch.Size([4, 3])

    Source: [paper] "a meta-learning approach to learn the optimal weights"; the network: [built on]
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
        group: Any = None,
        divergence: Divergence | None = None,
        task_loss: TaskLoss | None = None,
    ) -> None:
        super().__init__()
        check_names("names", names)
        check_integer("num_classes", num_classes, least=1)
        check_integer("hidden", hidden, least=1)
        check_divergence(divergence, last=True)
        check_callable("task_loss", task_loss, optional=True)
        check_that("`normalize` with `synchronize`", normalize or not synchronize, "no `normalize`")
        self.names = tuple(names)
        self.num_classes = num_classes
        self.normalize = normalize
        self.synchronize = synchronize
        self.group = group
        self.divergence = divergence
        self.task_loss = task_loss
        views = len(self.names)
        self.network = nn.Sequential(
            nn.Linear(4 * views, hidden), nn.ReLU(), nn.Linear(hidden, views)
        )

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Logits],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        wanted = join_names(self.names)
        check_that(f"`names` to be {wanted}", tuple(names) == self.names, join_names(names))
        device = next(self.network.parameters()).device
        what = f"WeightNet on {terms.device}"
        check_that(what, device == terms.device, device, "Move it with `.to`.")
        cues = self.cues(terms, teacher, target, valid=valid)
        weights = torch.sigmoid(self.network(cues.flatten(1))).to(terms.dtype)
        return weights / self._mean(weights, valid) if self.normalize else weights

    def cues(
        self,
        terms: Tensor,
        teacher: Mapping[str, Logits],
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return the input of the network: (N, K, 4), without gradient, 0 where it is unknown."""
        masks = valid_by_view(valid, self.names)
        for view in self.names:
            self._check_width(view, teacher)
        losses: dict[str, Tensor] = {}
        if target is not None:
            losses = teacher_losses(self.task_loss, teacher, self.names, target, masks)
        of_teacher = [
            self._teacher_cues(view, teacher, losses.get(view), masks) for view in self.names
        ]
        terms = terms.detach()
        if valid is not None:
            terms = terms.masked_fill(~any_position(valid), 0.0)
        cues = torch.cat([terms.unsqueeze(-1), torch.stack(of_teacher, dim=1)], dim=-1)
        # A teacher that rules out the target has an infinite loss.
        cues = (cues / log(max(self.num_classes, 2))).clamp(0, MAX_CUE)
        return torch.log1p(cues).to(next(self.network.parameters()).dtype)

    def _check_width(self, view: str, teacher: Mapping[str, Logits]) -> None:
        width = get_view(teacher, view).shape[-1]
        if width != self.num_classes:
            what = f"{self.num_classes} classes in `teacher[{view!r}]`"
            raise ValueError(expected(what, width))

    def _teacher_cues(
        self,
        view: str,
        teacher: Mapping[str, Logits],
        losses: Tensor | None,
        masks: Mapping[str, Tensor],
    ) -> Tensor:
        """Return loss, confidence, and distance from the prediction on the full view: (N, 3)."""
        logits, valid = get_view(teacher, view), masks.get(view)
        both = None if valid is None else intersect(valid, valid_full(masks))
        distance = mean_over_valid(compare_views(teacher, view, FULL, self.divergence), both)
        confidence = mean_over_valid(map_rows(self._confidence, logits), valid)
        loss = torch.zeros_like(distance) if losses is None else mean_over_valid(losses, valid)
        return torch.stack([loss, confidence, distance], dim=-1)

    def _confidence(self, logits: Tensor) -> Tensor:
        """Return the divergence of predictions from a uniform one."""
        logits = upcast(logits)
        return divergence_function(self.divergence)(torch.zeros_like(logits), logits)

    def _mean(self, weights: Tensor, valid: Tensor | None) -> Tensor:
        """Average the valid weights. The mean is kept large enough to divide by it."""
        mask = torch.ones_like(weights, dtype=torch.bool) if valid is None else any_position(valid)
        total, count = weights.masked_fill(~mask, 0.0).sum(), mask.sum().to(weights.dtype)
        if self.synchronize and self.training:
            total, count = all_reduce_sum(torch.stack([total, count]), self.group).unbind()
        return (total / count.clamp(min=1)).clamp(min=1e-12)

    def extra_repr(self) -> str:
        return f"names={self.names}, num_classes={self.num_classes}, normalize={self.normalize}"
