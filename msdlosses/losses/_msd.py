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
    check_type,
    check_views,
)
from msdlosses._linear import LOGITS, LinearLogits, Logits, class_axis_last, constant
from msdlosses._masks import any_position, insert_positions, leading_shape
from msdlosses._views import map_views, view_names
from msdlosses.losses._base import REDUCTIONS, DistillationLoss
from msdlosses.losses._gate import GradientGate
from msdlosses.losses._parts import MSDParts
from msdlosses.losses._terms import (
    Masks,
    check_one_per_view,
    check_weights_fit,
    stack_masks,
    stack_terms,
    weighted_terms,
    zero_invalid_weights,
)
from msdlosses.weighting import Weighting

AVERAGES = ("sample", "batch")

Views = Mapping[str, Logits]


class MSDLoss(nn.Module):
    r"""Modality-specific distillation: a weighted sum of one distillation term per view.

    .. math:: L = \frac 1 N \sum_n \sum_v w_{nv}\, D\bigl(T(x_n^v), S(x_n^v)\bigr)

    Args:
        criterion: D, a `DistillationLoss` whose per-sample values are used, or a mapping from
            views to losses, for instance for a temperature per view.
        weighting: computes the weights; None for weights of 1.
        reduction: ``"mean"``; ``"sum"``, which is not divided by `MSDParts.count`; or ``"none"``,
            the share of each sample in the sum, (N,).
        average: what the mean is over: ``"sample"``, over the samples with a valid term, where a
            sequence contributes the mean over its positions; or ``"batch"``, over the positions
            that are valid in any view, so that all positions of a batch count the same.

    Shape:
        ``student`` and ``teacher``: view -> (N, C), or (N, L, C), as tensors or `LinearLogits`. A
        position is valid if its mask is True and its target is not the ``ignore_index`` of the
        criterion. Returns a scalar.

    Raises:
        TypeError: a criterion, weighting, or argument has the wrong type.
        ValueError: shapes or devices differ; a mask or weights do not fit; student and teacher
            seem swapped, as in `DistillationLoss`; a mapping of criteria is empty; ``reduction``
            or ``average`` is unknown.
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

        The arguments are those of `forward`. The term of a sequence is the mean over its valid
        positions. An invalid entry is 0, whatever its logits are, and
        gets no gradient.
        """
        masks = self._valid_masks(student, teacher, target, valid)
        return stack_terms(self._losses(student, teacher, target, masks), masks)

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
        gate = None if self.weighting is None else GradientGate()
        losses = self._losses(student, teacher, target, masks, gate)
        terms, mask = stack_terms(losses, masks), stack_masks(masks)
        every = torch.ones_like(terms, dtype=torch.bool) if mask is None else mask
        if self.weighting is None or gate is None:
            weights, weighted = any_position(every).to(terms.dtype), terms
        else:
            weights = self._weights(self.weighting, terms, teacher, target, losses, mask)
            weighted = weighted_terms(losses, masks, terms, weights, gate.close(weights))
        shares, count = self._shares(weighted, losses, every)
        return MSDParts(self._reduce(shares, count), terms, weights, tuple(losses), count)

    def _valid_masks(
        self, student: Views, teacher: Views, target: Tensor | None, valid: Tensor | None
    ) -> Masks:
        """Check the arguments of a call, and return which samples to use in each view."""
        check_mapping("student", student, "views to logits")
        check_mapping("teacher", teacher, "views to logits")
        names = view_names(student)
        check_holds("teacher", view_names(teacher), *names)
        if valid is not None:
            check_grid("valid", valid, names)
        masks = {}
        columns = [None] * len(names) if valid is None else valid.unbind(-1)
        for (view, logits), column in zip(student.items(), columns, strict=True):
            criterion = self._criterion(view)
            masks[view] = criterion._valid_mask(logits, teacher[view], target, column, view)
        others = {view: logits for view, logits in teacher.items() if view not in names}
        if others:
            check_views("teacher", others, LOGITS)
        check_equal(
            "`student` views of one batch size", {v: x.shape[0] for v, x in student.items()}
        )
        check_equal("`student` views on one device", {v: str(x.device) for v, x in student.items()})
        if self.average == "batch":
            shapes = {v: leading_shape(x, self._criterion(v).dim) for v, x in student.items()}
            check_equal("`student` views with the same positions for average='batch'", shapes)
        return masks

    def _losses(
        self,
        student: Views,
        teacher: Views,
        target: Tensor | None,
        masks: Masks,
        gate: GradientGate | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss of each sample or position, by view: (N, ...)."""
        losses = {}
        for column, (view, logits) in enumerate(student.items()):
            criterion = self._criterion(view)
            guarded = logits if gate is None else gate.guard(column, logits, criterion.dim)
            losses[view] = criterion._masked_per_sample(guarded, teacher[view], target, masks[view])
        return losses

    def _criterion(self, view: str) -> DistillationLoss:
        if not isinstance(self.criterion, nn.ModuleDict):
            return self.criterion
        check_holds("criterion", self.criterion, view)
        return cast(DistillationLoss, self.criterion[view])

    def _weights(
        self,
        weighting: Weighting,
        terms: Tensor,
        teacher: Views,
        target: Tensor | None,
        losses: Mapping[str, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        """Call the weighting, with the class axis of logits and targets last."""
        names = tuple(losses)

        def prepare(view: str, logits: Logits) -> Logits:
            logits = constant(logits)
            if isinstance(logits, LinearLogits):
                logits.chunk_size = self._chunk_size(view) or logits.chunk_size
            return class_axis_last(logits, self._class_axis(view))

        if isinstance(target, Tensor) and target.ndim == teacher[names[0]].ndim:  # class scores
            target = target.movedim(self._class_axis(names[0]), -1)
        teacher = map_views(prepare, teacher)
        weights = weighting(terms, teacher, target, names=names, valid=mask)
        check_weights_fit(weights, terms, losses)
        return weights if mask is None else zero_invalid_weights(weights, mask)

    def _class_axis(self, view: str) -> int:
        """Return the class axis of a view, which may be a cue that has no criterion."""
        if not isinstance(self.criterion, nn.ModuleDict) or view in self.criterion:
            return self._criterion(view).dim
        dims = {name: loss.dim for name, loss in self.criterion.items()}
        check_equal(f"criteria with one `dim`, the class axis of `{view}` as well", dims)
        return cast(int, next(iter(dims.values())))

    def _chunk_size(self, view: str) -> int | None:
        """Return the chunk size of a view's criterion."""
        if isinstance(self.criterion, nn.ModuleDict) and view not in self.criterion:
            return None
        return self._criterion(view).chunk_size

    def _shares(
        self, weighted: Tensor, losses: Mapping[str, Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the share of each sample in the sum, (N,), and what the mean divides by."""
        if self.average == "sample":
            valid = counts = any_position(mask)
        else:
            shape = next(iter(losses.values())).shape
            valid = insert_positions(mask, len(shape)).expand(*shape, -1)
            counts = valid.reshape(valid.shape[0], -1, valid.shape[-1]).sum(1)
            weighted = weighted * counts
        penalty = 0.0 if self.weighting is None else self.weighting.penalty(tuple(losses))
        if isinstance(penalty, Tensor):
            check_one_per_view("penalty", penalty, weighted)
            weighted = weighted + counts * penalty
        return weighted.sum(-1), valid.any(-1).sum()

    def _reduce(self, shares: Tensor, count: Tensor) -> Tensor:
        if self.reduction == "none":
            return shares
        return shares.sum() if self.reduction == "sum" else shares.sum() / count.clamp(min=1)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, average={self.average!r}"
