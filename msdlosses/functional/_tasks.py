"""Task losses, by which a weighting measures a teacher."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import (
    any_violated,
    check_classes_exist,
    check_floating,
    check_that,
    describe,
    expected,
)
from msdlosses._formulas import tasks
from msdlosses._formulas.logits import upcast


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the cross entropy of each sample; the classes are the last axis.

    Args:
        logits: of the classes.
        target: class indices.

    Shape:
        ``logits``: (..., C). ``target`` and the result: (...).

    Raises:
        TypeError: ``logits`` is not a floating-point tensor, or ``target`` is not an integer one.
        ValueError: ``target`` has the wrong shape or device.
        IndexError: a target is not a class.

    Example:
        >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]))
        tensor([0.6931])

    Source: [built on] `torch.nn.functional.cross_entropy`, here in float32 or wider.
    """
    check_floating("logits", logits)
    check_classes_exist("target", target, logits)
    return tasks.cross_entropy(upcast(logits), target)


def multilabel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the binary cross entropy of each sample, summed over the classes.

    Args:
        logits: of the classes.
        target: scores in [0, 1], such as the share of annotators who gave an answer.

    Shape:
        ``logits`` and ``target``: (..., C). Returns (...).

    Raises:
        TypeError: ``logits`` or ``target`` is not a floating-point tensor.
        ValueError: ``target`` has another shape or device, or scores outside [0, 1].

    Example:
        >>> multilabel_cross_entropy(torch.zeros(1, 2), torch.tensor([[1.0, 0.3]]))
        tensor([1.3863])

    Source: [built on] the common practice for VQA 2.0, whose scores are soft.
    """
    check_floating("logits", logits)
    check_floating("target", target)
    if target.shape != logits.shape or target.device != logits.device:
        what = f"`target` like `logits`, {describe(logits)} on {logits.device}"
        raise ValueError(expected(what, f"{describe(target)} on {target.device}"))
    outside = any_violated((target >= 0) & (target <= 1))
    check_that("`target` in [0, 1]", not outside, "scores outside")
    return tasks.multilabel_cross_entropy(upcast(logits), target)
