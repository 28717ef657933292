"""Kullback-Leibler divergences between a teacher's and a student's predictions."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from msdlosses._checks import check_number
from msdlosses._formulas.kl import kl, kl_derivative, reverse_kl, reverse_kl_derivative
from msdlosses._formulas.logits import Temperature, at_temperature
from msdlosses.functional._checks import check_tempered


def kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    standardize: bool = False,
    skew: float = 0.0,
    dim: int = -1,
) -> Tensor:
    r"""Compute the KL divergence from the teacher's to the student's softmax, times tau squared.

    .. math:: \tau^2 \sum_c p_c (\log p_c - \log m_c), \quad m = \alpha p + (1 - \alpha) q, \quad
        p = \mathrm{softmax}(t / \tau),\ q = \mathrm{softmax}(s / \tau)

    By default the skew alpha is 0, so that m = q.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both marks a class that does not exist.
        temperature: tau, above 0: a number, or a tensor with one value or one value per sample.
        rescale: multiply by tau squared. The gradient of the plain divergence shrinks with tau
            squared; the factor keeps the balance with other losses when tau changes.
        standardize: first shift and scale the logits of each sample to mean 0 and standard
            deviation 1 over the classes that exist, so that the student matches the shape of the
            teacher's logits but not their scale. A deviation below 0.01 counts as 0.01, which
            bounds the gradient of constant logits.
        skew: alpha, in [0, 1). With a positive skew the divergence stays finite where the student
            rules out a class: at most ``-log(alpha)`` times tau squared.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). ``temperature``: () or the leading axes of the
        result. Returns the shape without ``dim``.

    Raises:
        TypeError: logits are not floating-point tensors, or an option has the wrong type.
        ValueError: shapes or devices differ, ``temperature`` is not positive or does not fit, or
            ``skew`` is outside [0, 1).
        IndexError: ``dim`` is not an axis of the logits.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> kl_divergence(logits, logits, temperature=4.0)
        tensor([0.])

    Source: [built on] Hinton et al. 2015, arXiv 1503.02531, section 2; ``skew``: Ko et al. 2024,
    arXiv 2402.03898, section 3.1; ``standardize``: Sun et al. 2024, arXiv 2403.01878,
    algorithm 1; its smallest deviation: [ours].
    """
    check_tempered(student, teacher, temperature, dim)
    check_number("skew", skew, "[0, 1)")
    constant = not isinstance(temperature, Tensor)
    return at_temperature(
        partial(kl, dim=dim, skew=skew, constant_teacher=constant),
        temperature,
        rescale=rescale,
        dim=dim,
        standardize=standardize,
        derivative=partial(kl_derivative, dim=dim, skew=skew),
    )(student, teacher)


def reverse_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    skew: float = 0.0,
    dim: int = -1,
) -> Tensor:
    r"""Compute the KL divergence from the student's to the teacher's softmax, times tau squared.

    .. math:: \tau^2 \sum_c q_c (\log q_c - \log m_c), \quad m = \alpha q + (1 - \alpha) p

    It is mode-seeking: the student pays for probability where the teacher has almost none, and
    little for modes that it leaves out. It is infinite where a teacher logit of ``-inf`` rules
    out a class that the student does not rule out; a skew makes it finite.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both marks a class that does not exist.
        temperature: tau, as in `kl_divergence`.
        rescale: multiply by tau squared.
        skew: alpha, in [0, 1).
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). Returns the shape without ``dim``.

    Raises:
        TypeError, ValueError, IndexError: as for `kl_divergence`.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -20.0]])
        >>> reverse_kl_divergence(student, teacher) > kl_divergence(student, teacher)
        tensor([True])

    Source: [built on] Gu et al. 2024, arXiv 2306.08543, section 2.1; ``skew``: Ko et al. 2024,
    arXiv 2402.03898, section 3.1; the sum over all classes instead of samples from the student:
    [ours].
    """
    check_tempered(student, teacher, temperature, dim)
    check_number("skew", skew, "[0, 1)")
    return at_temperature(
        partial(reverse_kl, dim=dim, skew=skew),
        temperature,
        rescale=rescale,
        dim=dim,
        derivative=partial(reverse_kl_derivative, dim=dim, skew=skew),
    )(student, teacher)
