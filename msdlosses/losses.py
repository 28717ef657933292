"""Distillation losses: rows first, reduced once; and their weighted sum over views."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from msdlosses import functional
from msdlosses._checks import (
    check_choice,
    check_mask,
    check_number,
    check_pair,
    check_views,
    describe,
    listing,
)
from msdlosses.functional import column, per_sample
from msdlosses.weighting import Weighting

__all__ = ["DistillationLoss", "KDLoss", "MSDLoss", "MSDParts", "MultiLabelKDLoss"]

REDUCTIONS = ("mean", "sum", "none")


class DistillationLoss(nn.Module, ABC):
    """A loss between a student's and a teacher's outputs: a subclass writes `rows`.

    Args:
        reduction: ``"mean"`` over the rows that are valid, never over classes; ``"sum"``; or
            ``"none"``, in which an invalid row is 0.

    Shape:
        ``student`` and ``teacher``: (N, ..., C). Returns a scalar, or (N, ...) unreduced.

    Raises:
        ValueError: an unknown reduction; shapes or devices that differ.
        TypeError: outputs that are no floating-point tensors.
    """

    dim = -1
    """The class axis, which a mask of positions, (N, ...), lacks."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    @abstractmethod
    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """One value per sample, or per position of a sequence: (N, ...).

        Who calls it has filled invalid samples with zeros and leaves their rows out: `valid` is
        for losses that compare samples with each other.
        """

    def valid_rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """`rows` in which invalid samples are 0, whatever their logits, and get no gradient."""
        check_pair(student, teacher, dim=self.dim)
        if valid is None:
            return self.rows(student, teacher, target)
        positions = student.select(self.dim, 0)
        check_mask("valid", valid, positions.shape, device=student.device)
        # Filled before any arithmetic: 0 * NaN would be NaN, in the gradient as well.
        mask = column(valid, positions).unsqueeze(self.dim)
        student, teacher = _fill(student, mask), _fill(teacher, mask)
        return _fill(self.rows(student, teacher, target, valid=valid), valid)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            student: its logits.
            teacher: its logits, of the same shape; they get no gradient.
            target: the labels, for losses that need them.
            valid: which samples, or positions, count: (N,) or (N, ...) of bool.
        """
        rows = self.valid_rows(student, teacher, target, valid=valid)
        if self.reduction == "none":
            return rows
        if self.reduction == "sum":
            return rows.sum()
        return rows.sum() / _count(rows, valid)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class KDLoss(DistillationLoss):
    r"""Softmax Kullback-Leibler divergence from the teacher to the student, times tau squared.

    The mean is over samples, PyTorch's ``"batchmean"``, and never divides by the number of
    classes. See `functional.kl_divergence` for the formula and its numerical form.

    Args:
        temperature: tau, above 0.
        dim: the class axis.
        reduction: as in `DistillationLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), the classes at ``dim``.

    Raises:
        TypeError: a temperature that is no number; logits that are no floating-point tensors.
        ValueError: a temperature that is not above 0; shapes or devices that differ.

    Example:
        >>> loss = KDLoss(temperature=2.0)
        >>> loss(torch.zeros(4, 3), torch.zeros(4, 3))
        tensor(0.)

    Source: [built on] Hinton et al. 2015, arXiv 1503.02531, section 2.
    """

    def __init__(self, temperature: float = 1.0, *, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        check_number("temperature", temperature, above=0)
        self.temperature = temperature
        self.dim = dim

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return functional.kl_divergence(
            student, teacher, temperature=self.temperature, dim=self.dim
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, dim={self.dim}, {super().extra_repr()}"


class MultiLabelKDLoss(KDLoss):
    r"""For labels of which several can hold at once: a binary divergence per class, summed.

    See `functional.multilabel_kl_divergence` for the formula. Right for soft scores as well.

    Args:
        temperature: tau, above 0.
        dim: the class axis.
        reduction: as in `DistillationLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), the classes at ``dim``.

    Raises:
        TypeError: a temperature that is no number; logits that are no floating-point tensors.
        ValueError: a temperature that is not above 0; shapes or devices that differ.

    Example:
        >>> loss = MultiLabelKDLoss()
        >>> loss(torch.zeros(4, 23), torch.zeros(4, 23))
        tensor(0.)

    Source: [ours].
    """

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return functional.multilabel_kl_divergence(
            student, teacher, temperature=self.temperature, dim=self.dim
        )


@dataclass(frozen=True)
class MSDParts:
    """What an `MSDLoss` is made of. All but `names` and `count` carry the graph."""

    loss: Tensor
    """The reduced loss, a scalar."""
    terms: Tensor
    """One value per sample and view, (N, K). Invalid entries are 0."""
    weights: Tensor
    """What each term counts, (N, K). Invalid entries are 0."""
    names: tuple[str, ...]
    """The views, in the order of the last axis."""
    count: Tensor
    """The number of samples with any valid term."""


class MSDLoss(nn.Module):
    r"""Modality-specific distillation: a weighted sum of one distillation term per view.

    .. math:: L = \frac 1 N \sum_n \sum_v w_{nv}\, D\bigl(T(x_n^v), S(x_n^v)\bigr)

    Args:
        criterion: D, a `DistillationLoss` of which the rows are used, or a mapping view -> loss,
            for instance for a temperature per view.
        weighting: where the weights come from; None for 1 everywhere.
        reduction: ``"mean"`` over the samples with any valid term; ``"sum"``; or ``"none"``, one
            value per sample, (N,).

    Shape:
        ``student`` and ``teacher``: view -> (N, C), or (N, L, C), of which a term is the mean
        over the sample's valid positions. Returns a scalar.

    Raises:
        TypeError: a criterion, weighting or argument of the wrong kind.
        ValueError: shapes or devices that differ, a mask or weights that do not fit; a mapping of
            no criteria.
        KeyError: the teacher, or a mapping of criteria, lacks a view of the student.

    Example:
        >>> msd = MSDLoss(KDLoss(temperature=2.0))
        >>> logits = {"full": torch.zeros(4, 3), "text": torch.zeros(4, 3)}
        >>> msd(logits, logits)
        tensor(0.)

    Source: [paper] for one auxiliary term per modality and their weights; that the term on the
    whole input is one of those that are weighted, and that the student is masked too: [ours].
    """

    def __init__(
        self,
        criterion: DistillationLoss | Mapping[str, DistillationLoss],
        weighting: Weighting | None = None,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        criteria = dict(criterion) if isinstance(criterion, Mapping) else {"": criterion}
        if not criteria:
            raise ValueError("Expected `criterion` to name at least one view, got none.")
        for loss in criteria.values():
            if not isinstance(loss, DistillationLoss):
                raise TypeError(
                    "Expected `criterion` to be a DistillationLoss or a mapping of views to such, "
                    f"got {describe(loss)}."
                )
        if not isinstance(weighting, Weighting | None):
            raise TypeError(f"Expected `weighting` to be a Weighting, got {describe(weighting)}.")
        check_choice("reduction", reduction, REDUCTIONS)
        self.criterion = nn.ModuleDict(criteria) if isinstance(criterion, Mapping) else criterion
        self.weighting = weighting
        self.reduction = reduction

    def terms(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The unweighted terms: (N, K), the student's views in their order on the last axis.

        The arguments are those of `forward`. An invalid entry is 0, whatever its logits, and
        gets no gradient.
        """
        _check_terms(student, teacher, valid)
        masks = [None] * len(student) if valid is None else valid.unbind(-1)
        columns = []
        for (view, logits), mask in zip(student.items(), masks, strict=True):
            rows = self._criterion(view).valid_rows(logits, teacher[view], target, valid=mask)
            columns.append(_sample_mean(rows, mask))
        return torch.stack(columns, dim=-1)

    def parts(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> MSDParts:
        """The loss and what it is made of, for logging. The arguments are those of `forward`."""
        terms = self.terms(student, teacher, target, valid=valid)
        seen = valid
        while seen is not None and seen.ndim > 2:  # a sequence counts if any position does
            seen = seen.any(1)
        names = tuple(student)
        weights = self._weights(terms, teacher, target, names, seen)
        every = terms.new_full((), len(terms), dtype=torch.long)
        count = every if seen is None else seen.any(-1).sum()
        rows = (weights * terms).sum(-1)
        return MSDParts(self._reduce(rows, count), terms, weights, names, count)

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            student: view -> logits. These are the views of the terms.
            teacher: view -> logits, for at least the student's views; others are cues for the
                weighting. They get no gradient.
            target: the labels, for criteria and weightings that need them.
            valid: which samples count in which view: (N, K) of bool, as `ModalityViews.valid`
                gives it, or (N, L, K) for positions of sequences.
        """
        return self.parts(student, teacher, target, valid=valid).loss

    def _criterion(self, view: str) -> DistillationLoss:
        if not isinstance(self.criterion, nn.ModuleDict):
            return self.criterion
        if view not in self.criterion:
            raise KeyError(
                f"Expected `criterion` to name the view `{view}`, got {listing(self.criterion)}."
            )
        return cast(DistillationLoss, self.criterion[view])

    def _weights(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
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
        return weights if valid is None else weights.masked_fill(~valid, 0.0)

    def _reduce(self, rows: Tensor, count: Tensor) -> Tensor:
        if self.reduction == "none":
            return rows
        loss = rows.sum() if self.reduction == "sum" else rows.sum() / count.clamp(min=1)
        return loss if self.weighting is None else loss + self.weighting.penalty()

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


def _check_terms(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], valid: Tensor | None
) -> None:
    check_views("student", student)
    check_views("teacher", teacher)
    for view, logits in student.items():
        if view not in teacher:
            raise KeyError(
                f"Expected `teacher` to hold the student's view `{view}`, got {listing(teacher)}."
            )
        check_pair(logits, teacher[view], view=view)
    sizes = {view: len(logits) for view, logits in student.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Expected `student` views of one batch, got lengths {sizes}.")
    devices = {logits.device for logits in student.values()}
    if len(devices) > 1:
        raise ValueError(f"Expected `student` views on one device, got {listing(devices)}.")
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        raise TypeError(f"Expected `valid` to be a boolean tensor, got {describe(valid)}.")
    if valid.ndim < 2 or valid.shape[-1] != len(student):
        raise ValueError(
            f"Expected `valid` of shape (N, {len(student)}), one column for each of "
            f"{listing(student)}, got {tuple(valid.shape)}."
        )


def _check_weights(weights: object, terms: Tensor) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(f"Expected `weighting` to give a tensor, got {describe(weights)}.")
    if weights.shape not in (terms.shape, terms.shape[1:]):
        raise ValueError(
            f"Expected `weighting` to give weights of shape {tuple(terms.shape)} or "
            f"{tuple(terms.shape[1:])}, got {tuple(weights.shape)}."
        )
    if weights.device != terms.device:
        raise ValueError(
            f"Expected `weighting` to give weights on {terms.device}, got {weights.device}: "
            "move the loss to where the model is, with `.to`."
        )


def _fill(values: Tensor, valid: Tensor) -> Tensor:
    return values.masked_fill(~column(valid, values), 0.0)


def _count(rows: Tensor, valid: Tensor | None) -> Tensor | int:
    if valid is None:
        return max(rows.numel(), 1)
    return column(valid, rows).expand_as(rows).sum().clamp(min=1)


def _sample_mean(rows: Tensor, valid: Tensor | None) -> Tensor:
    """The mean over the positions of each sample that count: (N, ...) -> (N,)."""
    if valid is None or rows.ndim == 1:
        return per_sample(rows)
    counts = column(valid, rows).expand_as(rows).flatten(1).sum(1)
    return rows.flatten(1).sum(1) / counts.clamp(min=1)
