"""What a logger wants to know of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msdlosses.functional._rows import any_position


class WeightStatistics(NamedTuple):
    """The weights of one view in a batch, detached.

    Shape:
        Scalars.

    Example:
        >>> told = WeightStatistics(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(1.2))
        >>> told.mean
        tensor(1.)

    Source: [ours].
    """

    mean: Tensor
    """The mean over the samples."""
    min: Tensor
    """The least."""
    entropy: Tensor
    """Entropy of the samples' shares of the weight in nats, log N where all count alike and 0
    where one sample has all of it."""


def statistics(calls: Sequence[tuple[Mapping[str, Any], Any]]) -> dict[str, WeightStatistics]:
    """Those of the calls of a `Weighting`, by view; none for a module of another kind."""
    columns: dict[str, list[Tensor]] = {}
    for kwargs, weights in calls:
        names = kwargs.get("names")
        if names is None or not isinstance(weights, Tensor) or weights.shape[-1:] != (len(names),):
            return {}
        rows = _rows(weights, kwargs.get("valid"))
        for view, column in zip(names, rows.unbind(1), strict=True):
            columns.setdefault(view, []).append(column[~column.isnan()])
    return {view: _statistics(torch.cat(found)) for view, found in columns.items()}


def _rows(weights: Tensor, valid: Tensor | None) -> Tensor:
    """(N, K), NaN where a weight does not count."""
    if weights.ndim == 1:
        return weights.unsqueeze(0)
    return weights if valid is None else weights.masked_fill(~any_position(valid), float("nan"))


def _statistics(weights: Tensor) -> WeightStatistics:
    share = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    least = weights.min() if weights.numel() else weights.new_tensor(float("nan"))
    return WeightStatistics(weights.mean(), least, torch.special.entr(share).sum())
