"""Saliency of a view: how far a teacher's prediction moves when the view is taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast

from torch import Tensor

from msdlosses._checks import check_callable, describe, expected, join_names
from msdlosses._formulas.kl import kl
from msdlosses._formulas.logits import upcast_pair
from msdlosses._views import FULL, modalities_of, opposite


class PerSampleLoss(Protocol):
    """Anything with `per_sample(student, teacher)`, such as a `DistillationLoss`."""

    def per_sample(self, student: Tensor, teacher: Tensor) -> Tensor: ...


Divergence = PerSampleLoss | Callable[[Tensor, Tensor], Tensor]


def check_divergence(divergence: object) -> None:
    """Check for a loss, a function of two predictions, or None."""
    check_callable("divergence", getattr(divergence, "per_sample", divergence), optional=True)


def divergence_function(divergence: Divergence | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `(student, teacher) -> per-sample values`; None is KL at temperature 1."""
    if divergence is None:
        return _kl_at_temperature_1
    function: Any = getattr(divergence, "per_sample", divergence)
    return cast(Callable[[Tensor, Tensor], Tensor], function)


def _kl_at_temperature_1(student: Tensor, teacher: Tensor) -> Tensor:
    return kl(*upcast_pair(student, teacher), dim=-1, constant_teacher=True)


def get_view(teacher: Mapping[str, Tensor], view: str) -> Tensor:
    """Return the teacher's logits on a view, detached."""
    if view not in teacher:
        raise KeyError(expected(f"`teacher` to hold `{view}`", join_names(teacher)))
    return teacher[view].detach()


def compare_views(
    teacher: Mapping[str, Tensor], view: str, reference: str, divergence: Divergence | None
) -> Tensor:
    """Return the divergence from the teacher's prediction on one view to that on another."""
    full, logits = get_view(teacher, reference), get_view(teacher, view)
    if logits.shape != full.shape or logits.device != full.device:
        what = f"`teacher[{view!r}]` like `teacher[{reference!r}]`, {describe(full)}"
        raise ValueError(expected(what, describe(logits)))
    return divergence_function(divergence)(logits, full)


def view_saliency(
    teacher: Mapping[str, Tensor], view: str, divergence: Divergence | None
) -> Tensor:
    """Return the divergence from the full view to what is left without `view`."""
    return compare_views(teacher, opposite(view, teacher), FULL, divergence)


def views_with_saliency(teacher: Iterable[str]) -> tuple[str, ...]:
    """Return `full` and the views of which these logits give the saliency."""
    names = tuple(teacher)
    modalities = modalities_of(names)
    views = (*modalities, *(f"~{modality}" for modality in modalities))
    return (FULL, *(view for view in views if opposite(view, names) in names))
