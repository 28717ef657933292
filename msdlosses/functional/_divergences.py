"""Divergences between a teacher's and a student's predictions, at a temperature.

All are sums of the same elements, `_kl_elements`, which makes each of them exactly 0, with a
gradient of exactly 0, where student and teacher agree.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from msdlosses._checks import check_indices, check_pair, check_weights, check_within
from msdlosses.functional._rows import Temperature, soften, times_squared, widen, without_axis

LOWEST = -1e30
"""A logit that is as good as -inf, but of which differences are numbers."""
LEAST_DEVIATION = 1e-2
"""Of logits that are standardised: those that spread less are treated as if they spread so."""


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
    r"""Softmax Kullback-Leibler divergence from the teacher to the student, times tau squared.

    .. math:: \tau^2 \sum_c p_c (\log p_c - \log m_c), \quad m = \alpha p + (1 - \alpha) q, \quad
        p = \mathrm{softmax}(t / \tau),\ q = \mathrm{softmax}(s / \tau)

    The skew alpha is 0 unless set, and m is q.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both stands for a class that does not exist.
        temperature: tau, above 0: a number, a tensor of one value, or one value per row.
        rescale: multiply by tau squared. The gradient of the bare divergence falls with tau
            squared, so that with the factor a loss keeps its place beside others as tau changes.
        standardize: first subtract from each row of logits its mean and divide by its standard
            deviation, over the classes that exist. The student then has to match the shape of
            the teacher's logits, and not their size. A deviation below 0.01 counts as 0.01, so
            that constant logits have a gradient of bounded size.
        skew: alpha, in [0, 1). Above 0 the divergence is finite also where the student rules a
            class out, at most ``-log(alpha)`` times tau squared.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). ``temperature``: () or the first axes of the rows.
        Returns the rows: the shape without ``dim``.

    Raises:
        TypeError: logits that are no floating-point tensors, options of the wrong kind.
        ValueError: shapes or devices that differ, a temperature that is not above 0 or does not
            fit, a skew outside [0, 1).
        IndexError: ``dim`` is no axis of the logits.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> kl_divergence(logits, logits, temperature=4.0)
        tensor([0.])

    Source: [built on] Hinton et al. 2015, arXiv 1503.02531, section 2; the skew: Ko et al. 2024,
    arXiv 2402.03898, section 3.1; the standardisation: Sun et al. 2024, arXiv 2403.01878,
    algorithm 1; its least deviation: [ours].
    """
    check_skew(skew)
    if standardize:
        check_pair(student, teacher, dim=dim)
        student, teacher = (_standardized(widen(x), dim) for x in (student, teacher))
    log_q, log_p = _log_softmax(student, teacher, temperature, dim)
    log_m = _log_mixture(log_p, log_q, skew) if skew else log_q
    # A temperature that is a tensor may be learned, by the teacher's predictions as well.
    constant = not isinstance(temperature, Tensor)
    elements = _kl_elements_of_constant if constant else _kl_elements
    return _rows(elements(log_m, log_p), temperature, rescale, dim)


def reverse_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    skew: float = 0.0,
    dim: int = -1,
) -> Tensor:
    r"""Kullback-Leibler divergence from the student to the teacher, times tau squared.

    .. math:: \tau^2 \sum_c q_c (\log q_c - \log m_c), \quad m = \alpha q + (1 - \alpha) p

    It seeks the teacher's modes: a student pays for what the teacher holds unlikely, and little
    for what it leaves out. It is infinite where the teacher, with a logit of ``-inf``, rules a
    class out that the student does not; with a skew it is finite.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both stands for a class that does not exist.
        temperature: tau, as in `kl_divergence`.
        rescale: multiply by tau squared.
        skew: alpha, in [0, 1).
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). Returns the shape without ``dim``.

    Raises:
        TypeError, ValueError, IndexError: as `kl_divergence`.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -20.0]])
        >>> reverse_kl_divergence(student, teacher) > kl_divergence(student, teacher)
        tensor([True])

    Source: [built on] Gu et al. 2024, arXiv 2306.08543, section 2.1; the skew: Ko et al. 2024,
    arXiv 2402.03898, section 3.1; that a whole row is summed and not sampled: [ours].
    """
    check_skew(skew)
    log_q, log_p = _log_softmax(student, teacher, temperature, dim)
    log_m = _log_mixture(log_q, log_p, skew) if skew else log_p
    return _rows(_kl_elements(log_m, log_q), temperature, rescale, dim)


def js_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 0.5,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    normalize: bool = False,
    dim: int = -1,
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence, between the two directions of Kullback-Leibler's.

    .. math:: \tau^2 \bigl(\beta\, \mathrm{KL}(p \| m) + (1 - \beta)\, \mathrm{KL}(q \| m)\bigr),
        \quad m = \beta p + (1 - \beta) q

    It vanishes towards both ends, there in proportion to a divergence of Kullback-Leibler:

    .. math:: \mathrm{JSD}_\beta / \beta \to \mathrm{KL}(p \| q), \ \beta \to 0; \qquad
        \mathrm{JSD}_\beta / (1 - \beta) \to \mathrm{KL}(q \| p), \ \beta \to 1

    These limits are what beta = 0 and beta = 1 stand for. With ``normalize`` the divergence is
    divided by beta (1 - beta), and goes over into them without a jump.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both stands for a class that does not exist.
        beta: in [0, 1]; the teacher's share in m. 0.5 is the symmetric divergence, at most log 2.
        temperature: tau, as in `kl_divergence`.
        rescale: multiply by tau squared.
        normalize: divide by beta (1 - beta), so that the size of loss and gradient does not
            hang on beta. It makes the symmetric divergence 4 times as large.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). Returns the shape without ``dim``.

    Raises:
        TypeError, IndexError: as `kl_divergence`.
        ValueError: as `kl_divergence`; ``beta`` outside [0, 1].

    Example:
        >>> student, teacher = torch.tensor([[0.0, -1e4]]), torch.tensor([[-1e4, 0.0]])
        >>> js_divergence(student, teacher)  # log 2: they have nothing in common
        tensor([0.6931])

    Source: [built on] Agarwal et al. 2024, arXiv 2306.13649, equation 1; its two ends as the
    limits that are named there, and ``normalize``: [ours].
    """
    check_within("beta", beta, 0, 1)
    log_q, log_p = _log_softmax(student, teacher, temperature, dim)
    if beta == 0:
        return _rows(_kl_elements(log_q, log_p), temperature, rescale, dim)
    if beta == 1:
        return _rows(_kl_elements(log_p, log_q), temperature, rescale, dim)
    log_m = _log_mixture(log_p, log_q, beta)
    parts = beta * _kl_elements(log_m, log_p) + (1 - beta) * _kl_elements(log_m, log_q)
    rows = _rows(parts, temperature, rescale, dim)
    return rows / (beta * (1 - beta)) if normalize else rows


def multilabel_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    dim: int = -1,
) -> Tensor:
    r"""Sum over classes of the divergence between two Bernoulli variables, times tau squared.

    .. math:: \tau^2 \sum_c \mathrm{KL}\bigl(\mathcal B(\sigma(t_c / \tau))
        \,\|\, \mathcal B(\sigma(s_c / \tau))\bigr)

    For targets of which several can hold at once, and for soft scores in [0, 1].

    Args:
        student: logits.
        teacher: logits; detached.
        temperature: tau, as in `kl_divergence`.
        rescale: multiply by tau squared.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). Returns the shape without ``dim``.

    Raises:
        TypeError, ValueError, IndexError: as `kl_divergence`.

    Example:
        >>> kl = multilabel_kl_divergence(torch.zeros(2, 5), torch.zeros(2, 5))
        >>> kl.tolist()
        [0.0, 0.0]

    Source: [ours].
    """
    student, teacher = soften(student, teacher, temperature, dim)
    present = _kl_elements(F.logsigmoid(student), F.logsigmoid(teacher))
    absent = _kl_elements(F.logsigmoid(-student), F.logsigmoid(-teacher))
    return _rows(present + absent, temperature, rescale, dim)


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    dim: int = -1,
) -> Tensor:
    r"""Decoupled distillation: of the target against the rest, and of the rest among itself.

    .. math:: \tau^2 \bigl(\alpha\, \mathrm{KL}(b^T \| b^S)
        + \beta\, \mathrm{KL}(\hat p \| \hat q) \bigr), \\
        b^T = (p_y, 1 - p_y),\ b^S = (q_y, 1 - q_y)

    where the hats are the softmax over the classes other than the target y. With alpha = 1 and a
    beta of 1 - p_y, the row's own, it would be `kl_divergence`. The second part is 0 where there
    is but one other class, and where the teacher or the student rules all others out.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both stands for a class that does not exist.
        target: class indices.
        alpha: what the target's part counts, 0 or more.
        beta: what the part of the other classes counts, 0 or more.
        temperature: tau, as in `kl_divergence`.
        rescale: multiply by tau squared.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). ``target``: the shape without ``dim``, which is
        that of the rows that are returned.

    Raises:
        TypeError: as `kl_divergence`; a target that is no tensor of integers.
        ValueError: as `kl_divergence`; weights that are negative or both 0, a target of another
            shape or device.
        IndexError: a target that is no class, ``dim`` that is no axis of the logits.

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> dkd_loss(student, teacher, torch.tensor([0]), alpha=0.0)  # the others are alike
        tensor([0.])

    Source: [built on] Zhao et al. 2022, arXiv 2203.08679, section 3; the rows that have no second
    part: [ours].
    """
    check_weights(alpha=alpha, beta=beta)
    student, teacher = soften(student, teacher, temperature, dim)
    rows = without_axis(student, dim)
    check_indices("target", target, rows, student.shape[dim], device=student.device)
    index = target.long().unsqueeze(dim)
    parts = []  # a weight of 0 leaves its part out: 0 times infinity would be NaN
    if alpha:
        parts.append(alpha * _of_target(student, teacher, index, dim))
    if beta:
        parts.append(beta * _of_others(student, teacher, index, dim))
    return _finished(torch.stack(parts).sum(0), temperature, rescale)


def check_skew(skew: float) -> None:
    """A share in [0, 1)."""
    check_within("skew", skew, 0, 1)
    if skew == 1:
        raise ValueError("Expected `skew` below 1, where nothing is left to compare, got 1.")


def _log_softmax(
    student: Tensor, teacher: Tensor, temperature: Temperature, dim: int
) -> tuple[Tensor, Tensor]:
    student, teacher = soften(student, teacher, temperature, dim)
    return F.log_softmax(student, dim), F.log_softmax(teacher, dim)


def _standardized(logits: Tensor, dim: int) -> Tensor:
    """Of mean 0 and deviation 1 over the classes that exist."""
    missing = logits == -torch.inf
    count = (~missing).sum(dim, keepdim=True).clamp(min=1)
    kept = logits.masked_fill(missing, 0.0)
    centred = (kept - kept.sum(dim, keepdim=True) / count).masked_fill(missing, 0.0)
    variance = centred.square().sum(dim, keepdim=True) / count
    deviation = variance.clamp(min=LEAST_DEVIATION**2).sqrt()
    return (centred / deviation).masked_fill(missing, -torch.inf)


def _log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(w p + (1 - w) q), and exactly log p where the two are the same.

    The larger of the two goes in front, so that what is added to it is small: a logarithm of
    -1e5 in front would leave its rounding behind.
    """
    log_p, log_q = log_p.clamp(min=LOWEST), log_q.clamp(min=LOWEST)
    apart = log_q - log_p
    ahead = apart > 0  # q is
    odds = apart.new_full((), log(weight / (1 - weight)))
    odds = torch.where(ahead, odds, -odds)
    behind = torch.where(ahead, -apart, apart)  # at most 0: no overflow
    more = _softplus(behind + odds) - _softplus(odds)
    return torch.where(ahead, log_q, log_p) + more


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); linear only where that is exact."""
    return F.softplus(x, threshold=80.0)


def _of_target(student: Tensor, teacher: Tensor, index: Tensor, dim: int) -> Tensor:
    """The divergence of a Bernoulli variable: whether it is the target."""
    log_q, log_p = F.log_softmax(student, dim), F.log_softmax(teacher, dim)
    hit = _kl_elements(log_q.gather(dim, index), log_p.gather(dim, index))
    # Of the logarithms, not as 1 - p, which would round to 0.
    rest = [x.scatter(dim, index, LOWEST).logsumexp(dim, keepdim=True) for x in (log_q, log_p)]
    return (hit + _kl_elements(*rest)).squeeze(dim)


def _of_others(student: Tensor, teacher: Tensor, index: Tensor, dim: int) -> Tensor:
    """The divergence over the classes other than the target."""
    student, teacher = (x.scatter(dim, index, -torch.inf) for x in (student, teacher))
    none = [(x == -torch.inf).all(dim, keepdim=True) for x in (student, teacher)]
    student, teacher = (x.masked_fill(none[0] | none[1], 0.0) for x in (student, teacher))
    elements = _kl_elements(F.log_softmax(student, dim), F.log_softmax(teacher, dim))
    return elements.sum(dim)


def _kl_elements(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Elements `q - p + p (log p - log q)`, each of them at least 0 but for rounding.

    `q - p` sums to nothing over a distribution, but makes equal rows exactly 0, with a gradient
    of exactly 0, and near-equal rows accurate. The difference of logarithms counts only where p
    does: elsewhere it may be -inf - -inf. What no derivative needs is overwritten.
    """
    p, q = log_p.exp(), log_q.exp()
    apart = (log_p - log_q).masked_fill_(p == 0, 0.0)
    return apart.mul_(p).add_(q.sub(p))


def _kl_elements_of_constant(log_q: Tensor, log_p: Tensor) -> Tensor:
    """`_kl_elements` where `p` has no derivative: without a mask, and in fewer passes.

    No derivative hangs on the difference of logarithms then, so 0 times infinity is overwritten
    in the products, behind autograd's back. A NaN of the logits is still in `q - p`.
    """
    minus_p, q = log_p.exp().neg_(), log_q.exp()
    products = (log_q - log_p).mul_(minus_p)
    with torch.no_grad():
        if torch.compiler.is_compiling():  # Inductor looks for NaN one element at a time
            products.masked_fill_(minus_p == 0, 0.0)
        else:
            products.nan_to_num_(0.0, torch.inf, -torch.inf)
    return products.add_(q.add(minus_p))


def _rows(elements: Tensor, temperature: Temperature, rescale: bool, dim: int) -> Tensor:
    return _finished(elements.sum(dim), temperature, rescale)


def _finished(rows: Tensor, temperature: Temperature, rescale: bool) -> Tensor:
    """Times tau squared; what rounding leaves below 0 becomes 0, its gradient stays."""
    return times_squared(rows - rows.detach().clamp(max=0), temperature, rescale)
