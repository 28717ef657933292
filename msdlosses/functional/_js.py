"""Generalized Jensen-Shannon divergence between a teacher's and a student's predictions."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from msdlosses._checks import check_number
from msdlosses._formulas.js import js, js_derivative
from msdlosses._formulas.logits import Temperature, at_temperature
from msdlosses.functional._checks import check_tempered


def js_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    beta: float = 0.5,
    normalize: bool = False,
    dim: int = -1,
) -> Tensor:
    r"""Compute the generalized Jensen-Shannon divergence, times tau squared.

    .. math:: \tau^2 \bigl(\beta\, \mathrm{KL}(p \| m) + (1 - \beta)\, \mathrm{KL}(q \| m)\bigr),
        \quad m = \beta p + (1 - \beta) q

    It vanishes as beta approaches 0 or 1, in proportion to a KL divergence:

    .. math:: \mathrm{JSD}_\beta / \beta \to \mathrm{KL}(p \| q), \ \beta \to 0; \qquad
        \mathrm{JSD}_\beta / (1 - \beta) \to \mathrm{KL}(q \| p), \ \beta \to 1

    At beta = 0 and beta = 1 the function returns these limits. With ``normalize`` the divergence
    is divided by beta (1 - beta), so that it approaches them continuously.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both marks a class that does not exist.
        temperature: tau, as in `kl_divergence`.
        rescale: multiply by tau squared.
        beta: in [0, 1]; the teacher's share of m. At 0.5 the divergence is symmetric, and at most
            log 2.
        normalize: divide by beta (1 - beta), so that the scale of the loss and its gradient does
            not depend on beta. This makes the symmetric divergence four times as large.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). Returns the shape without ``dim``.

    Raises:
        TypeError, IndexError: as for `kl_divergence`.
        ValueError: as for `kl_divergence`, or ``beta`` is outside [0, 1].

    Example:
        >>> student, teacher = torch.tensor([[0.0, -1e4]]), torch.tensor([[-1e4, 0.0]])
        >>> js_divergence(student, teacher)  # log 2: they have no class in common
        tensor([0.6931])

    Source: [built on] Agarwal et al. 2024, arXiv 2306.13649, equation 1; the limits at both ends
    and ``normalize``: [ours].
    """
    check_tempered(student, teacher, temperature, dim)
    check_number("beta", beta, "[0, 1]")
    return at_temperature(
        partial(js, dim=dim, beta=beta, normalize=normalize),
        temperature,
        rescale=rescale,
        dim=dim,
        derivative=partial(js_derivative, dim=dim, beta=beta, normalize=normalize),
    )(student, teacher)
