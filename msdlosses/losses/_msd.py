"""The loss of modality-specific distillation: a weighted sum of one term per view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from msdlosses._checks import (
    check_choice,
    check_equal,
    check_grid,
    check_holds,
    check_mapping,
    check_that,
    check_type,
    check_views,
    describe,
    expected,
)
from msdlosses._masks import any_position, mean_over_positions, unsqueeze_right
from msdlosses.losses._base import REDUCTIONS, DistillationLoss
from msdlosses.losses._parts import MSDParts
from msdlosses.weighting import Weighting

AVERAGES = ("sample", "batch")

Views = Mapping[str, Tensor]
Masks = Mapping[str, Tensor | None]
"""The mask of each view, with the leading axes of its logits; None where all is valid."""


class MSDLoss(nn.Module):
    r"""Modality-specific distillation: a weighted sum of one distillation term per view.

    .. math:: L = \frac 1 N \sum_n \sum_v w_{nv}\, D\bigl(T(x_n^v), S(x_n^v)\bigr)

    Args:
        criterion: D, a `DistillationLoss` whose per-sample values are used, or a mapping from
            views to losses, for instance for a temperature per view.
        weighting: computes the weights; None for weights of 1.
        reduction: ``"mean"`` over the samples with a valid term; ``"sum"``; or ``"none"``, one
            value per sample, (N,).
        average: how to average over the positions of sequences: ``"sample"`` averages over the
            positions of each sample, so that all samples count the same; ``"batch"`` makes all
            positions count the same. To this end, a term is then a sum over the positions of a
            sample, divided by the mean number of positions per sample.

    Shape:
        ``student`` and ``teacher``: view -> (N, C), or (N, L, C). A term of a sequence is the mean
        over its valid positions whose target is not the ``ignore_index`` of the criterion.
        Returns a scalar.

    Raises:
        TypeError: a criterion, weighting, or argument has the wrong type.
        ValueError: shapes or devices differ; a mask or weights do not fit; a mapping of criteria is
            empty; ``reduction`` or ``average`` is unknown.
        KeyError: the teacher, or a mapping of criteria, lacks a view of the student.

    Example:
        >>> msd = MSDLoss(KDLoss(temperature=2.0))
        >>> logits = {"full": torch.zeros(4, 3), "text": torch.zeros(4, 3)}
        >>> msd(logits, logits)
        tensor(0.)

    Source: [paper] for one auxiliary term per modality and for weights; that the term of the full
    input is weighted as well, and that the student's input is masked too: [ours].
    """

    def __init__(
        self,
        criterion: DistillationLoss | Mapping[str, DistillationLoss],
        weighting: Weighting | None = None,
        *,
        reduction: str = "mean",
        average: str = "sample",
    ) -> None:
        super().__init__()
        criteria = dict(criterion) if isinstance(criterion, Mapping) else {"": criterion}
        check_mapping("criterion", criteria, "views to losses")
        for view, loss in criteria.items():
            name = f"criterion[{view!r}]" if isinstance(criterion, Mapping) else "criterion"
            check_type(name, loss, DistillationLoss, "a DistillationLoss")
        check_type("weighting", weighting, (Weighting, type(None)), "a Weighting")
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("average", average, AVERAGES)
        self.criterion = nn.ModuleDict(criteria) if isinstance(criterion, Mapping) else criterion
        self.weighting = weighting
        self.reduction = reduction
        self.average = average

    def forward(
        self,
        student: Views,
        teacher: Views,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            student: view -> logits. These views are the terms.
            teacher: view -> logits, at least for the student's views; the weighting may use others
                as cues. They get no gradient.
            target: the labels, for criteria and weightings that need them.
            valid: which samples are valid in which view: a boolean tensor (N, K), as returned by
                `ModalityViews.valid`, or (N, L, K) for the positions of sequences.
        """
        return self.parts(student, teacher, target, valid=valid).loss

    if TYPE_CHECKING:  # torch declares that a call returns Any
        __call__ = forward

    def terms(
        self,
        student: Views,
        teacher: Views,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return the unweighted terms: (N, K), with the student's views as the last axis.

        The arguments are those of `forward`. An invalid entry is 0, whatever its logits are, and
        gets no gradient.
        """
        masks = self._valid_masks(student, teacher, target, valid)
        return self._terms(student, teacher, target, masks, _stack_masks(masks))

    def parts(
        self,
        student: Views,
        teacher: Views,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> MSDParts:
        """Return the loss and its parts, for logging.

        The arguments are those of `forward`.
        """
        masks = self._valid_masks(student, teacher, target, valid)
        mask = _stack_masks(masks)
        terms = self._terms(student, teacher, target, masks, mask)
        weights = self._weights(terms, teacher, target, tuple(student), mask)
        count = terms.new_full((), len(terms), dtype=torch.long)
        if mask is not None:
            count = any_position(mask).any(-1).sum()
        loss = self._reduce((weights * terms).sum(-1), count)
        return MSDParts(loss, terms, weights, tuple(student), count)

    def _valid_masks(
        self, student: Views, teacher: Views, target: Tensor | None, valid: Tensor | None
    ) -> Masks:
        """Check the arguments of a call, and return which samples to use in each view."""
        check_mapping("student", student, "views to logits")
        check_mapping("teacher", teacher, "views to logits")
        check_holds("teacher", teacher, *student)
        if valid is not None:
            check_grid("valid", valid, tuple(student))
        masks = {}
        columns = [None] * len(student) if valid is None else valid.unbind(-1)
        for (view, logits), column in zip(student.items(), columns, strict=True):
            criterion = self._criterion(view)
            masks[view] = criterion._valid_mask(logits, teacher[view], target, column, view)
        others = {view: logits for view, logits in teacher.items() if view not in student}
        if others:
            check_views("teacher", others)
        check_equal("`student` views of one batch size", {v: len(x) for v, x in student.items()})
        check_equal("`student` views on one device", {v: str(x.device) for v, x in student.items()})
        if self.average == "batch":
            ndims = {view: logits.ndim for view, logits in student.items()}
            check_equal("`student` views with equally many axes for average='batch'", ndims)
        return masks

    def _terms(
        self,
        student: Views,
        teacher: Views,
        target: Tensor | None,
        masks: Masks,
        mask: Tensor | None,
    ) -> Tensor:
        columns = []
        for view, logits in student.items():
            criterion, valid = self._criterion(view), masks[view]
            values = criterion._masked_per_sample(logits, teacher[view], target, valid)
            columns.append(mean_over_positions(values, valid))
        terms = torch.stack(columns, dim=-1)
        if self.average == "sample" or mask is None or mask.ndim == 2:
            return terms
        return terms * _relative_lengths(mask).to(terms.dtype)

    def _criterion(self, view: str) -> DistillationLoss:
        if not isinstance(self.criterion, nn.ModuleDict):
            return self.criterion
        check_holds("criterion", self.criterion, view)
        return cast(DistillationLoss, self.criterion[view])

    def _weights(
        self,
        terms: Tensor,
        teacher: Views,
        target: Tensor | None,
        names: tuple[str, ...],
        valid: Tensor | None,
    ) -> Tensor:
        if self.weighting is None:
            weights = torch.ones_like(terms)
        else:
            detached = {view: logits.detach() for view, logits in teacher.items()}
            weights = self.weighting(terms, detached, target, names=names, valid=valid)
            _check_weights(weights, terms)
        weights = weights.expand_as(terms)
        return weights if valid is None else weights.masked_fill(~any_position(valid), 0.0)

    def _reduce(self, values: Tensor, count: Tensor) -> Tensor:
        if self.reduction == "none":
            return values
        loss = values.sum() if self.reduction == "sum" else values.sum() / count.clamp(min=1)
        penalty = 0.0 if self.weighting is None else self.weighting.penalty()
        if isinstance(penalty, Tensor):
            penalty = penalty * (count > 0)  # the loss is 0 where nothing is valid
        return loss + penalty

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, average={self.average!r}"


def _stack_masks(masks: Masks) -> Tensor | None:
    """Stack the masks of the views: (N, ..., K); None if everything is valid."""
    some = [mask for mask in masks.values() if mask is not None]
    if not some:
        return None
    ndim = max(mask.ndim for mask in some)
    largest = next(mask for mask in some if mask.ndim == ndim)
    every = [largest.new_ones(len(largest)) if mask is None else mask for mask in masks.values()]
    expanded = [unsqueeze_right(mask, ndim).expand_as(largest) for mask in every]
    return torch.stack(expanded, dim=-1)


def _relative_lengths(mask: Tensor) -> Tensor:
    """Return the number of valid positions over its mean over the samples: (N, K)."""
    positions = mask.flatten(1, -2)
    valid = positions.any(-1)
    return positions.sum(1) * valid.any(1).sum().double() / valid.sum().clamp(min=1)


def _check_weights(weights: Tensor, terms: Tensor) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(expected("`weighting` to return a tensor", describe(weights)))
    if weights.shape not in (terms.shape, terms.shape[1:]):
        what = f"`weighting` to return a tensor {tuple(terms.shape)} or {tuple(terms.shape[1:])}"
        raise ValueError(expected(what, tuple(weights.shape)))
    what, advice = f"`weighting` to return a tensor on {terms.device}", "Move it with `.to`."
    check_that(what, weights.device == terms.device, weights.device, advice)
