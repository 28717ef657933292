"""The base class of all distillation losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from msdlosses._checks import (
    check_choice,
    check_class_indices,
    check_classes_exist,
    check_integer,
    check_mask,
    check_pair,
    check_that,
    describe,
    expected,
)
from msdlosses._linear import (
    LOGITS,
    LinearLogits,
    Logits,
    constant,
    materialize,
    tensors_of,
)
from msdlosses._masks import intersect, outside_inference, unsqueeze_right, zero_invalid
from msdlosses._torch import in_forward_mode, is_transformed, uncompiled
from msdlosses.losses._chunks import can_chunk, chunked_per_sample

REDUCTIONS = ("mean", "sum", "none")


class DistillationLoss(nn.Module, ABC):
    """Base class of losses between a student's and a teacher's outputs.

    A subclass implements `per_sample`.

    Args:
        dim: the class axis.
        ignore_index: samples whose target is this index are left out. A loss with an
            ``ignore_index`` needs a target.
        reduction: ``"mean"`` over the valid samples, never over the classes; ``"sum"``; or
            ``"none"``, where a sample that is left out is 0.
        chunk_size: compute the loss of this many samples or positions at a time, and again in the
            backward pass, so that only the logits are kept in memory. For vocabularies that are
            too large for the memory. None computes all at once, but `LinearLogits` 512 at a time.
            The loss remains twice differentiable. Compiled code computes all at once.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), tensors or `LinearLogits`. Returns a scalar, or
        (N, ...) if unreduced.

    Raises:
        ValueError: ``reduction`` is unknown; shapes or devices differ; the target that
            ``ignore_index`` needs is missing; in training mode, the teacher's logits require a
            gradient and the student's do not, as if they were swapped; ``chunk_size`` is below 1,
            is set for a loss that compares samples with each other, or is set with a ``dim`` other
            than -1.
        TypeError: outputs are not floating-point tensors, or an option has the wrong type; the
            loss compares samples with each other, and outputs are `LinearLogits`.
        IndexError: ``dim`` is not an axis of the outputs.

    Example:
        >>> class LogitMAELoss(DistillationLoss):
        ...     def per_sample(self, student, teacher, target=None, *, valid=None):
        ...         return (student - teacher.detach()).abs().sum(self.dim)
        >>> LogitMAELoss()(torch.ones(4, 3), torch.zeros(4, 3))
        tensor(3.)

    Source: [ours].
    """

    same_width = True
    """Student and teacher must have equally many classes."""
    relational = False
    """Samples are compared with each other, so that each value depends on all of them.

    Such a loss has no chunks, and does not take `LinearLogits`.
    """
    needs_target = False
    """`per_sample` needs class indices as its target, which are then checked."""

    def __init__(
        self,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
        reduction: str = "mean",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        check_integer("dim", dim)
        check_choice("reduction", reduction, REDUCTIONS)
        if ignore_index is not None:
            check_integer("ignore_index", ignore_index)
        if chunk_size is not None:
            self._check_chunk_size(chunk_size, dim)
        self.dim = dim
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.chunk_size = chunk_size

    @abstractmethod
    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return one value per sample, or per position of a sequence: (N, ...).

        The caller has checked the arguments and set invalid samples to 0, and discards their
        values. In chunks, the samples are those of a chunk, and ``student`` and ``teacher`` are
        tensors in any case. Only losses that compare samples with each other need ``valid``.
        """

    def forward(
        self,
        student: Logits,
        teacher: Logits,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            student: logits, or `LinearLogits`.
            teacher: logits of the same shape, or `LinearLogits`; they get no gradient.
            target: the labels, for losses that need them.
            valid: which samples, or positions, to use: a boolean tensor (N,) or (N, ...).
        """
        mask = self._valid_mask(student, teacher, target, valid)
        values = self._masked_per_sample(student, teacher, target, mask)
        if self.reduction == "none":
            return values
        if self.reduction == "sum":
            return values.sum()
        return values.sum() / _count(values, mask)

    if TYPE_CHECKING:  # torch declares that a call returns Any
        __call__ = forward

    def _valid_mask(
        self,
        student: Logits,
        teacher: Logits,
        target: Tensor | None,
        valid: Tensor | None,
        view: str = "",
    ) -> Tensor | None:
        """Check the arguments of a call, and return which samples to use; None for all.

        Messages name the view, if there is one.
        """
        if isinstance(student, LinearLogits) or isinstance(teacher, LinearLogits):
            self._check_linear()
        width = self.same_width
        check_pair(student, teacher, dim=self.dim, view=view, same_width=width, kinds=LOGITS)
        self._require_order(student, teacher)
        self._require_fit(student)
        if valid is not None:
            check_mask("valid", valid, student, self.dim)
        if self.ignore_index is None and not self.needs_target:
            return valid
        if target is None:
            raise ValueError(expected(f"a `target` for {describe(self)}", None))
        if self.ignore_index is not None:
            check_class_indices("target", target, student, self.dim)
            # As int64: an index of -100 would be 156 among targets of uint8.
            valid = intersect(valid, target.long() != self.ignore_index)
        if self.needs_target:
            check_classes_exist("target", target, student, self.dim, valid)
        return valid

    def _require_order(self, student: Logits, teacher: Logits) -> None:
        """Raise an error if the student's and the teacher's logits are swapped, in training."""
        swapped = teacher.requires_grad and not student.requires_grad
        differentiated = torch.is_grad_enabled() and not is_transformed(*tensors_of(student))
        # In forward mode gradients can be enabled although nothing requires one.
        if swapped and self.training and differentiated and not in_forward_mode():
            advice = "Did you swap them? In evaluation mode the loss accepts constant logits."
            what = "`student` to require a gradient, or `teacher` not to"
            raise ValueError(expected(what, "the reverse", advice))

    def _require_fit(self, student: Logits) -> None:
        """Raise an error if an option, such as a temperature per sample, does not fit."""

    def _masked_per_sample(
        self, student: Logits, teacher: Logits, target: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return `per_sample`, with 0 and no gradient where the mask is False."""
        teacher, target, mask = (outside_inference(x) for x in (teacher, target, mask))
        if isinstance(student, LinearLogits) or isinstance(teacher, LinearLogits):
            return self._linear_per_sample(student, teacher, target, mask)
        size = None if torch.compiler.is_compiling() else self.chunk_size
        if size is None or not can_chunk(student, target):
            return self._all_at_once(student, teacher, target, mask)
        return chunked_per_sample(self, student, teacher, target, mask, size)

    @uncompiled
    def _linear_per_sample(
        self, student: Logits, teacher: Logits, target: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if not can_chunk(student, target):
            pair = materialize(student), materialize(constant(teacher))
            return self._all_at_once(*pair, target, mask)
        sizes = [x.chunk_size for x in (student, teacher) if isinstance(x, LinearLogits)]
        size = self.chunk_size or min(sizes)
        return chunked_per_sample(self, student, teacher, target, mask, size)

    def _all_per_sample(self, student: Logits, teacher: Logits) -> Tensor:
        """Return `per_sample` of logits that are all valid, in chunks if there is a size."""
        return self._masked_per_sample(student, teacher, None, None)

    def _all_at_once(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if mask is None:
            return self.per_sample(student, teacher, target)
        # Set to 0 before any arithmetic: 0 * NaN would be NaN, in the gradient as well.
        invalid = ~unsqueeze_right(mask, student.ndim - 1).unsqueeze(self.dim)
        student, teacher = student.masked_fill(invalid, 0.0), teacher.masked_fill(invalid, 0.0)
        return zero_invalid(self.per_sample(student, teacher, target, valid=mask), mask)

    def _check_linear(self) -> None:
        what = f"tensors for {describe(self)}, which compares samples with each other"
        advice = "Compute them by `.materialize()`."
        check_that(what, not self.relational, "LinearLogits", advice, TypeError)
        check_that("`dim` to be -1 with LinearLogits", self.dim == -1, self.dim)

    def _check_chunk_size(self, chunk_size: int, dim: int) -> None:
        check_integer("chunk_size", chunk_size, least=1)
        check_that("no `chunk_size` for a relational loss", not self.relational, chunk_size)
        check_that("`dim` to be -1 with `chunk_size`", dim == -1, dim)

    def extra_repr(self) -> str:
        ignored = "" if self.ignore_index is None else f", ignore_index={self.ignore_index}"
        chunks = "" if self.chunk_size is None else f", chunk_size={self.chunk_size}"
        return f"dim={self.dim}{ignored}, reduction={self.reduction!r}{chunks}"


def _count(values: Tensor, mask: Tensor | None) -> Tensor | int:
    """Return the number of valid values, but at least 1."""
    if mask is None:
        return max(values.numel(), 1)
    return unsqueeze_right(mask, values.ndim).expand_as(values).sum().clamp(min=1)
