"""What a step that learns weights costs: time, memory, against a plain step and `higher`.

    python -m benchmarks.meta [--device cuda] [--rounds 30]

Three students, each with a `WeightNet` on three views, and a held-out batch as large as the
training batch, seen in one view. Every variant takes real steps.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from benchmarks.measure import Variant, arguments, compare, publish
from msdlosses import Fill, KDLoss, MetaLearner, ModalityViews, MSDLoss, WeightNet

SUB, CLASSES, PAD, WORDS = 16, 23, 0, 2000
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

    def forward(self, pixels: Tensor, tokens: Tensor) -> Any:
        return self.layers(torch.cat([pixels, tokens], dim=1))


class Recurrent(nn.Module):
    """A small CNN with batch norm and a bidirectional LSTM: 0.3 million parameters."""

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

    def forward(self, pixels: Tensor, tokens: Tensor) -> Any:
        text = self.text(self.words(tokens))[0].mean(1)
        return self.head(torch.cat([self.image(pixels), text], dim=1))


class Transformer(nn.Module):
    """Four layers of width 256 over patches and words: 3.7 million parameters."""

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

    def forward(self, pixels: Tensor, tokens: Tensor) -> Any:
        joined = torch.cat([self.patches(pixels), self.words(tokens)], dim=1)
        return self.head(self.layers(joined).mean(1))


CASES: dict[str, tuple[type[Any], int, type[Optimizer], dict[str, float]]] = {
    "MLP, SGD": (MLP, 64, SGD, {"momentum": 0.9}),
    "MLP, larger batch, SGD": (MLP, 256, SGD, {"momentum": 0.9}),
    "CNN + BiLSTM, SGD": (Recurrent, 64, SGD, {"momentum": 0.9}),
    "Transformer, SGD": (Transformer, 64, SGD, {"momentum": 0.9}),
    "Transformer, AdamW": (Transformer, 64, AdamW, {}),
}


class Setting:
    """A student on made-up data, and the losses of a step."""

    def __init__(
        self,
        student: type[Any],
        size: int,
        optimizer: type[Optimizer],
        options: dict[str, float],
        device: str,
    ) -> None:
        torch.manual_seed(0)
        self.size = size
        self.student = student().to(device)
        self.views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=PAD))
        self.weights = WeightNet(self.views.names, num_classes=CLASSES).to(device)
        self.msd = MSDLoss(KDLoss(2.0), self.weights)
        self.optimizer = optimizer(self.student.parameters(), 1e-4, **options)
        self.batch, self.held_out = (_to(student.batch(size), device) for _ in range(2))
        self.target, self.unseen = torch.randint(CLASSES, (2, size), device=device)
        self.teacher = {v: torch.randn(size, CLASSES, device=device) for v in self.views.names}

    def inner(self, model: nn.Module, rows: int | None = None) -> Tensor:
        batch = {name: entry[:rows] for name, entry in self.batch.items()}
        teacher = {view: logits[:rows] for view, logits in self.teacher.items()}
        s, target = self.views(model, batch), self.target[:rows]
        return 0.5 * F.cross_entropy(s["full"], target) + 0.5 * self.msd(s, teacher, target)

    def outer(self, model: nn.Module, rows: int | None = None) -> Tensor:
        batch = {name: entry[:rows] for name, entry in self.held_out.items()}
        return F.cross_entropy(model(**batch), self.unseen[:rows])

    def plain(self) -> None:
        """What the loop would do without learning weights."""
        loss = self.inner(self.student)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def learned(self, engine: str, mode: str = "online", *, sub: bool = False) -> Variant:
        """A step of a learner; with `sub`, the weights see a part of both batches."""
        steps = Adam(self.weights.parameters(), 1e-3)
        learner = MetaLearner(
            self.student, self.optimizer, self.weights, steps, engine=engine, mode=mode
        )
        if not sub:
            return lambda: learner.step(self.inner, self.outer)
        probe, outer = partial(self.inner, rows=SUB), partial(self.outer, rows=SUB)
        return lambda: learner.step(self.inner, outer, probe=probe)


def _to(batch: Batch, device: str) -> Batch:
    return {name: entry.to(device) for name, entry in batch.items()}


def variants(setting: Setting) -> dict[str, Variant]:
    """Ways to take a step."""
    return {
        "plain step": setting.plain,
        "higher": setting.learned("higher", "lookahead"),
        "forward": setting.learned("forward"),
        "double-backward": setting.learned("double-backward"),
        "auto": setting.learned("auto"),
        f"auto, {SUB} + {SUB} rows": setting.learned("auto", sub=True),
    }


def group(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The ways to take a step of one student."""
    setting = Setting(*CASES[name], args.device)
    size = sum(p.numel() for p in setting.student.parameters()) / 1e6
    steps = variants(setting)
    return compare(
        f"{name}: {size:.1f} M parameters, batch {setting.size}",
        steps,
        baseline="plain step",
        second="higher",
        device=args.device,
        rounds=args.rounds,
        uncounted=tuple(steps),  # which would hold all that the steps make at once
    )


def main() -> None:
    args = arguments(__doc__)
    publish("meta", [group(name, args) for name in CASES], args)


if __name__ == "__main__":
    main()
