"""What every weighting is, and what those that ask the teacher share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from msdlosses._checks import check_callable, describe, listing
from msdlosses.functional import FULL, cross_entropy
from msdlosses.functional._rows import fill_target, known_per_sample, widen

TaskLoss = Callable[[Tensor, Tensor], Tensor]


class Weighting(nn.Module, ABC):
    """Gives each view of each sample a weight.

    A subclass writes `forward`. What it learns or measures is kept in parameters and buffers, so
    that it is saved, moved and compiled with the model.

    Shape:
        Returns (N, K), or (K,) for all samples alike.

    Example:
        >>> class Confidence(Weighting):
        ...     def forward(self, terms, teacher, target=None, *, names, valid=None):
        ...         sure = [teacher[view].softmax(-1).amax(-1) for view in names]
        ...         return torch.stack(sure, -1).detach()
        >>> Confidence()(torch.zeros(2, 1), {"full": torch.zeros(2, 4)}, names=("full",)).tolist()
        [[0.25], [0.25]]

    Source: [ours].
    """

    @abstractmethod
    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        """The weights of the terms.

        Args:
            terms: the losses, views on the last axis.
            teacher: its logits by view; views beyond `names` are cues.
            target: the labels.
            names: the views of the terms, in their order.
            valid: which samples, or positions of sequences, count in which view. The weights of
                a sample without any in a view are never used. What does not count may be NaN.

        Shape:
            ``terms``: (N, K), ``valid``: (N, K) or (N, ..., K). Returns (N, K), or (K,) for all
            samples alike.
        """

    if TYPE_CHECKING:  # torch's own says that a call returns Any
        __call__ = forward

    def penalty(self) -> Tensor | float:
        """What the scheme adds to the loss, such as the price of a learned uncertainty."""
        return 0.0


def teacher_loss(
    task_loss: TaskLoss,
    teacher: Mapping[str, Tensor],
    view: str,
    target: Tensor,
    valid: Tensor | None,
) -> Tensor:
    """The teacher's loss on a view, one value per sample, over the positions that count."""
    logits = view_of(teacher, view)
    rows = task_loss(logits, target if valid is None else fill_target(target, valid))
    if not isinstance(rows, Tensor) or rows.ndim == 0 or len(rows) != len(logits):
        raise ValueError(
            f"Expected `task_loss` to give one value for each of {len(logits)} samples, "
            f"got {describe(rows)}. Set its reduction to 'none'."
        )
    return known_per_sample(rows, valid).detach()


def view_of(teacher: Mapping[str, Tensor], view: str) -> Tensor:
    """The teacher's logits of a view, detached, in float32 or wider."""
    if view not in teacher:
        raise KeyError(f"Expected `teacher` to hold the view `{view}`, got {listing(teacher)}.")
    return widen(teacher[view].detach())


def columns_of(valid: Tensor | None, names: Sequence[str]) -> dict[str, Tensor]:
    """What counts by view: view -> (N, ...); nothing where all does."""
    return {} if valid is None else dict(zip(names, valid.unbind(-1), strict=True))


def whole_of(columns: Mapping[str, Tensor]) -> Tensor | None:
    """Where the whole input is known: where it counts, or where no view lacks; None if all is."""
    if FULL in columns or not columns:
        return columns.get(FULL)
    return torch.stack(list(columns.values())).all(0)


def over_processes(values: Tensor) -> Tensor:
    """The sum over all processes, where there are several. Gradients pass, and are summed too."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    if values.requires_grad:
        # torch gives `apply` no types.
        summed: Tensor = _Summed.apply(values)  # type: ignore[no-untyped-call]
        return summed
    summed = values.clone()
    distributed.all_reduce(summed)
    return summed


class _Summed(torch.autograd.Function):
    """`torch.distributed.nn.functional.all_reduce`, which torch deprecates."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return over_processes(values.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return over_processes(gradient)


def checked_task_loss(task_loss: TaskLoss | None) -> TaskLoss:
    """Cross entropy unless there is another."""
    if task_loss is None:
        return cross_entropy
    check_callable("task_loss", task_loss)
    return task_loss
