"""What every distillation loss is: rows, of which some may not count, reduced once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from msdlosses._checks import (
    check_choice,
    check_given,
    check_integer,
    check_integers,
    check_mask,
    check_pair,
    check_size,
)
from msdlosses.functional._rows import column, fill, per_row, without_axis
from msdlosses.losses._chunks import can_chunk, chunked_rows

REDUCTIONS = ("mean", "sum", "none")


class DistillationLoss(nn.Module, ABC):
    """A loss between a student's and a teacher's outputs: a subclass writes `rows`.

    Args:
        dim: the class axis, which a mask of positions, (N, ...), lacks.
        ignore_index: rows whose target is this index do not count. A loss that has one needs a
            target.
        reduction: ``"mean"`` over the rows that count, never over classes; ``"sum"``; or
            ``"none"``, in which a row that does not count is 0.
        rows_at_once: compute so many rows at a time, in the backward pass once more, so that
            nothing but the logits is kept for it; None for all at once. It is for vocabularies
            so large that memory is short. A loss with it is still derived twice, in forward
            mode, under `torch.func` and compiled, where it takes all rows at once.

    Shape:
        ``student`` and ``teacher``: (N, ..., C). Returns a scalar, or (N, ...) unreduced.

    Raises:
        ValueError: an unknown reduction; shapes or devices that differ; no target for the
            index to ignore; `rows_at_once` below 1, or for a loss that compares samples with
            each other or whose ``dim`` is not the last axis, -1.
        TypeError: outputs that are no floating-point tensors, an axis or index that is no integer.
        IndexError: ``dim`` is no axis of the outputs.

    Example:
        >>> class CosineLoss(DistillationLoss):
        ...     def rows(self, student, teacher, target=None, *, valid=None):
        ...         return 1 - torch.cosine_similarity(student, teacher.detach(), dim=self.dim)
        >>> CosineLoss()(torch.eye(3), torch.eye(3))
        tensor(0.)

    Source: [ours].
    """

    same_width = True
    """Student and teacher have as many classes. Losses of features may do without."""
    relational = False
    """Samples are compared with each other, so that a row depends on all of them."""

    def __init__(
        self,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
        reduction: str = "mean",
        rows_at_once: int | None = None,
    ) -> None:
        super().__init__()
        check_integer("dim", dim)
        if ignore_index is not None:
            check_integer("ignore_index", ignore_index)
        check_choice("reduction", reduction, REDUCTIONS)
        if rows_at_once is not None:
            self._check_chunks(rows_at_once, dim)
        self.dim = dim
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.rows_at_once = rows_at_once

    def _check_chunks(self, rows_at_once: int, dim: int) -> None:
        check_size("rows_at_once", rows_at_once)
        if self.relational:
            raise ValueError(
                f"Expected no `rows_at_once` for {type(self).__name__}, which compares all samples "
                f"with each other, got {rows_at_once}."
            )
        if dim != -1:
            raise ValueError(f"Expected `dim` of -1 with `rows_at_once`, got {dim}.")

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

        Who calls it has filled samples that do not count with zeros and leaves their rows out:
        `valid` is for losses that compare samples with each other.
        """

    def check(self, student: Tensor, teacher: Tensor, *, view: str = "") -> None:
        """Whether this loss can compare these outputs; they are named after their view."""
        check_pair(student, teacher, dim=self.dim, view=view, same_width=self.same_width)

    def counted(
        self, student: Tensor, target: Tensor | None, valid: Tensor | None
    ) -> Tensor | None:
        """Which rows count: those that are valid and whose target is not ignored."""
        rows = without_axis(student, self.dim)
        if valid is not None:
            check_mask("valid", valid, rows, device=student.device)
        if self.ignore_index is None:
            return valid
        target = check_given("target", target, self)
        check_integers("target", target, rows, device=student.device)
        kept = target != self.ignore_index
        if valid is None:
            return kept
        axes = max(valid.ndim, kept.ndim)
        return per_row(valid, axes) & per_row(kept, axes)

    def valid_rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """`rows`, 0 for what is not valid, whatever its logits, and without gradient there."""
        size = self.rows_at_once
        if size is None or not can_chunk(self, student, target):
            return self.all_rows(student, teacher, target, valid=valid)
        return chunked_rows(self, student, teacher, target, valid, size)

    def all_rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """`valid_rows`, all at once."""
        if valid is None:
            return self.rows(student, teacher, target)
        # Filled before any arithmetic: 0 * NaN would be NaN, in the gradient as well.
        invalid = ~per_row(valid, student.ndim - 1).unsqueeze(self.dim)
        student, teacher = (x.masked_fill(invalid, 0.0) for x in (student, teacher))
        return fill(self.rows(student, teacher, target, valid=valid), valid)

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
        self.check(student, teacher)
        valid = self.counted(student, target, valid)
        rows = self.valid_rows(student, teacher, target, valid=valid)
        if self.reduction == "none":
            return rows
        if self.reduction == "sum":
            return rows.sum()
        return rows.sum() / _count(rows, valid)

    if TYPE_CHECKING:  # torch's own says that a call returns Any
        __call__ = forward

    def extra_repr(self) -> str:
        ignored = "" if self.ignore_index is None else f", ignore_index={self.ignore_index}"
        chunks = "" if self.rows_at_once is None else f", rows_at_once={self.rows_at_once}"
        return f"dim={self.dim}{ignored}, reduction={self.reduction!r}{chunks}"


def _count(rows: Tensor, valid: Tensor | None) -> Tensor | int:
    if valid is None:
        return max(rows.numel(), 1)
    return column(valid, rows).expand_as(rows).sum().clamp(min=1)
