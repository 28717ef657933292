"""Saliency: how much a teacher's prediction depends on each modality."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from msdlosses._checks import check_views
from msdlosses._formulas.saliency import Divergence, check_divergence, view_saliency
from msdlosses._linear import LOGITS, Logits
from msdlosses._views import modalities_of


def modality_saliency(
    teacher: Mapping[str, Logits], *, divergence: Divergence | None = None
) -> dict[str, Tensor]:
    r"""Measure how far the teacher's prediction moves when a modality is taken away.

    .. math:: s_{nm} = D\bigl(T(x_n)\,\|\,T(x_n^{\sim m})\bigr)

    Args:
        teacher: logits or `LinearLogits` by view: ``full``, and for each modality ``m`` the view
            ``~m`` that shows everything except ``m``. With only two modalities ``~m`` can be left
            out, because it is the view of the other modality.
        divergence: D: a `DistillationLoss`, or a function ``(student, teacher) -> values`` that
            does not reduce. None is the KL divergence at temperature 1.

    Shape:
        Each view: (N, ..., C). Returns modality -> (N, ...).

    Raises:
        TypeError: ``teacher`` is not a mapping from views to logits, or ``divergence`` is not
            callable.
        ValueError: there are no views, or logits are not (N, ..., C).
        KeyError: a view is missing.

    Example:
        >>> views = {"full": torch.eye(2), "image": torch.eye(2), "text": torch.zeros(2, 2)}
        >>> {m: [round(v, 3) for v in s.tolist()] for m, s in modality_saliency(views).items()}
        {'image': [0.111, 0.111], 'text': [0.0, 0.0]}

    Source: [paper] "saliency scores for each modality"; the KL divergence as D: [ours].
    """
    check_views("teacher", teacher, LOGITS)
    check_divergence(divergence)
    return {
        modality: view_saliency(teacher, modality, divergence)
        for modality in modalities_of(teacher)
    }
