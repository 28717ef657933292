"""The terms of an `MSDLoss`: the views side by side, and their weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from msdlosses._checks import check_that, describe, expected
from msdlosses._masks import (
    any_position,
    insert_positions,
    mean_over_positions,
    unsqueeze_right,
)

Masks = Mapping[str, Tensor | None]
"""The mask of each view, with the leading axes of its logits; None where all is valid."""


def stack_terms(losses: Mapping[str, Tensor], masks: Masks) -> Tensor:
    """Average the losses of each view over the valid positions: (N, K)."""
    terms = [mean_over_positions(values, masks[view]) for view, values in losses.items()]
    return torch.stack(terms, dim=-1)


def stack_masks(masks: Masks) -> Tensor | None:
    """Stack the masks of the views: (N, ..., K); None if everything is valid."""
    some = [mask for mask in masks.values() if mask is not None]
    if not some:
        return None
    ndim = max(mask.ndim for mask in some)
    largest = next(mask for mask in some if mask.ndim == ndim)
    every = [
        largest.new_ones(largest.shape[0]) if mask is None else mask for mask in masks.values()
    ]
    expanded = [unsqueeze_right(mask, ndim).expand_as(largest) for mask in every]
    return torch.stack(expanded, dim=-1)


def unit_weights(terms: Tensor, mask: Tensor | None) -> Tensor:
    """Return weights of 1 for valid terms, and of 0 for others: (N, K)."""
    return torch.ones_like(terms) if mask is None else any_position(mask).to(terms.dtype)


def weighted_terms(
    losses: Mapping[str, Tensor],
    masks: Masks,
    terms: Tensor,
    weights: Tensor,
    left_out: Tensor | None,
) -> Tensor:
    """Weight the terms, or the positions before they are averaged: (N, K)."""
    if weights.ndim <= 2:
        return _product(weights, terms, left_out)
    columns = {}
    for column, (view, values) in enumerate(losses.items()):
        weight = unsqueeze_right(weights[..., column], values.ndim)
        zero = None
        if left_out is not None:
            zero = unsqueeze_right(left_out[..., column], values.ndim)
        columns[view] = _product(weight, values, zero)
    return stack_terms(columns, masks)


def _product(weights: Tensor, values: Tensor, left_out: Tensor | None) -> Tensor:
    product = weights * values
    return product if left_out is None else product.masked_fill(left_out, 0.0)


def zero_invalid_weights(weights: Tensor, mask: Tensor) -> Tensor:
    """Set the weights of invalid samples or positions to 0."""
    if weights.ndim < 2:
        return weights
    valid = any_position(mask) if weights.ndim == 2 else insert_positions(mask, weights.ndim - 1)
    return weights.masked_fill(~valid, 0.0)


def check_weights_fit(weights: object, terms: Tensor, losses: Mapping[str, Tensor]) -> None:
    """Check for weights (K,), (N, K), or (N, ..., K) on the device of the terms."""
    if not isinstance(weights, Tensor):
        raise TypeError(expected("`weighting` to return a tensor", describe(weights)))
    leading = weights.shape[:-1]
    fits = [leading == values.shape[: len(leading)] for values in losses.values()]
    if weights.shape[-1:] != terms.shape[1:] or not all(fits):
        forms = f"{tuple(terms.shape[1:])}, {tuple(terms.shape)}, or one weight per position"
        raise ValueError(expected(f"`weighting` to return {forms}", tuple(weights.shape)))
    what, advice = f"`weighting` to return a tensor on {terms.device}", "Move it with `.to`."
    check_that(what, weights.device == terms.device, weights.device, advice)


def check_one_per_view(name: str, values: Tensor, terms: Tensor) -> None:
    """Check for one value per view: (K,)."""
    if values.shape != terms.shape[1:]:
        what = f"`{name}` of the weighting of shape {tuple(terms.shape[1:])}, one value per view"
        raise ValueError(expected(what, tuple(values.shape)))
