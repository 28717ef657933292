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
from msdlosses._masks import zero_invalid_target
from msdlosses._views import FULL

TaskLoss = Callable[[Tensor, Tensor], Tensor]


def logits_of(teacher: Mapping[str, Tensor], view: str) -> Tensor:
    """Return the teacher's logits of a view, detached, in float32 or wider."""
    return upcast(get_view(teacher, view))


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
    teacher: Mapping[str, Tensor],
    names: Sequence[str],
    target: Tensor,
    masks: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the teacher's loss on each view: one value per sample or position."""
    losses: dict[str, Tensor] = {}
    checked: torch.Size | None = None
    for view in names:
        logits, valid = logits_of(teacher, view), masks.get(view)
        if task_loss is not None:
            values = task_loss(logits, _clean_target(target, valid))
            _check_per_sample(values, logits)
            losses[view] = values.detach()
            continue
        if valid is not None or logits.shape != checked:  # once for all views of one shape
            check_classes_exist("target", target, logits, valid=valid)
            checked = logits.shape
        losses[view] = cross_entropy(logits, _clean_target(target, valid))
    return losses


def _clean_target(target: Tensor, valid: Tensor | None) -> Tensor:
    return target if valid is None else zero_invalid_target(target, valid)


def _check_per_sample(values: object, logits: Tensor) -> None:
    if not isinstance(values, Tensor) or values.ndim == 0 or values.shape[0] != logits.shape[0]:
        advice = "Set the reduction of `task_loss` to 'none'."
        raise ValueError(expected("one value per sample", describe(values), advice))
