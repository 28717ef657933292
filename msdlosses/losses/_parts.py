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
    """The unweighted mean over the positions of each sample, by view, (N, K).

    Invalid entries are 0.
    """
    weights: Tensor
    """The weights in the shape in which the weighting returns them: (K,), (N, K), or (N, ..., K).

    Weights of invalid samples or positions are 0.
    """
    names: tuple[str, ...]
    """The views, in the order of the last axis."""
    count: Tensor
    """The number that the mean divides by.

    It counts the samples with a valid term or, with ``average="batch"``, the positions that are
    valid in any view.

    ``loss * count`` of several batches or processes adds up to that of all of them.
    """
