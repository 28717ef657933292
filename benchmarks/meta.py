"""Time and memory of a training step with learned weights, against a plain step and `higher`.

    python -m benchmarks.meta [--device cuda] [--rounds 30]

The students have a `WeightNet` on three views. The held-out batch is as large as the training
batch, and used in one view. All variants update the students.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from benchmarks.measure import Variant, arguments, compare, publish
from msdlosses import Fill, KDLoss, MetaLearner, ModalityViews, MSDLoss, WeightNet

SUBSET, CLASSES, PAD, WORDS = 16, 23, 0, 2000
Batch = dict[str, Tensor]


class MLP(nn.Module):
    """One million parameters on two vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(512, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, CLASSES)
        )

    @staticmethod
    def batch(size: int) -> Batch:
        return {"pixels": torch.randn(size, 256), "tokens": torch.randn(size, 256)}

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.cat([pixels, tokens], dim=1))
        return logits


class Recurrent(nn.Module):
    """A small CNN with batch norm and a bidirectional LSTM, with 0.3 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.words = nn.Embedding(WORDS, 64, padding_idx=PAD)
        self.text = nn.LSTM(64, 96, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64 + 192, CLASSES)

    @staticmethod
    def batch(size: int) -> Batch:
        pixels = torch.randn(size, 3, 32, 32)
        return {"pixels": pixels, "tokens": torch.randint(1, WORDS, (size, 16))}

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        text = self.text(self.words(tokens))[0].mean(1)
        logits: Tensor = self.head(torch.cat([self.image(pixels), text], dim=1))
        return logits


class Transformer(nn.Module):
    """Four layers of width 256 on patches and words, with 3.7 million parameters."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.patches = nn.Linear(48, width)
        self.words = nn.Embedding(WORDS, width, padding_idx=PAD)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    @staticmethod
    def batch(size: int) -> Batch:
        pixels = torch.randn(size, 4, 48)
        return {"pixels": pixels, "tokens": torch.randint(1, WORDS, (size, 6))}

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        sequence = torch.cat([self.patches(pixels), self.words(tokens)], dim=1)
        logits: Tensor = self.head(self.layers(sequence).mean(1))
        return logits


Student = MLP | Recurrent | Transformer
MakeOptimizer = Callable[[Iterator[Parameter]], Optimizer]

sgd = partial(SGD, lr=1e-4, momentum=0.9)
adamw = partial(AdamW, lr=1e-4)
CASES: dict[str, tuple[type[Student], int, MakeOptimizer]] = {
    "MLP, SGD": (MLP, 64, sgd),
    "MLP, larger batch, SGD": (MLP, 256, sgd),
    "CNN + BiLSTM, SGD": (Recurrent, 64, sgd),
    "Transformer, SGD": (Transformer, 64, sgd),
    "Transformer, AdamW": (Transformer, 64, adamw),
}


class Setting:
    """A student on random data, and the losses of a step."""

    def __init__(
        self, student: type[Student], size: int, make_optimizer: MakeOptimizer, device: str
    ) -> None:
        torch.manual_seed(0)
        self.size = size
        self.student = student().to(device)
        self.views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=PAD))
        self.weights = WeightNet(self.views.names, num_classes=CLASSES).to(device)
        self.msd = MSDLoss(KDLoss(2.0), self.weights)
        self.optimizer = make_optimizer(self.student.parameters())
        self.batch, self.held_out = (_to(student.batch(size), device) for _ in range(2))
        self.target, self.held_out_target = torch.randint(CLASSES, (2, size), device=device)
        self.teacher = {v: torch.randn(size, CLASSES, device=device) for v in self.views.names}

    def inner(self, model: nn.Module, size: int | None = None) -> Tensor:
        batch = {name: entry[:size] for name, entry in self.batch.items()}
        teacher = {view: logits[:size] for view, logits in self.teacher.items()}
        student, target = self.views(model, batch), self.target[:size]
        distilled = self.msd(student, teacher, target)
        return 0.5 * F.cross_entropy(student["full"], target) + 0.5 * distilled

    def outer(self, model: nn.Module, size: int | None = None) -> Tensor:
        batch = {name: entry[:size] for name, entry in self.held_out.items()}
        return F.cross_entropy(model(**batch), self.held_out_target[:size])

    def plain(self) -> None:
        """Take a step without learning weights."""
        loss = self.inner(self.student)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()

    def learned(self, engine: str, mode: str = "online", *, subset: bool = False) -> Variant:
        """Return a step of a learner that looks ahead on whole batches, or on a subset of them."""
        adam = Adam(self.weights.parameters(), 1e-3)
        learner = MetaLearner(
            self.student, self.optimizer, self.weights, adam, engine=engine, mode=mode
        )
        if not subset:
            return lambda: learner.step(self.inner, self.outer)
        probe, outer = partial(self.inner, size=SUBSET), partial(self.outer, size=SUBSET)
        return lambda: learner.step(self.inner, outer, probe=probe)


def _to(batch: Batch, device: str) -> Batch:
    return {name: entry.to(device) for name, entry in batch.items()}


def variants(setting: Setting) -> dict[str, Variant]:
    """Return the ways to take a step."""
    return {
        "plain step": setting.plain,
        "higher": setting.learned("higher", "lookahead"),
        "forward": setting.learned("forward"),
        "double-backward": setting.learned("double-backward"),
        "auto": setting.learned("auto"),
        f"auto, {SUBSET} + {SUBSET} rows": setting.learned("auto", subset=True),
    }


def group(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the ways to take a step of one student."""
    setting = Setting(*CASES[name], args.device)
    millions = sum(p.numel() for p in setting.student.parameters()) / 1e6
    steps = variants(setting)
    return compare(
        f"{name}: {millions:.1f} M parameters, batch {setting.size}",
        steps,
        baseline="plain step",
        second="higher",
        device=args.device,
        rounds=args.rounds,
        uncounted=tuple(steps),  # counting would keep all tensors of a step alive
    )


def main() -> None:
    args = arguments(__doc__)
    publish("meta", [group(name, args) for name in CASES], args)


if __name__ == "__main__":
    main()
