"""Divergences and saliency as functions without state: one value per row, never reduced.

Logits in half precision are computed, and come back, in float32. The teacher gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from msdlosses._checks import check_number, check_pair, check_views, listing

__all__ = ["kl_divergence", "modality_saliency", "multilabel_kl_divergence"]

FULL = "full"


class RowLoss(Protocol):
    """Anything with `rows(student, teacher)`, such as a `DistillationLoss`."""

    def rows(self, student: Tensor, teacher: Tensor) -> Tensor: ...


Divergence = RowLoss | Callable[[Tensor, Tensor], Tensor]


def divergence_rows(divergence: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    """Rows of a divergence that is given as a module or as a function."""
    rows: Any = getattr(divergence, "rows", divergence)
    values: Tensor = rows(student, teacher)
    return values


def kl_divergence(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, dim: int = -1
) -> Tensor:
    r"""Softmax Kullback-Leibler divergence from the teacher to the student, times tau squared.

    .. math:: \tau^2 \sum_c p_c (\log p_c - \log q_c), \quad
        p = \mathrm{softmax}(t / \tau),\ q = \mathrm{softmax}(s / \tau)

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` stands for a class that does not exist.
        temperature: tau, above 0. The factor tau squared keeps the size of the gradient
            as tau grows.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). Returns the shape without ``dim``.

    Raises:
        TypeError: logits that are no floating-point tensors, a temperature that is no number.
        ValueError: shapes or devices that differ, a temperature that is not above 0.
        IndexError: ``dim`` is no axis of the logits.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> kl_divergence(logits, logits, temperature=4.0)
        tensor([0.])

    Source: [built on] Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    student, teacher = _scaled(student, teacher, temperature, dim)
    elements = _kl_elements(F.log_softmax(student, dim), F.log_softmax(teacher, dim))
    return _kl_rows(elements, temperature, dim)


def multilabel_kl_divergence(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, dim: int = -1
) -> Tensor:
    r"""Sum over classes of the divergence between two Bernoulli variables, times tau squared.

    .. math:: \tau^2 \sum_c \mathrm{KL}\bigl(\mathcal B(\sigma(t_c / \tau))
        \,\|\, \mathcal B(\sigma(s_c / \tau))\bigr)

    For targets of which several can hold at once, and for soft scores in [0, 1].

    Args:
        student: logits.
        teacher: logits; detached.
        temperature: tau, above 0.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). Returns the shape without ``dim``.

    Raises:
        TypeError: logits that are no floating-point tensors, a temperature that is no number.
        ValueError: shapes or devices that differ, a temperature that is not above 0.
        IndexError: ``dim`` is no axis of the logits.

    Example:
        >>> kl = multilabel_kl_divergence(torch.zeros(2, 5), torch.zeros(2, 5))
        >>> kl.tolist()
        [0.0, 0.0]

    Source: [ours].
    """
    student, teacher = _scaled(student, teacher, temperature, dim)
    present = _kl_elements(F.logsigmoid(student), F.logsigmoid(teacher))
    absent = _kl_elements(F.logsigmoid(-student), F.logsigmoid(-teacher))
    return _kl_rows(present + absent, temperature, dim)


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
        TypeError: ``teacher`` is no mapping of views to logits.
        ValueError: no views, logits that are not (N, ..., C).
        KeyError: a view that is needed is not there.

    Example:
        >>> views = {"full": torch.eye(2), "image": torch.eye(2), "text": torch.zeros(2, 2)}
        >>> {m: [round(v, 3) for v in s.tolist()] for m, s in modality_saliency(views).items()}
        {'image': [0.111, 0.111], 'text': [0.0, 0.0]}

    Source: [paper] "saliency scores for each modality"; D, the KL divergence: [ours].
    """
    check_views("teacher", teacher)
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


def _scaled(
    student: Tensor, teacher: Tensor, temperature: float, dim: int
) -> tuple[Tensor, Tensor]:
    check_pair(student, teacher, dim=dim)
    check_number("temperature", temperature, above=0)
    # The cast comes first: autocast would leave log_softmax of bf16 logits in bf16.
    return widen(student) / temperature, widen(teacher.detach()) / temperature


def widen(logits: Tensor) -> Tensor:
    """Logits in half precision as float32, all others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _kl_elements(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Elements `q - p + p (log p - log q)`, each of them at least 0 but for rounding.

    `q - p` sums to nothing over a distribution, but makes equal rows exactly 0, with a gradient
    of exactly 0, and near-equal rows accurate. The difference of logarithms counts only where p
    does: elsewhere it may be -inf - -inf.
    """
    p, q = log_p.exp(), log_q.exp()
    return q - p + p * (log_p - log_q).masked_fill(p == 0, 0.0)


def _kl_rows(elements: Tensor, temperature: float, dim: int) -> Tensor:
    """Their sum times tau squared; what rounding leaves below 0 becomes 0, its gradient stays."""
    rows = elements.sum(dim) * temperature**2
    return rows - rows.detach().clamp(max=0)


def per_sample(rows: Tensor) -> Tensor:
    """One value per sample: the mean over further axes, (N, ...) -> (N,)."""
    if rows.ndim == 1:
        return rows
    rows = rows.flatten(1)
    return rows.sum(1) / max(rows.shape[1], 1)


def column(values: Tensor, like: Any) -> Tensor:
    """`values` with trailing axes of length 1, so that it broadcasts over `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
