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
from msdlosses.losses._tempered import TemperedLoss
from msdlosses.losses._terms import (
    Masks,
    check_one_per_view,
    check_weights_fit,
    stack_masks,
    stack_terms,
    unit_weights,
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
        positions. An invalid entry is 0, whatever its logits are, and gets no gradient.
        """
        criteria = self._criteria(student)
        masks = self._valid_masks(criteria, student, teacher, target, valid)
        return self._losses(criteria, student, teacher, target, masks)[1]

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
        criteria = self._criteria(student)
        masks = self._valid_masks(criteria, student, teacher, target, valid)
        gate = None if self.weighting is None else GradientGate()
        losses, terms = self._losses(criteria, student, teacher, target, masks, gate)
        mask = stack_masks(masks)
        if self.weighting is None or gate is None:
            weights, weighted = unit_weights(terms, mask), terms
        else:
            weights = self._weights(self.weighting, terms, teacher, target, losses, mask)
            left_out = gate.close(weights, [criterion.dim for criterion in criteria.values()])
            weighted = weighted_terms(losses, masks, terms, weights, left_out)
        weighted, count = self._numerator(weighted, losses, mask)
        loss = self._reduce(weighted, count)
        if not isinstance(count, Tensor):
            count = terms.new_full((), count, dtype=torch.long)
        return MSDParts(loss, terms, weights, tuple(losses), count)

    def _criteria(self, student: Views) -> dict[str, DistillationLoss]:
        """Check for a mapping from views, and return the criterion of each view."""
        check_mapping("student", student, "views to logits")
        criterion = self.criterion
        if not isinstance(criterion, nn.ModuleDict):
            return dict.fromkeys(view_names(student), criterion)
        check_holds("criterion", criterion, *view_names(student))
        return {view: cast(DistillationLoss, criterion[view]) for view in view_names(student)}

    def _valid_masks(
        self,
        criteria: Mapping[str, DistillationLoss],
        student: Views,
        teacher: Views,
        target: Tensor | None,
        valid: Tensor | None,
    ) -> Masks:
        """Check the arguments of a call, and return which samples to use in each view."""
        check_mapping("teacher", teacher, "views to logits")
        names = tuple(criteria)
        check_holds("teacher", view_names(teacher), *names)
        if valid is not None:
            check_grid("valid", valid, names)
        masks = {}
        columns = [None] * len(names) if valid is None else valid.unbind(-1)
        for (view, criterion), column in zip(criteria.items(), columns, strict=True):
            logits = student[view], teacher[view]
            masks[view] = criterion._valid_mask(*logits, target, column, view)
        others = {view: logits for view, logits in teacher.items() if view not in names}
        if others:
            check_views("teacher", others, LOGITS)
        check_equal(
            "`student` views of one batch size", {v: x.shape[0] for v, x in student.items()}
        )
        check_equal("`student` views on one device", {v: str(x.device) for v, x in student.items()})
        if self.average == "batch":
            shapes = {v: leading_shape(x, criteria[v].dim) for v, x in student.items()}
            check_equal("`student` views with the same positions for average='batch'", shapes)
        return masks

    def _losses(
        self,
        criteria: Mapping[str, DistillationLoss],
        student: Views,
        teacher: Views,
        target: Tensor | None,
        masks: Masks,
        gate: GradientGate | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the loss of each sample or position by view, (N, ...), and the terms, (N, K)."""
        logits = {view: gate.guard(student[view]) if gate else student[view] for view in criteria}
        terms = self._terms_at_once(logits, teacher, masks)
        if terms is not None:
            return dict(zip(criteria, terms.unbind(-1), strict=True)), terms
        losses = {
            view: criterion._masked_per_sample(logits[view], teacher[view], target, masks[view])
            for view, criterion in criteria.items()
        }
        return losses, stack_terms(losses, masks)

    def _terms_at_once(self, student: Views, teacher: Views, masks: Masks) -> Tensor | None:
        """Return the terms of views of one shape (N, C) without masks, if one step computes them.

        A node of the graph for each view would take longer than the arithmetic of small batches.
        """
        criterion, students = self.criterion, list(student.values())
        if not isinstance(criterion, TemperedLoss) or students[0].ndim != 2:
            return None
        shape = students[0].shape
        if any([x.shape != shape for x in students] + [x is not None for x in masks.values()]):
            return None
        teachers = [constant(teacher[view]) for view in student]
        if any(isinstance(x, LinearLogits) for x in (*students, *teachers)):
            return None
        return criterion._of_views(cast(list[Tensor], students), cast(list[Tensor], teachers))

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
            axis = self._class_axis(view)
            return logits if axis == -1 else class_axis_last(logits, axis)

        if isinstance(target, Tensor) and target.ndim == teacher[names[0]].ndim:  # class scores
            target = target.movedim(self._class_axis(names[0]), -1)
        teacher = map_views(prepare, teacher)
        weights = weighting(terms, teacher, target, names=names, valid=mask)
        check_weights_fit(weights, terms, losses)
        return weights if mask is None else zero_invalid_weights(weights, mask)

    def _class_axis(self, view: str) -> int:
        """Return the class axis of a view, which may be a cue that has no criterion."""
        criterion = self.criterion
        if not isinstance(criterion, nn.ModuleDict):
            return criterion.dim
        dims = {name: cast(DistillationLoss, loss).dim for name, loss in criterion.items()}
        if view not in dims:
            check_equal(f"criteria with one `dim`, the class axis of `{view}` as well", dims)
        return dims.get(view, next(iter(dims.values())))

    def _chunk_size(self, view: str) -> int | None:
        """Return the chunk size of a view's criterion."""
        criterion = self.criterion
        if isinstance(criterion, nn.ModuleDict):
            return getattr(dict(criterion.items()).get(view), "chunk_size", None)
        return criterion.chunk_size

    def _numerator(
        self, weighted: Tensor, losses: Mapping[str, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, Tensor | int]:
        """Return what the sum consists of, (N, K), and what the mean divides by."""
        counts, count = self._counts(losses, mask)
        if self.average == "batch":
            weighted = weighted * counts
        penalty = 0.0 if self.weighting is None else self.weighting.penalty(tuple(losses))
        if isinstance(penalty, Tensor):
            check_one_per_view("penalty", penalty, weighted)
            weighted = weighted + counts * penalty
        return weighted, count

    def _counts(
        self, losses: Mapping[str, Tensor], mask: Tensor | None
    ) -> tuple[Tensor | int, Tensor | int]:
        """Return the valid samples or positions of each sample, (N, K), and of all together."""
        shape = next(iter(losses.values())).shape
        if mask is None:
            positions = 1 if self.average == "sample" else shape[1:].numel()
            return positions, shape[0] * positions
        if self.average == "sample":
            valid = any_position(mask)
            return valid, valid.any(-1).sum()
        valid = insert_positions(mask, len(shape)).expand(*shape, -1)
        counts = valid.reshape(valid.shape[0], -1, valid.shape[-1]).sum(1)
        return counts, valid.any(-1).sum()

    def _reduce(self, weighted: Tensor, count: Tensor | int) -> Tensor:
        if self.reduction == "none":
            return weighted.sum(-1)
        total = weighted.sum()
        if self.reduction == "sum":
            return total
        return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, average={self.average!r}"
