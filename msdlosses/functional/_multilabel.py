"""Divergence between a teacher's and a student's multi-label predictions."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from msdlosses._formulas.logits import Temperature, at_temperature
from msdlosses._formulas.multilabel import multilabel_kl, multilabel_kl_derivative
from msdlosses.functional._checks import check_tempered


def multilabel_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    dim: int = -1,
) -> Tensor:
    r"""Compute the sum over classes of binary KL divergences, times tau squared.

    .. math:: \tau^2 \sum_c \mathrm{KL}\bigl(\mathcal B(\sigma(t_c / \tau))
        \,\|\, \mathcal B(\sigma(s_c / \tau))\bigr)

    For multi-label classification, and for targets that are scores in [0, 1].

    Args:
        student: logits.
        teacher: logits; detached.
        temperature: tau, as in `kl_divergence`.
        rescale: multiply by tau squared.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). Returns the shape without ``dim``.

    Raises:
        TypeError, ValueError, IndexError: as for `kl_divergence`.

    Example:
        >>> multilabel_kl_divergence(torch.zeros(2, 5), torch.zeros(2, 5)).tolist()
        [0.0, 0.0]

    Source: [ours].
    """
    check_tempered(student, teacher, temperature, dim)
    return at_temperature(
        partial(multilabel_kl, dim=dim),
        temperature,
        rescale=rescale,
        dim=dim,
        derivative=partial(multilabel_kl_derivative, dim=dim),
    )(student, teacher)
