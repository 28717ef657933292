"""The loss of modality-specific distillation: a weighted sum of one term per view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from msdlosses._checks import check_choice, check_grid, check_views, describe, listing
from msdlosses.functional._rows import any_position, per_row, per_sample
from msdlosses.losses._base import REDUCTIONS, DistillationLoss
from msdlosses.weighting import Weighting

AVERAGES = ("sample", "batch")


@dataclass(frozen=True)
class MSDParts:
    """What an `MSDLoss` is made of. All but `names` and `count` carry the graph.

    Shape:
        N samples, K views; see each attribute.

    Example:
        >>> views = {"full": torch.zeros(4, 3), "text": torch.zeros(4, 3)}
        >>> parts = MSDLoss(KDLoss()).parts(views, views)
        >>> dict(zip(parts.names, parts.weights.mean(0).tolist()))
        {'full': 1.0, 'text': 1.0}

    Source: [ours].
    """

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
        average: how the positions of sequences are averaged: ``"sample"``, over each sample's
            own, so that all samples count alike; ``"batch"``, so that all positions count alike.
            For that, a term is a sum over the sample's positions, divided by how many the
            samples have on average.

    Shape:
        ``student`` and ``teacher``: view -> (N, C), or (N, L, C), of which a term is the mean
        over the sample's positions that count: those that are valid, and whose target is not
        the ``ignore_index`` of the criterion. Returns a scalar.

    Raises:
        TypeError: a criterion, weighting or argument of the wrong kind.
        ValueError: shapes or devices that differ, a mask or weights that do not fit; a mapping of
            no criteria; an unknown reduction or average.
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
        average: str = "sample",
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
        check_choice("average", average, AVERAGES)
        self.criterion = nn.ModuleDict(criteria) if isinstance(criterion, Mapping) else criterion
        self.weighting = weighting
        self.reduction = reduction
        self.average = average

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
        self._check(student, teacher, valid)
        return self._terms(student, teacher, target, self._counted(student, target, valid))

    def parts(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> MSDParts:
        """The loss and what it is made of, for logging. The arguments are those of `forward`."""
        self._check(student, teacher, valid)
        counted = self._counted(student, target, valid)
        terms = self._terms(student, teacher, target, counted)
        names = tuple(student)
        weights = self._weights(terms, teacher, target, names, counted)
        if counted is None:
            count = terms.new_full((), len(terms), dtype=torch.long)
        else:
            count = any_position(counted).any(-1).sum()
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

    if TYPE_CHECKING:  # torch's own says that a call returns Any
        __call__ = forward

    def _check(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], valid: Tensor | None
    ) -> None:
        _check_views(student, teacher)
        axes = {view: logits.ndim for view, logits in student.items()}
        if self.average == "batch" and len(set(axes.values())) > 1:
            raise ValueError(
                "Expected `student` views that all have positions, or none, to average over the "
                f"batch's, got axes {axes}."
            )
        for view, logits in student.items():
            self._criterion(view).check(logits, teacher[view], view=view)
        if valid is not None:
            check_grid("valid", valid, tuple(student))

    def _counted(
        self, student: Mapping[str, Tensor], target: Tensor | None, valid: Tensor | None
    ) -> Tensor | None:
        """What counts, (N, ..., K): what is valid and not left out by a criterion."""
        given = [None] * len(student) if valid is None else valid.unbind(-1)
        masks = [
            self._criterion(view).counted(logits, target, mask)
            for (view, logits), mask in zip(student.items(), given, strict=True)
        ]
        known = [mask for mask in masks if mask is not None]
        if not known:
            return None
        axes = max(mask.ndim for mask in known)
        like = next(mask for mask in known if mask.ndim == axes)
        samples = like.new_ones(len(like))
        every = [per_row(samples if mask is None else mask, axes) for mask in masks]
        return torch.stack([mask.expand_as(like) for mask in every], dim=-1)

    def _terms(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        target: Tensor | None,
        counted: Tensor | None,
    ) -> Tensor:
        masks = [None] * len(student) if counted is None else counted.unbind(-1)
        columns = []
        for (view, logits), mask in zip(student.items(), masks, strict=True):
            loss = self._criterion(view)
            if mask is not None:
                mask = _of_rows(mask, logits.ndim - 1)
            rows = loss.valid_rows(logits, teacher[view], target, valid=mask)
            columns.append(per_sample(rows, mask))
        terms = torch.stack(columns, dim=-1)
        if self.average == "sample" or counted is None or counted.ndim == 2:
            return terms
        return terms * _shares(counted).to(terms.dtype)

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
        return weights if valid is None else weights.masked_fill(~any_position(valid), 0.0)

    def _reduce(self, rows: Tensor, count: Tensor) -> Tensor:
        if self.reduction == "none":
            return rows
        loss = rows.sum() if self.reduction == "sum" else rows.sum() / count.clamp(min=1)
        penalty = 0.0 if self.weighting is None else self.weighting.penalty()
        if isinstance(penalty, Tensor):
            penalty = penalty * (count > 0)  # where nothing counts the loss is 0
        return loss + penalty

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, average={self.average!r}"


def _check_views(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
    check_views("student", student)
    check_views("teacher", teacher)
    for view in student:
        if view not in teacher:
            raise KeyError(
                f"Expected `teacher` to hold the student's view `{view}`, got {listing(teacher)}."
            )
    sizes = {view: len(logits) for view, logits in student.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Expected `student` views of one batch, got lengths {sizes}.")
    devices = {logits.device for logits in student.values()}
    if len(devices) > 1:
        raise ValueError(f"Expected `student` views on one device, got {listing(devices)}.")


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


def _of_rows(mask: Tensor, axes: int) -> Tensor:
    """A mask for rows of so many axes: a view without positions counts if any position does."""
    return mask if mask.ndim <= axes else mask.flatten(axes).any(-1)


def _shares(counted: Tensor) -> Tensor:
    """How many positions of a sample count in a view, over their mean over the samples: (N, K)."""
    positions = counted.flatten(1, -2)
    seen = positions.any(-1)
    return positions.sum(1) * seen.any(1).sum().double() / seen.sum().clamp(min=1)
