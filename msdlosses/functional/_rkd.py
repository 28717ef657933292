"""Relational knowledge distillation (RKD)."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import check_mask, check_pair, check_weights
from msdlosses._formulas.logits import upcast_pair
from msdlosses._formulas.rkd import rkd


def rkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    distance: float = 1.0,
    angle: float = 2.0,
    valid: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""Match pairwise distances and triplet angles between samples.

    .. math:: \lambda_D\, \overline{h\bigl(d^S_{ij} / \mu^S,\ d^T_{ij} / \mu^T\bigr)}
        + \lambda_A\, \overline{h\bigl(\cos \angle^S_{ijk},\ \cos \angle^T_{ijk}\bigr)}

    with the Huber loss h, the mean distance mu, and means over all pairs and triplets of different
    samples. Entry n of the result averages the pairs that start, and the angles with their vertex,
    at sample n. Student and teacher may differ in width. Samples that coincide up to rounding have
    distance 0 and no angle, and get no gradient from each other.

    The angles need memory for N^2 D and N^3 numbers. All leading axes are samples.

    Args:
        student: features.
        teacher: features; detached.
        distance: the weight of the distances, 0 or more.
        angle: the weight of the angles, 0 or more.
        valid: which samples to use; the others are left out of all pairs.
        dim: the feature axis.

    Shape:
        ``student``: (..., D), ``teacher``: (..., D'). ``valid``: the shape without ``dim``, or its
        leading axes. Returns the shape without ``dim``.

    Raises:
        TypeError: features are not floating-point tensors, or ``valid`` is not boolean.
        ValueError: leading shapes or devices differ; a weight is negative or both are 0; ``valid``
            does not fit.
        IndexError: ``dim`` is not an axis of the features.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> rkd_loss(5 * square.flip(1), square).sum() < 1e-6  # the same up to scale and rotation
        tensor(True)

    Source: [built on] Park et al. 2019, arXiv 1904.05068, section 3.2; means instead of sums, and
    samples that coincide: [ours].
    """
    check_pair(student, teacher, dim=dim, same_width=False)
    check_weights(distance=distance, angle=angle)
    if valid is not None:
        check_mask("valid", valid, student, dim)
    pair = upcast_pair(student, teacher)
    return rkd(*pair, valid, dim=dim, distance=distance, angle=angle)
