"""A late-fusion network, large as a teacher and small as a student."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.datasets import PAD, Task

TEACHER = {"channels": 32, "embedding": 160, "width": 256}
STUDENT = {"channels": 8, "embedding": 8, "width": 32}
NARROW = {**STUDENT, "width": 16}
STUDENTS = {"mfeat": NARROW, "mfeat-six": NARROW}  # of six towers: twice as wide all are alike


class Towers(nn.Module):
    """A tower for each modality, a head on all of them.

    A picture's tower is convolutional, a text's a bag of words, a vector's one layer.
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
                return picture(*entry.shape[1:3], channels, width)
            return nn.Sequential(nn.Linear(entry.shape[1], width), nn.ReLU())

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
        return self.last(self.fuse(**towers))

    def fuse(self, **towers: Tensor) -> Tensor:
        """The features that the last layer is given: (N, width)."""
        return self.hidden(torch.cat(list(towers.values()), dim=-1))


class Words(nn.Module):
    """The mean of the words' embeddings, of which some are missing in training; one layer."""

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
        return self.layer(words.sum(1) / present.sum(1, keepdim=True).clamp(min=1))


def picture(colours: int, side: int, channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(colours, channels, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2 * channels * (side // 4) ** 2, width), nn.ReLU()),
    )
