"""Training with modalities that are dropped at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from msdlosses._batches import Batch, Layout, select
from msdlosses._checks import check_number, check_type
from msdlosses.masking._input import ViewInput
from msdlosses.masking._present import stack_present
from msdlosses.masking._views import ModalityViews


class ModalityDropout(nn.Module):
    """Drop modalities at random in training, for each sample separately, but never all of them.

    A teacher needs it to learn about single modalities, and it is the baseline that
    modality-specific distillation has to beat. In evaluation mode the batch does not change.

    Args:
        views: the views whose maskers are used.
        p: the probability that a modality that a sample has is dropped. A sample that would lose
            all of them keeps one, each with the same probability.

    Shape:
        Takes a batch and returns a batch of the same shapes.

    Raises:
        TypeError: ``views`` is not a `ModalityViews`, ``p`` is not a number, or a batch, or what a
            masker returns, is not a mapping.
        ValueError: ``p`` is outside [0, 1]; a masker does not pass on all entries, or changes one
            that cannot be chosen per sample: a constant, or the shape or dtype of a tensor.

    Example:
        >>> views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0))
        >>> drop = ModalityDropout(views, p=0.5).eval()
        >>> drop({"pixels": torch.ones(1, 1), "tokens": torch.ones(1, 1)})["pixels"].tolist()
        [[1.0]]

    Source: [ours].
    """

    def __init__(self, views: ModalityViews, p: float) -> None:
        super().__init__()
        check_type("views", views, ModalityViews, "a ModalityViews")
        check_number("p", p, "[0, 1]")
        self.views = views
        self.p = float(p)

    def forward(self, batch: Batch, *, present: Mapping[str, Tensor] | None = None) -> Batch:
        """Return the batch with modalities dropped in training, and unchanged otherwise.

        Args:
            batch: the input.
            present: modality -> (N,) of bool, for every modality: which samples have it. A modality
                that a sample lacks stays as it is, and does not count as one that it keeps.
        """
        if not self.training:
            return batch
        layout = self.views.layout(batch)
        dropped = self._draw(self._present(present, layout)).unbind(1)
        for modality, mask in zip(self.views.modalities, dropped, strict=True):
            masked = ViewInput(batch, layout)
            masked.mask(modality, self.views.maskers[modality])
            batch = select(mask, masked.batch, batch, layout)
        return batch

    if TYPE_CHECKING:  # torch declares that a call returns Any
        __call__ = forward

    def _present(self, present: Mapping[str, Tensor] | None, layout: Layout) -> Tensor:
        """Return which modalities the samples have: (N, M)."""
        modalities = self.views.modalities
        if present is not None:
            return stack_present(present, modalities, layout.size)
        shape = (layout.size, len(modalities))
        return torch.ones(shape, dtype=torch.bool, device=layout.device)

    def _draw(self, present: Tensor) -> Tensor:
        """Draw which modalities to drop: (N, M)."""
        drop = (torch.rand(present.shape, device=present.device) < self.p) & present
        # A sample that would lose all that it has keeps one of them.
        draw = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
        spared = torch.zeros_like(drop).scatter(1, draw.argmax(1, keepdim=True), True)
        return drop & ~((drop == present).all(1, keepdim=True) & spared)

    def extra_repr(self) -> str:
        return f"p={self.p}"
