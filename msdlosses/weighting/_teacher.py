"""The teacher's logits and losses, as weightings read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from msdlosses._checks import (
    check_classes_exist,
    describe,
    expected,
)
from msdlosses._formulas.logits import upcast
from msdlosses._formulas.saliency import get_view
from msdlosses._formulas.tasks import cross_entropy
from msdlosses._linear import Logits, map_rows
from msdlosses._masks import zero_invalid_target
from msdlosses._views import FULL

TaskLoss = Callable[[Tensor, Tensor], Tensor]


def valid_by_view(valid: Tensor | None, names: Sequence[str]) -> dict[str, Tensor]:
    """Split a mask by view: view -> (N, ...). The result is empty if everything is valid."""
    return {} if valid is None else dict(zip(names, valid.unbind(-1), strict=True))


def valid_full(masks: Mapping[str, Tensor]) -> Tensor | None:
    """Return where the full view is valid: where all views are, unless it has its own mask."""
    if FULL in masks or not masks:
        return masks.get(FULL)
    return torch.stack(list(masks.values())).all(0)


def teacher_losses(
    task_loss: TaskLoss | None,
    teacher: Mapping[str, Logits],
    names: Sequence[str],
    target: Tensor,
    masks: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the teacher's loss on each view: one value per sample or position."""

    def losses_of(logits: Tensor, target: Tensor) -> Tensor:
        values = (task_loss or cross_entropy)(upcast(logits), target)
        _check_per_sample(values, logits)
        return values

    losses: dict[str, Tensor] = {}
    checked: torch.Size | None = None
    for view in names:
        logits, valid = get_view(teacher, view), masks.get(view)
        # Without masks, once for all views of one shape.
        if task_loss is None and (valid is not None or logits.shape != checked):
            check_classes_exist("target", target, logits, valid=valid)
            checked = logits.shape
        clean = target if valid is None else zero_invalid_target(target, valid)
        losses[view] = map_rows(losses_of, logits, target=clean).detach()
    return losses


def _check_per_sample(values: object, logits: Tensor) -> None:
    if not isinstance(values, Tensor) or values.ndim == 0 or values.shape[0] != logits.shape[0]:
        advice = "Set the reduction of `task_loss` to 'none'."
        raise ValueError(expected("one value per sample", describe(values), advice))
