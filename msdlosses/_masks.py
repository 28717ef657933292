"""Masks of samples and positions, and means over what they keep."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Shaped(Protocol):
    """A tensor, or logits that are computed where they are needed."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def ndim(self) -> int: ...
    @property
    def device(self) -> torch.device: ...


def leading_shape(logits: Shaped, dim: int) -> tuple[int, ...]:
    """Return the shape without the class axis: that of the per-sample losses."""
    axis = dim % logits.ndim
    return (*logits.shape[:axis], *logits.shape[axis + 1 :])


def unsqueeze_right(values: Tensor, ndim: int) -> Tensor:
    """Append axes of length 1, so that values of the leading axes broadcast over `ndim` axes."""
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def zero_invalid(values: Tensor, valid: Tensor) -> Tensor:
    """Set invalid entries to 0, whatever they are: 0 * NaN would be NaN."""
    return values.masked_fill(~unsqueeze_right(valid, values.ndim), 0.0)


def zero_invalid_target(target: Tensor, valid: Tensor) -> Tensor:
    """Set invalid class indices to 0, if the target has the axes of the mask."""
    if not isinstance(target, Tensor) or target.shape[: valid.ndim] != valid.shape:
        return target  # the loss that uses it raises the error
    return target.masked_fill(~unsqueeze_right(valid, target.ndim), 0)


def intersect(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Combine two masks by `and`. None is a mask of ones; one mask may have fewer axes."""
    if left is None or right is None:
        return right if left is None else left
    ndim = max(left.ndim, right.ndim)
    return unsqueeze_right(left, ndim) & unsqueeze_right(right, ndim)


def reduce_mask(valid: Tensor, ndim: int) -> Tensor:
    """Drop trailing axes of a mask: an entry is valid if anything along them is."""
    return valid if valid.ndim <= ndim else valid.flatten(ndim).any(-1)


def insert_positions(values: Tensor, ndim: int) -> Tensor:
    """Insert axes of length 1 before the views: (N, ..., K), to `ndim` axes and the views."""
    return values.reshape(*values.shape[:-1], *(1,) * (ndim + 1 - values.ndim), values.shape[-1])


def outside_inference(tensor: Any) -> Any:
    """Copy a tensor of `torch.inference_mode`, which autograd cannot keep for a backward pass."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return tensor
    return tensor.clone() if isinstance(tensor, Tensor) and tensor.is_inference() else tensor


def any_position(valid: Tensor) -> Tensor:
    """Return whether any position of a sample is valid in a view: (N, ..., K) -> (N, K)."""
    return valid if valid.ndim == 2 else valid.flatten(1, -2).any(1)


def mean_over_positions(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Average over the valid positions of each sample: (N, ...) -> (N,).

    Invalid entries of `values` must be 0. A sample without valid positions gets 0.
    """
    if values.ndim == 1:
        return values
    values = values.flatten(1)
    if valid is None:
        return values.sum(1) / max(values.shape[1], 1)
    positions = valid.flatten(1) if valid.ndim > 1 else valid.unsqueeze(1)
    count = positions.sum(1) * (values.shape[1] // max(positions.shape[1], 1))
    return values.sum(1) / count.clamp(min=1)


def mean_over_valid(values: Tensor, valid: Tensor | None) -> Tensor:
    """Average as `mean_over_positions`, where invalid entries may be anything, even NaN."""
    if valid is None:
        return mean_over_positions(values)
    valid = reduce_mask(valid, values.ndim)
    return mean_over_positions(zero_invalid(values, valid), valid)
