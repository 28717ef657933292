"""A late-fusion network, large as a teacher and small as a student."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.datasets import PAD, Task

TEACHER = {"channels": 32, "embedding": 160, "width": 256}
STUDENT = {"channels": 8, "embedding": 8, "width": 32}


class TwoTowers(nn.Module):
    """A convolutional tower for the picture, a bag of words for the text, a head on both."""

    def __init__(
        self,
        task: Task,
        *,
        channels: int,
        embedding: int,
        width: int,
        word_dropout: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        colours, side = task.train.pixels.shape[1:3]
        self.word_dropout = word_dropout
        self.picture = nn.Sequential(
            *(nn.Conv2d(colours, channels, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(2 * channels * (side // 4) ** 2, width), nn.ReLU()),
        )
        self.words = nn.Embedding(task.words, embedding, padding_idx=PAD)
        self.text = nn.Sequential(nn.Linear(embedding, width), nn.ReLU())
        self.head = nn.Sequential(
            *(nn.Dropout(dropout), nn.Linear(2 * width, width), nn.ReLU()),
            *(nn.Dropout(dropout), nn.Linear(width, task.classes)),
        )

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        text = self.text(self._mean_word(tokens))
        return self.head(torch.cat([self.picture(pixels), text], dim=-1))

    def _mean_word(self, tokens: Tensor) -> Tensor:
        present = tokens != PAD
        if self.training:
            present = present & (torch.rand(tokens.shape, device=tokens.device) > self.word_dropout)
        words = self.words(tokens) * present.unsqueeze(-1)
        return words.sum(1) / present.sum(1, keepdim=True).clamp(min=1)
