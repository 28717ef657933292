"""The parts of an `MSDLoss`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MSDParts:
    """An `MSDLoss` and its parts; `MSDLoss.parts` returns it.

    All attributes except `names` and `count` carry the graph.

    Shape:
        N samples and K views; see each attribute.

    Example:
        >>> views = {"full": torch.zeros(4, 3), "text": torch.zeros(4, 3)}
        >>> parts = MSDLoss(KDLoss()).parts(views, views)
        >>> dict(zip(parts.names, parts.weights.mean(0).tolist()))
        {'full': 1.0, 'text': 1.0}

    Source: [ours].
    """

    loss: Tensor
    """The reduced loss, a scalar."""
    terms: Tensor
    """One value per sample and view, (N, K). Invalid entries are 0."""
    weights: Tensor
    """The weight of each term, (N, K). Invalid entries are 0."""
    names: tuple[str, ...]
    """The views, in the order of the last axis."""
    count: Tensor
    """The number of samples with a valid term."""
