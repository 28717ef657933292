"""Losses on targets, one value per row: what a weighting measures a teacher by."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from msdlosses._checks import check_floating, check_indices, describe, untrue
from msdlosses.functional._rows import widen


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of each row, the classes on the last axis.

    Args:
        logits: of the classes.
        target: class indices.

    Shape:
        ``logits``: (..., C). ``target`` and what is returned: (...).

    Raises:
        TypeError: logits that are no floating-point tensor, a target that is none of integers.
        ValueError: a target of another shape or device.
        IndexError: a target that is no class.

    Example:
        >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]))
        tensor([0.6931])

    Source: [built on] `torch.nn.functional.cross_entropy`, here in float32 or wider.
    """
    check_floating("logits", logits)
    check_indices("target", target, logits.shape[:-1], logits.shape[-1], device=logits.device)
    log_p = F.log_softmax(widen(logits), -1)
    return -log_p.gather(-1, target.long().unsqueeze(-1)).squeeze(-1)


def multilabel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy summed over classes, for labels of which several can hold at once.

    Args:
        logits: of the classes.
        target: scores in [0, 1], such as the shares of annotators who gave an answer.

    Shape:
        ``logits`` and ``target``: (..., C). Returns (...).

    Raises:
        TypeError: logits or scores that are no floating-point tensors.
        ValueError: scores of another shape or device, or outside [0, 1].

    Example:
        >>> multilabel_cross_entropy(torch.zeros(1, 2), torch.tensor([[1.0, 0.3]]))
        tensor([1.3863])

    Source: [built on] the common practice for VQA 2.0, whose scores are soft.
    """
    check_floating("logits", logits)
    check_floating("target", target)
    if target.shape != logits.shape or target.device != logits.device:
        raise ValueError(
            f"Expected `target` as `logits`, {describe(logits)} on {logits.device}, "
            f"got {describe(target)} on {target.device}."
        )
    if untrue((target >= 0) & (target <= 1)):
        raise ValueError("Expected `target` in [0, 1], got scores beyond.")
    logits = widen(logits)
    rows = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return rows.sum(-1)
