"""Sequences of different lengths, padded to the longest, with masks of their valid positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from schemes import CLASSES
from strategies import ViewBatch, make_views
from torch import Tensor

LENGTH = 4
VIEWS = ("full", "image", "text")
TOKENS = torch.tensor(
    [
        [True, True, True, True],
        [True, True, False, False],
        [True, False, False, False],
        [False, False, False, False],
    ]
)
"""True at positions with tokens, False at padding: (N, L)."""
VALID = TOKENS.unsqueeze(-1).repeat(1, 1, 3)
"""True where a position is valid in a view: (N, L, K)."""
VALID[0, :, :2] = False  # a sample without the image, so its full view is invalid too
VALID[1, 1, 2] = False  # a text with an invalid token


def make_sequences() -> ViewBatch:
    """Make views of four samples with logits for each position."""
    return make_views("image", "text", samples=4, classes=CLASSES, positions=(LENGTH,))


def fill_invalid(logits: Mapping[str, Tensor], value: float) -> dict[str, Tensor]:
    """Replace the logits at invalid positions."""
    return {
        view: x.masked_fill(~VALID[..., k, None], value)
        for k, (view, x) in enumerate(logits.items())
    }
