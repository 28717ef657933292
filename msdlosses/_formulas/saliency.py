"""Saliency of a view: how far a teacher's prediction moves when the view is taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, cast

from torch import Tensor

from msdlosses._checks import check_callable, check_that, expected, join_names
from msdlosses._formulas.kl import kl
from msdlosses._formulas.logits import upcast_pair
from msdlosses._linear import Logits, constant, map_rows
from msdlosses._views import FULL, modalities_of, opposite, view_names


class PerSampleLoss(Protocol):
    """Anything with `per_sample(student, teacher)`, such as a `DistillationLoss`."""

    def per_sample(self, student: Tensor, teacher: Tensor) -> Tensor: ...


Divergence = PerSampleLoss | Callable[[Tensor, Tensor], Tensor]

# In chunks, if the loss has a `chunk_size`; a class of its own may have only the second method.
METHODS = ("_all_per_sample", "per_sample")


def check_divergence(divergence: object, *, last: bool = False) -> None:
    """Check for a loss, a function of two predictions, or None.

    Weightings get the classes as the last axis, whatever the `dim` of the criterion.
    """
    dim = getattr(divergence, "dim", -1)
    check_that("a `divergence` with `dim` = -1 in a weighting", not last or dim == -1, dim)
    check_callable("divergence", _as_function(divergence), optional=True)


def divergence_function(divergence: Divergence | None) -> Callable[[Logits, Logits], Tensor]:
    """Return `(student, teacher) -> per-sample values`; None is KL at temperature 1."""
    if hasattr(divergence, METHODS[0]):
        return cast(Callable[[Logits, Logits], Tensor], _as_function(divergence))
    function = _kl_at_temperature_1 if divergence is None else _as_function(divergence)
    return partial(map_rows, function)


def _as_function(divergence: object) -> Any:
    methods = (getattr(divergence, name, None) for name in METHODS)
    return next(filter(None, methods), divergence)


def _kl_at_temperature_1(student: Tensor, teacher: Tensor) -> Tensor:
    return kl(*upcast_pair(student, teacher), dim=-1, constant_teacher=True)


def get_view(teacher: Mapping[str, Logits], view: str) -> Logits:
    """Return the teacher's logits on a view, detached."""
    if view not in view_names(teacher):
        raise KeyError(expected(f"`teacher` to hold `{view}`", join_names(view_names(teacher))))
    return constant(teacher[view])


def compare_views(
    teacher: Mapping[str, Logits], view: str, reference: str, divergence: Divergence | None
) -> Tensor:
    """Return the divergence from the teacher's prediction on one view to that on another."""
    full, logits = get_view(teacher, reference), get_view(teacher, view)
    if logits.shape != full.shape or logits.device != full.device:
        what = f"`teacher[{view!r}]` like `teacher[{reference!r}]`, {tuple(full.shape)} on"
        got = f"{tuple(logits.shape)} on {logits.device}"
        raise ValueError(expected(f"{what} {full.device}", got))
    return divergence_function(divergence)(logits, full)


def view_saliency(
    teacher: Mapping[str, Logits], view: str, divergence: Divergence | None
) -> Tensor:
    """Return the divergence from the full view to what is left without `view`."""
    return compare_views(teacher, opposite(view, teacher), FULL, divergence)


def views_with_saliency(teacher: Iterable[str]) -> tuple[str, ...]:
    """Return `full` and the views of which these logits give the saliency."""
    modalities = modalities_of(teacher)
    views = (*modalities, *(f"~{modality}" for modality in modalities))
    return (FULL, *(view for view in views if opposite(view, teacher) in view_names(teacher)))
