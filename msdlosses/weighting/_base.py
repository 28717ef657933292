"""The base class of weightings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from msdlosses._checks import check_same_names


class Weighting(nn.Module, ABC):
    """Base class of modules that weight each view of each sample.

    A subclass implements `forward`. It keeps what it learns or measures in parameters and buffers,
    so that this is saved, moved, and compiled with the model.

    Shape:
        Returns (N, K); (K,) for the same weights for all samples; or (N, ..., K) for a weight for
        each position of a sequence.

    Example:
        >>> class Confidence(Weighting):
        ...     def forward(self, terms, teacher, target=None, *, names, valid=None):
        ...         confidence = [teacher[view].softmax(-1).amax(-1) for view in names]
        ...         return torch.stack(confidence, -1).detach()
        >>> Confidence()(torch.zeros(2, 1), {"full": torch.zeros(2, 4)}, names=("full",)).tolist()
        [[0.25], [0.25]]

    Source: [ours].
    """

    @abstractmethod
    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Any],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return the weights of the terms.

        Args:
            terms: the unweighted losses, as means over the positions of each sample, with the
                views as the last axis.
            teacher: logits by view, with the classes as the last axis: tensors, or `LinearLogits`
                if the teacher's are. Views that are not in ``names`` are cues.
            target: the labels; scores for each class have the classes as the last axis too.
            names: the views of the terms, in order.
            valid: which samples, or positions of sequences, are valid in which view. Invalid
                entries of the other arguments may be NaN. The weight of a sample without a valid
                position in a view is not used.

        Shape:
            ``terms``: (N, K). ``valid``: (N, K) or (N, ..., K). Returns (N, K), (K,), or
            (N, ..., K).
        """

    if TYPE_CHECKING:  # torch declares that a call returns Any
        __call__ = forward

    def penalty(self, names: Sequence[str]) -> Tensor | float:
        """Return a cost to add to the term of each view, (K,), or 0.

        `MSDLoss` adds it once for each sample that is valid in the view, or for each position with
        ``average="batch"``.
        """
        return 0.0


def reorder(values: Tensor, names: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Return values by view in another order of the views."""
    check_same_names("a weight", names, wanted)
    if tuple(names) == tuple(wanted):
        return values
    return torch.stack([values[names.index(view)] for view in wanted])
