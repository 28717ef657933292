"""A late-fusion network, with the sizes of teacher and student."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from benchmarks.datasets import PAD, Task


class Sizes(TypedDict):
    """The widths of a network's layers."""

    channels: int
    embedding: int
    width: int


TEACHER: Sizes = {"channels": 32, "embedding": 160, "width": 256}
STUDENT: Sizes = {"channels": 8, "embedding": 8, "width": 32}
NARROW: Sizes = {**STUDENT, "width": 16}  # at twice this width, six towers hide all differences
STUDENTS = {"mfeat": NARROW, "mfeat-six": NARROW}


class Towers(nn.Module):
    """An encoder for each modality, its tower, and a fusion head.

    The encoder of an image is convolutional, that of a text is a bag of words, and that of a
    vector is one layer.
    """

    def __init__(
        self,
        task: Task,
        *,
        channels: int,
        embedding: int,
        width: int,
        word_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()

        def tower(name: str, entry: Tensor) -> nn.Module:
            if name == "tokens":
                return Words(task.words, embedding, width, word_dropout)
            if entry.ndim > 2:
                return image_tower(entry.shape[1], entry.shape[2], channels, width)
            return nn.Sequential(nn.Linear(entry.shape[1], width), nn.ReLU())

        self.width = width
        self.entries = {modality: masker.entries[0] for modality, masker in task.maskers.items()}
        inputs = task.train.inputs
        self.each = nn.ModuleDict({m: tower(e, inputs[e]) for m, e in self.entries.items()})
        self.hidden = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(len(self.entries) * width, width), nn.ReLU()
        )
        self.last = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, task.classes))

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.head(**self.towers(**inputs))

    def towers(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {m: tower(inputs[self.entries[m]]) for m, tower in self.each.items()}

    def head(self, **towers: Tensor) -> Tensor:
        logits: Tensor = self.last(self.fuse(**towers))
        return logits

    def fuse(self, **towers: Tensor) -> Tensor:
        """Return the features before the last layer: (N, width)."""
        features: Tensor = self.hidden(torch.cat(list(towers.values()), dim=-1))
        return features


class Words(nn.Module):
    """The mean of the embeddings of a text's words, and one layer.

    Training drops words at random.
    """

    def __init__(self, words: int, embedding: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.words = nn.Embedding(words, embedding, padding_idx=PAD)
        self.layer = nn.Sequential(nn.Linear(embedding, width), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        present = tokens != PAD
        if self.training:
            present = present & (torch.rand(tokens.shape, device=tokens.device) > self.dropout)
        words = self.words(tokens) * present.unsqueeze(-1)
        mean = words.sum(1) / present.sum(1, keepdim=True).clamp(min=1)
        features: Tensor = self.layer(mean)
        return features


def image_tower(colors: int, side: int, channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(colors, channels, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2 * channels * (side // 4) ** 2, width), nn.ReLU()),
    )
