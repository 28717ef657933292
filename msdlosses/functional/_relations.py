"""Losses that compare how samples, or classes, relate to each other.

Row n is sample n's share: the mean of the rows is the loss of the batch. The leading axes are
all samples, so that the positions of a sequence are compared across the batch as well.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from msdlosses._checks import check_mask, check_pair, check_weights
from msdlosses.functional._rows import (
    Temperature,
    fill,
    per_row,
    soften,
    times_squared,
    widen,
    without_axis,
)


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    valid: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""What lacks to a perfect correlation of the predictions, by samples and by classes.

    .. math:: \tau^2 \Bigl(\frac \beta N \sum_n \bigl(1 - \rho(q_{n:}, p_{n:})\bigr)
        + \frac \gamma C \sum_c \bigl(1 - \rho(q_{:c}, p_{:c})\bigr)\Bigr), \quad
        p = \mathrm{softmax}(t / \tau),\ q = \mathrm{softmax}(s / \tau)

    with Pearson's correlation rho. As rho is the product of two directions a and b, centred and
    of length 1, what lacks is taken as half of their squared distance, which is exact near 0 and
    has a share for every sample. What is constant, up to rounding, has no direction: a is 0.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both stands for a class that does not exist.
        inter: beta, what the correlation over the classes of a sample counts, 0 or more.
        intra: gamma, what the correlation over the samples of a class counts, 0 or more.
        temperature: tau, as in `kl_divergence`.
        rescale: multiply by tau squared.
        valid: which rows count. Others are left out of the correlations too.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). ``valid``: the rows, or their first axes. Returns
        the shape without ``dim``.

    Raises:
        TypeError: as `kl_divergence`; a mask that is not boolean.
        ValueError: as `kl_divergence`; weights that are negative or both 0, a mask that does not
            fit.
        IndexError: ``dim`` is no axis of the logits.

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        >>> dist_loss(teacher, teacher)
        tensor([0., 0.])

    Source: [built on] Huang et al. 2022, arXiv 2205.10536, section 3; the form by distances, and
    what is constant: [ours].
    """
    check_weights(inter=inter, intra=intra)
    student, teacher = soften(student, teacher, temperature, dim)
    rows = without_axis(student, dim)
    counts = _counts(valid, rows, student)
    student, teacher = (fill(_flat(x, dim), counts) for x in (student, teacher))
    exists = counts.unsqueeze(1) & ~((student == -torch.inf) & (teacher == -torch.inf))
    q, p = student.softmax(-1), teacher.softmax(-1)
    share = counts.sum().to(q.dtype) / exists.sum(1).clamp(min=1)  # N / C
    apart = inter * _apart(q, p, exists, 1) + intra * share * _apart(q, p, exists, 0)
    return times_squared(apart.reshape(rows), temperature, rescale)


def rkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    distance: float = 1.0,
    angle: float = 2.0,
    valid: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""How the samples lie to each other: their distances, and the angles of every three.

    .. math:: \lambda_D\, \overline{h\bigl(d^S_{ij} / \mu^S,\ d^T_{ij} / \mu^T\bigr)}
        + \lambda_A\, \overline{h\bigl(\cos \angle^S_{ijk},\ \cos \angle^T_{ijk}\bigr)}

    with Huber's loss h, the mean mu of the distances, and the means over all pairs and triples
    of different samples. Row n holds the pairs that begin, and the angles that lie, at sample n.
    Student and teacher may differ in width. Samples that are the same up to rounding have
    distance 0 and no angle, and get no gradient from each other.

    The angles need N^2 D and N^3 numbers.

    Args:
        student: features.
        teacher: features; detached.
        distance: what the distances count, 0 or more.
        angle: what the angles count, 0 or more.
        valid: which rows count. Others are left out of all pairs too.
        dim: the feature axis.

    Shape:
        ``student``: (..., D), ``teacher``: (..., D'). ``valid``: the rows, or their first axes.
        Returns the shape without ``dim``.

    Raises:
        TypeError: features that are no floating-point tensors, a mask that is not boolean.
        ValueError: leading shapes or devices that differ, weights that are negative or both 0, a
            mask that does not fit.
        IndexError: ``dim`` is no axis of the features.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> rkd_loss(5 * square.flip(1), square).sum() < 1e-6  # turned and grown: the same
        tensor(True)

    Source: [built on] Park et al. 2019, arXiv 1904.05068, section 3.2; means in place of the
    paper's sums, and what coincides: [ours].
    """
    check_weights(distance=distance, angle=angle)
    student, teacher, counts, rows = _samples(student, teacher, valid, dim)
    other = ~torch.eye(len(counts), dtype=torch.bool, device=counts.device)
    pairs = counts.unsqueeze(1) & counts & other
    (q, u), (p, v) = _between(student, pairs), _between(teacher, pairs)
    parts = []
    if distance:
        apart = F.smooth_l1_loss(_relative(q, pairs), _relative(p, pairs), reduction="none")
        parts.append(distance * _mean(apart, pairs))
    if angle:
        triples = pairs.unsqueeze(2) & pairs.unsqueeze(1) & other
        with _uncast(u):
            apart = F.smooth_l1_loss(u @ u.mT, v @ v.mT, reduction="none")
        parts.append(angle * _mean(apart.flatten(1), triples.flatten(1)))
    return torch.stack(parts).sum(0).reshape(rows)


def sp_loss(
    student: Tensor, teacher: Tensor, *, valid: Tensor | None = None, dim: int = -1
) -> Tensor:
    r"""Whether the samples that are alike to the teacher are alike to the student.

    .. math:: \frac 1 {N^2} \|G^T - G^S\|_F^2, \quad
        G_{i:} = \tilde G_{i:} / \|\tilde G_{i:}\|,\ \tilde G = x x^\top

    Row n is the mean square of what its row of G is off. Student and teacher may differ in width.
    The row of a sample whose features are all 0 is 0.

    Args:
        student: features. Those of a map, (N, C, H, W), are to be flattened to (N, D).
        teacher: features; detached.
        valid: which rows count. Others are left out of both axes of G.
        dim: the feature axis.

    Shape:
        ``student``: (..., D), ``teacher``: (..., D'). ``valid``: the rows, or their first axes.
        Returns the shape without ``dim``.

    Raises:
        TypeError: features that are no floating-point tensors, a mask that is not boolean.
        ValueError: leading shapes or devices that differ, a mask that does not fit.
        IndexError: ``dim`` is no axis of the features.

    Example:
        >>> sp_loss(torch.eye(2), torch.ones(2, 1))
        tensor([0.2929, 0.2929])

    Source: [built on] Tung and Mori 2019, arXiv 1907.09682, equations 2 to 4; rows of 0: [ours].
    """
    student, teacher, counts, rows = _samples(student, teacher, valid, dim)
    with _uncast(student):
        likeness = [x @ x.mT for x in (student, teacher)]
    q, p = (_unit(x, 1, torch.finfo(x.dtype).tiny ** 0.25) for x in likeness)
    return ((q - p).square().sum(1) / counts.sum().clamp(min=1)).reshape(rows)


def _apart(q: Tensor, p: Tensor, exists: Tensor, dim: int) -> Tensor:
    """Half the squared distance of the directions over `dim`, as a share of each sample."""
    a, b = (_direction(x, exists, dim) for x in (q, p))
    return 0.5 * (a - b).square().sum(1)


def _direction(values: Tensor, exists: Tensor, dim: int) -> Tensor:
    """Centred and of length 1 over `dim`; 0 where constant up to rounding."""
    kept = values.masked_fill(~exists, 0.0)
    mean = kept.sum(dim, keepdim=True) / exists.sum(dim, keepdim=True).clamp(min=1)
    centred = (kept - mean).masked_fill(~exists, 0.0)
    precision = torch.finfo(values.dtype)
    size = kept.detach().square().sum(dim, keepdim=True).sqrt()
    # The least length is such that its inverse can be squared, for the second derivative.
    return _unit(centred, dim, (16 * precision.eps * size).clamp(min=precision.tiny**0.25))


def _unit(vectors: Tensor, dim: int, least: Tensor | float) -> Tensor:
    length, none = _length(vectors, dim, least)
    return (vectors / length.masked_fill(none, 1.0)).masked_fill(none, 0.0)


def _length(vectors: Tensor, dim: int, least: Tensor | float) -> tuple[Tensor, Tensor]:
    """Euclidean, 0 and without gradient where it is not above `least`; and where that is."""
    square = vectors.square().sum(dim, keepdim=True)
    none = square <= least**2
    return square.masked_fill(none, 1.0).sqrt().masked_fill(none, 0.0), none


def _samples(
    student: Tensor, teacher: Tensor, valid: Tensor | None, dim: int
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """(B, D) and (B, D') of a size around 1, which of them count, and the shape of the rows."""
    check_pair(student, teacher, dim=dim, same_width=False)
    rows = without_axis(student, dim)
    counts = _counts(valid, rows, student)
    student, teacher = (fill(_flat(widen(x), dim), counts) for x in (student, teacher.detach()))
    return student / _size(student), teacher / _size(teacher), counts, rows


def _size(values: Tensor) -> Tensor:
    """A scale that the losses do not depend on: they need no gradient through it."""
    if not values.numel():
        return values.new_ones(())
    largest = values.detach().abs().amax()
    return largest.masked_fill(largest == 0, 1.0)


def _between(samples: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """For every two samples, how far the second is from the first, and in what direction."""
    vectors = samples - samples.unsqueeze(1)
    length, none = _length(vectors, -1, 16 * torch.finfo(samples.dtype).eps)
    none = none | ~pairs.unsqueeze(-1)
    return length.squeeze(-1), (vectors / length.masked_fill(none, 1.0)).masked_fill(none, 0.0)


def _relative(distances: Tensor, pairs: Tensor) -> Tensor:
    """Distances over their mean."""
    mean = distances.masked_fill(~pairs, 0.0).sum() / pairs.sum().clamp(min=1)
    return distances / mean.masked_fill(mean == 0, 1.0)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """The mean of each row over what counts; 0 where nothing does."""
    return values.masked_fill(~counts, 0.0).sum(1) / counts.sum(1).clamp(min=1)


def _counts(valid: Tensor | None, rows: tuple[int, ...], like: Tensor) -> Tensor:
    """Which of the samples count: (B,)."""
    if valid is None:
        return like.new_ones(rows, dtype=torch.bool).flatten()
    check_mask("valid", valid, rows, device=like.device)
    return per_row(valid, len(rows)).expand(rows).flatten()


def _flat(values: Tensor, dim: int) -> Tensor:
    """All axes but the last one, which becomes `dim`, as one: (B, C)."""
    return values.movedim(dim, -1).flatten(0, -2) if values.ndim > 1 else values.unsqueeze(0)


def _uncast(values: Tensor) -> AbstractContextManager[None]:
    """Products stay in full precision under autocast."""
    return torch.autocast(values.device.type, enabled=False)
