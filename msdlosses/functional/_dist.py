"""Correlation of a teacher's and a student's predictions (DIST)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from msdlosses._checks import check_mask, check_weights
from msdlosses._formulas.dist import dist
from msdlosses._formulas.logits import Temperature, at_temperature
from msdlosses.functional._checks import check_tempered


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    inter: float = 1.0,
    intra: float = 1.0,
    valid: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""Compute one minus the Pearson correlation of predictions, across classes and samples.

    .. math:: \tau^2 \Bigl(\frac \beta N \sum_n \bigl(1 - \rho(q_{n:}, p_{n:})\bigr)
        + \frac \gamma C \sum_c \bigl(1 - \rho(q_{:c}, p_{:c})\bigr)\Bigr), \quad
        p = \mathrm{softmax}(t / \tau),\ q = \mathrm{softmax}(s / \tau)

    Pearson's rho is the inner product of two directions a and b, which are centered and have
    length 1. One minus rho is computed as half their squared distance, which is accurate near 0
    and splits into one share per sample. What is constant up to rounding has no direction: a = 0.

    This loss compares samples with each other: entry n of the result is the share of sample n, and
    the mean over n is the loss of the batch. All leading axes are samples, so positions of a
    sequence are compared across the batch as well.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both marks a class that does not exist.
        temperature: tau, as in `kl_divergence`.
        rescale: multiply by tau squared.
        inter: beta, the weight of the correlation across the classes of a sample, 0 or more.
        intra: gamma, the weight of the correlation across the samples of a class, 0 or more.
        valid: which samples to use; the others are left out of the correlations.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). ``valid``: the shape without ``dim``, or its leading
        axes. Returns the shape without ``dim``.

    Raises:
        TypeError: as for `kl_divergence`, or ``valid`` is not boolean.
        ValueError: as for `kl_divergence`; a weight is negative or both are 0; ``valid`` does not
            fit.
        IndexError: ``dim`` is not an axis of the logits.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        >>> dist_loss(teacher, teacher)
        tensor([0., 0.])

    Source: [built on] Huang et al. 2022, arXiv 2205.10536, section 3; the computation by distances,
    and constant predictions: [ours].
    """
    check_tempered(student, teacher, temperature, dim)
    check_weights(inter=inter, intra=intra)
    if valid is not None:
        check_mask("valid", valid, student, dim)
    divergence = partial(dist, valid=valid, dim=dim, inter=inter, intra=intra)
    return at_temperature(divergence, temperature, rescale=rescale, dim=dim)(student, teacher)
