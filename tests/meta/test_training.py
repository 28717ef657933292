"""A whole training run with a corrupted teacher: learned weights improve the student."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, AdamW

from msdlosses import Fill, KDLoss, MetaLearner, ModalityViews, MSDLoss, WeightNet

CLASSES, WIDTH, TRAIN, HELD_OUT, TEST, BATCH, EPOCHS = 8, 6, 480, 120, 2000, 48, 30
CORRUPTED = 0.4
VIEWS = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0), ignore=("index",))

Data = tuple[dict[str, Tensor], Tensor]


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([self.image(pixels), self.text(tokens)], 1).relu())
        return logits


class Problem:
    """Classes with two noisy modalities, and a teacher that is wrong on some samples."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.centers = torch.randn(2, CLASSES, WIDTH)
        self.train, self.held_out, self.test = map(self.draw, (TRAIN, HELD_OUT, TEST))
        target = self.train[1]
        corrupted = torch.rand(TRAIN) < CORRUPTED
        predicted = torch.where(corrupted, torch.randint(CLASSES, (TRAIN,)), target)
        self.wrong = predicted != target
        confidence = {"full": 4.0, "image": 3.0, "text": 3.0}
        noise = {view: torch.randn(TRAIN, CLASSES) for view in confidence}
        one_hot = F.one_hot(predicted, CLASSES).float()
        self.teacher = {view: scale * one_hot + noise[view] for view, scale in confidence.items()}

    def draw(self, size: int) -> Data:
        target = torch.randint(CLASSES, (size,))
        pixels, tokens = self.centers[:, target] + 1.2 * torch.randn(2, size, WIDTH)
        return {"pixels": pixels, "tokens": tokens, "index": torch.arange(size)}, target


def shuffled_batches(data: Data) -> Iterator[Data]:
    """Yield batches without end, in a new order in each epoch."""
    batch, target = data
    while True:
        for indices in torch.randperm(len(target)).split(BATCH):
            yield {name: entry[indices] for name, entry in batch.items()}, target[indices]


def training_loss(msd: MSDLoss, problem: Problem, data: Data, model: nn.Module) -> Tensor:
    batch, target = data
    teacher = {view: logits[batch["index"]] for view, logits in problem.teacher.items()}
    loss: Tensor = msd(VIEWS(model, batch), teacher, target)
    return loss


def held_out_loss(data: Data, model: nn.Module) -> Tensor:
    batch, target = data
    return F.cross_entropy(VIEWS(model, batch)["full"], target)


def distill(problem: Problem, weighting: WeightNet | None) -> float:
    """Train a student, learning the weights if there is a weighting; return its test accuracy."""
    student = TwoTowers()
    msd = MSDLoss(KDLoss(2.0), weighting)
    optimizer = AdamW(student.parameters(), 0.01, weight_decay=0.01)
    learner = None
    if weighting is not None:
        weighting_optimizer = Adam(weighting.parameters(), 1e-2)
        learner = MetaLearner(student, optimizer, weighting, weighting_optimizer)
    train, held_out = shuffled_batches(problem.train), shuffled_batches(problem.held_out)
    for _ in range(EPOCHS * TRAIN // BATCH):
        inner = partial(training_loss, msd, problem, next(train))
        outer = partial(held_out_loss, next(held_out))
        if learner is not None:
            learner.step(inner, outer)
        else:
            optimizer.zero_grad()
            inner(student).backward()
            optimizer.step()
    batch, target = problem.test
    with torch.no_grad():
        predicted = VIEWS(student, batch)["full"].argmax(1)
    return (predicted == target).float().mean().item()


def ranking_accuracy(low: Tensor, high: Tensor) -> float:
    """The share of pairs in which a value of `low` is below one of `high`: the AUC."""
    return (low[:, None] < high).float().mean().item()


def test_learned_weights_rank_wrong_predictions_lower_and_improve_the_student() -> None:
    gains = []
    for seed in range(3):
        problem = Problem(seed)
        weighting = WeightNet(VIEWS.names, num_classes=CLASSES)
        torch.manual_seed(seed)
        accuracy = distill(problem, weighting)
        torch.manual_seed(seed)
        gains.append(accuracy - distill(problem, None))
        terms = torch.zeros(TRAIN, 3)
        with torch.no_grad():
            weights = weighting(terms, problem.teacher, problem.train[1], names=VIEWS.names)
        correct, wrong = weights[~problem.wrong], weights[problem.wrong]
        for column in range(3):
            assert ranking_accuracy(wrong[:, column], correct[:, column]) > 0.9
    assert min(gains) > 0.01, gains
