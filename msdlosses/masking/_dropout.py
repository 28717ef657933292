"""Training with modalities that are dropped at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from msdlosses._batches import Batch, select
from msdlosses._checks import check_number, check_type
from msdlosses.masking._views import ModalityViews


class ModalityDropout(nn.Module):
    """Drop modalities at random in training, for each sample separately, but never all of them.

    A teacher needs it to learn about single modalities, and it is the baseline that
    modality-specific distillation has to beat. In evaluation mode the batch does not change.

    Args:
        views: the views whose maskers are used.
        p: the probability that a modality is dropped. A sample that would lose all modalities
            keeps one, drawn at random.

    Shape:
        Takes a batch and returns a batch of the same shapes.

    Raises:
        TypeError: ``views`` is not a `ModalityViews`, ``p`` is not a number, or a batch, or what a
            masker returns, is not a mapping.
        ValueError: ``p`` is outside [0, 1], or a masker does not pass on all entries.

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
        self.p = p

    def forward(self, batch: Batch) -> Batch:
        """Return the batch with modalities dropped in training, and unchanged otherwise."""
        if not self.training:
            return batch
        dropped = self._draw(*self.views.size_and_device(batch)).unbind(1)
        for modality, mask in zip(self.views.modalities, dropped, strict=True):
            batch = select(mask, self.views._without(modality, batch), batch)
        return batch

    if TYPE_CHECKING:  # torch declares that a call returns Any
        __call__ = forward

    def _draw(self, size: int, device: torch.device) -> Tensor:
        """Draw which modalities to drop: (N, M)."""
        count = len(self.views.modalities)
        drop = torch.rand(size, count, device=device) < self.p
        last = torch.rand(size, count, device=device).argmax(1, keepdim=True)
        spared = torch.zeros_like(drop).scatter(1, last, True)
        return drop & ~(drop.all(1, keepdim=True) & spared)

    def extra_repr(self) -> str:
        return f"p={self.p}"
