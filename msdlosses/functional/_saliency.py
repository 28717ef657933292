"""How far a teacher's prediction moves when a modality is taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from msdlosses._checks import check_callable, check_views, listing
from msdlosses.functional._divergences import kl_divergence

FULL = "full"


class RowLoss(Protocol):
    """Anything with `rows(student, teacher)`, such as a `DistillationLoss`."""

    def rows(self, student: Tensor, teacher: Tensor) -> Tensor: ...


Divergence = RowLoss | Callable[[Tensor, Tensor], Tensor]


def check_divergence(divergence: object) -> None:
    """A function of logits, or a loss."""
    check_callable("divergence", getattr(divergence, "rows", divergence))


def divergence_rows(divergence: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    """Rows of a divergence that is given as a module or as a function."""
    rows: Any = getattr(divergence, "rows", divergence)
    values: Tensor = rows(student, teacher)
    return values


def modality_saliency(
    teacher: Mapping[str, Tensor], *, divergence: Divergence = kl_divergence
) -> dict[str, Tensor]:
    r"""How far the teacher's prediction moves when a modality is taken away.

    .. math:: s_{nm} = D\bigl(T(x_n)\,\|\,T(x_n^{\sim m})\bigr)

    Args:
        teacher: its logits by view: ``full``, and for each modality ``m`` the view ``~m`` that
            shows everything but ``m``. With just two modalities ``~m`` may be left out: it is
            the view of the other one.
        divergence: a `DistillationLoss`, or a function ``(student, teacher) -> rows``.

    Shape:
        Each view: (N, ..., C). Returns modality -> (N, ...).

    Raises:
        TypeError: ``teacher`` is no mapping of views to logits, ``divergence`` not callable.
        ValueError: no views, logits that are not (N, ..., C).
        KeyError: a view that is needed is not there.

    Example:
        >>> views = {"full": torch.eye(2), "image": torch.eye(2), "text": torch.zeros(2, 2)}
        >>> {m: [round(v, 3) for v in s.tolist()] for m, s in modality_saliency(views).items()}
        {'image': [0.111, 0.111], 'text': [0.0, 0.0]}

    Source: [paper] "saliency scores for each modality"; D, the KL divergence: [ours].
    """
    check_views("teacher", teacher)
    check_divergence(divergence)
    return {
        modality: view_saliency(teacher, modality, divergence=divergence)
        for modality in _modalities(teacher)
    }


def view_saliency(
    teacher: Mapping[str, Tensor], view: str, *, divergence: Divergence = kl_divergence
) -> Tensor:
    """How far the teacher's prediction moves when all that `view` shows is taken away."""
    rest = opposite(view, teacher)
    for needed in (FULL, rest):
        if needed not in teacher:
            raise KeyError(
                f"Expected `teacher` to hold the view `{needed}`, which the saliency of "
                f"`{view}` needs, got {listing(teacher)}."
            )
    whole = teacher[FULL].detach()
    return divergence_rows(divergence, teacher[rest].detach(), whole)


def known_saliencies(teacher: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The views whose saliency these logits tell, and `full`."""
    singles = _modalities(teacher)
    views = (*singles, *(f"~{modality}" for modality in singles))
    return (FULL, *(view for view in views if opposite(view, teacher) in teacher))


def opposite(view: str, views: Iterable[str]) -> str:
    """The name, among `views` where it has two, of the view that shows what `view` hides."""
    negated = view.startswith("~")
    modality = view.removeprefix("~")
    name = modality if negated else f"~{modality}"
    views = tuple(views)
    others = [other for other in _modalities(views) if other != modality]
    if name not in views and len(others) == 1:  # two modalities: ~image is text
        return f"~{others[0]}" if negated else others[0]
    return name


def _modalities(views: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(view.removeprefix("~") for view in views if view != FULL))
