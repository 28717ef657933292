"""Weights by the teacher's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from msdlosses._checks import check_callable, check_number, describe, expected
from msdlosses._linear import Logits
from msdlosses._masks import mean_over_valid
from msdlosses.weighting._base import Weighting
from msdlosses.weighting._teacher import TaskLoss, teacher_losses, valid_by_view


class TeacherLossWeighting(Weighting):
    r"""Smaller weights for views on which the teacher is wrong.

    .. math:: w_{nv} = \exp\bigl(-\alpha\, \mathrm{CE}(T(x_n^v), y_n)\bigr)

    Args:
        alpha: how much the teacher's loss reduces the weight, above 0.
        per_position: weight each position of a sequence by the loss on it, and not each sample by
            its mean.
        task_loss: CE, a function ``(logits, target) -> (N, ...)`` that does not reduce. None is
            `functional.cross_entropy`. Use `functional.multilabel_cross_entropy` for multi-label
            targets and soft scores.

    Shape:
        Returns (N, K), in [0, 1]; (N, ..., K) with ``per_position``.

    Raises:
        TypeError: ``alpha`` is not a number, or ``task_loss`` is not callable; when called, targets
            are not class indices and there is no ``task_loss`` for them.
        ValueError: ``alpha`` is not positive; when called, ``target`` is missing or does not fit,
            or ``task_loss`` does not return one value per sample.
        KeyError: when called, the teacher lacks a view.

    Example:
        >>> teacher = {"full": torch.tensor([[9.0, 0.0]]), "text": torch.tensor([[0.0, 0.0]])}
        >>> weighting = TeacherLossWeighting(alpha=1.0)
        >>> weights = weighting(torch.zeros(1, 2), teacher, torch.tensor([0]), names=tuple(teacher))
        >>> [round(w, 2) for w in weights[0].tolist()]
        [1.0, 0.5]

    Source: [paper] "each modality has different importance"; the formula: [ours].
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        per_position: bool = False,
        task_loss: TaskLoss | None = None,
    ) -> None:
        super().__init__()
        check_number("alpha", alpha, "(0, inf)")
        check_callable("task_loss", task_loss, optional=True)
        self.alpha = alpha
        self.per_position = per_position
        self.task_loss = task_loss

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Logits],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        if target is None:
            raise ValueError(expected(f"a `target` for {describe(self)}", None))
        masks = valid_by_view(valid, names)
        losses = teacher_losses(self.task_loss, teacher, names, target, masks)
        columns = [
            values if self.per_position else mean_over_valid(values, masks.get(view))
            for view, values in losses.items()
        ]
        return torch.exp(-self.alpha * torch.stack(columns, dim=-1)).to(terms.dtype)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}" + (", per_position=True" if self.per_position else "")
