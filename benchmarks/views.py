"""Time of a training step, by how the logits on the views are computed.

    python -m benchmarks.views

The teacher's logits are computed in each step or read from a cache. The student's views take
separate forward passes, one stacked forward pass, or one run of each tower followed by the head.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import measure
from msdlosses import Fill, KDLoss, ModalityViews, MSDLoss, TeacherCache

BATCH, CLASSES = 64, 23
PATCHES, PATCH = 49, 96
WORDS, VOCABULARY, PAD = 32, 1000, 0

Batch = dict[str, Tensor]
Logits = dict[str, Tensor]


class TwoTowers(nn.Module):
    """An encoder for the image, one for the text, and a fusion head."""

    def __init__(self, image: nn.Module, text: nn.Module, width: int) -> None:
        super().__init__()
        self.image = image
        self.text = text
        layers = (nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, CLASSES))
        self.classifier = nn.Sequential(*layers)

    def towers(self, pixels: Tensor, tokens: Tensor) -> Batch:
        return {"image": self.image(pixels), "text": self.text(tokens)}

    def head(self, image: Tensor, text: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.cat([image, text], -1))
        return logits

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.head(**self.towers(pixels, tokens))


class Transformer(nn.Module):
    """A Transformer encoder that returns the mean over positions."""

    def __init__(self, embed: nn.Module, width: int, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.embed = embed
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, entry: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(self.embed(entry))
        return encoded.mean(1)


def transformers(width: int, layers: int) -> TwoTowers:
    image = Transformer(nn.Linear(PATCH, width), width, layers)
    return TwoTowers(image, Transformer(nn.Embedding(VOCABULARY, width), width, layers), width)


def perceptrons(width: int, layers: int) -> TwoTowers:
    def tower(*first: nn.Module) -> nn.Module:
        hidden = [m for _ in range(layers) for m in (nn.ReLU(), nn.Linear(width, width))]
        return nn.Sequential(*first, *hidden)

    words = nn.EmbeddingBag(VOCABULARY, width, mode="mean")
    return TwoTowers(tower(nn.Flatten(), nn.Linear(PATCHES * PATCH, width)), tower(words), width)


class Step:
    """A step of the student's training: the loss, its gradient, and the optimizer's step."""

    def __init__(self, student: nn.Module, batch: Batch, target: Tensor) -> None:
        self.student, self.batch, self.target = student, batch, target
        self.optimizer = torch.optim.AdamW(student.parameters(), 1e-4)

    def __call__(
        self,
        student: Callable[[], Logits],
        teacher: Callable[[], Logits],
        criterion: Callable[[Logits, Logits], Tensor],
    ) -> None:
        with torch.no_grad():
            teacher_logits = teacher()
        logits = student()
        loss = F.cross_entropy(logits["full"], self.target) + criterion(logits, teacher_logits)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()


def group(
    title: str, teacher: TwoTowers, student: TwoTowers, folder: Path, args: argparse.Namespace
) -> dict[str, Any]:
    device = args.device
    teacher, student = teacher.to(device).eval(), student.to(device)
    whole, views = make_views(device, views=("full",)), make_views(device)
    separate = make_views(device, views_per_forward=1)
    entries, target = make_batch(BATCH, device)
    cache = TeacherCache.build(teacher, views, [entries], folder)
    index = torch.randperm(BATCH)
    step = Step(student, entries, target)
    kd, msd = KDLoss(2.0), MSDLoss(KDLoss(2.0))

    def cached() -> Logits:
        return {v: logits.to(device, non_blocking=True) for v, logits in cache[index].items()}

    def towers_once() -> Logits:
        return views.late_fusion(student.towers, student.head, entries)

    def kd_step(teacher_logits: Callable[[], Logits]) -> None:
        step(lambda: whole(student, entries), teacher_logits, lambda s, t: kd(s["full"], t["full"]))

    variants: dict[str, measure.Variant] = {
        "KD, live teacher": lambda: kd_step(lambda: whole(teacher, entries)),
        "KD, cached teacher": lambda: kd_step(cached),
        "MSD, live teacher, stacked": lambda: step(
            lambda: views(student, entries), lambda: views(teacher, entries), msd
        ),
        "MSD, cached, separate": lambda: step(lambda: separate(student, entries), cached, msd),
        "MSD, cached, stacked": lambda: step(lambda: views(student, entries), cached, msd),
        "MSD, cached, towers once": lambda: step(towers_once, cached, msd),
    }
    sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
    title = f"{title}, batch {BATCH}, {CLASSES} classes, {sizes[0]:,} and {sizes[1]:,} parameters"
    return measure.compare(
        title,
        variants,
        baseline="KD, cached teacher",
        second="KD, live teacher",
        device=device,
        rounds=args.rounds,
    )


def make_views(
    device: str, *, views: Sequence[str] | None = None, views_per_forward: int | None = None
) -> ModalityViews:
    return ModalityViews(
        image=Fill(pixels=0.0),
        text=Fill(tokens=PAD),
        views=views,
        views_per_forward=views_per_forward,
    ).to(device)


def make_batch(size: int, device: str) -> tuple[Batch, Tensor]:
    pixels = torch.randn(size, PATCHES, PATCH, device=device)
    tokens = torch.randint(1, VOCABULARY, (size, WORDS), device=device)
    return {"pixels": pixels, "tokens": tokens}, torch.randint(CLASSES, (size,), device=device)


def main() -> None:
    args = measure.arguments(__doc__)
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        pairs = {
            "two-tower Transformer": (transformers(256, 4), transformers(128, 2)),
            "two-tower MLP": (perceptrons(1024, 2), perceptrons(64, 2)),
        }
        groups = [
            group(title, *models, Path(folder) / title, args) for title, models in pairs.items()
        ]
    measure.publish("views", groups, args)


if __name__ == "__main__":
    main()
