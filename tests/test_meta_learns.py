"""A teacher of which two fifths of the predictions are wrong: learned weights find out which."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, AdamW

from msdlosses import Fill, KDLoss, MetaLearner, ModalityViews, MSDLoss, WeightNet

CLASSES, WIDTH, TRAIN, HELD_OUT, TEST, BATCH, EPOCHS = 8, 6, 480, 120, 2000, 48, 30
WRONG = 0.4
Data = tuple[dict[str, Tensor], Tensor]


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([self.image(pixels), self.text(tokens)], 1).relu())
        return logits


VIEWS = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0), ignore=("index",))


class Problem:
    """Two noisy modalities of a class, and a teacher that is corrupted on some samples."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.centre = torch.randn(2, CLASSES, WIDTH)
        self.train, self.held_out, self.test = map(self.draw, (TRAIN, HELD_OUT, TEST))
        self.wrong = torch.rand(TRAIN) < WRONG
        said = torch.where(self.wrong, torch.randint(CLASSES, (TRAIN,)), self.train[1])
        self.wrong &= said != self.train[1]
        sure = {"full": 4.0, "image": 3.0, "text": 3.0}
        noise = {view: torch.randn(TRAIN, CLASSES) for view in sure}
        one_hot = F.one_hot(said, CLASSES).float()
        self.teacher = {view: size * one_hot + noise[view] for view, size in sure.items()}

    def draw(self, size: int) -> Data:
        target = torch.randint(CLASSES, (size,))
        pixels, tokens = self.centre[:, target] + 1.2 * torch.randn(2, size, WIDTH)
        return {"pixels": pixels, "tokens": tokens, "index": torch.arange(size)}, target


def batches(data: Data, size: int) -> Iterator[Data]:
    """Without end, shuffled anew each time round."""
    batch, target = data
    while True:
        for rows in torch.randperm(len(target)).split(size):
            yield {name: entry[rows] for name, entry in batch.items()}, target[rows]


def distil(problem: Problem, weighting: WeightNet | None) -> float:
    """The student's test accuracy."""
    student = TwoTowers()
    msd = MSDLoss(KDLoss(2.0), weighting)
    optimizer = AdamW(student.parameters(), 0.01, weight_decay=0.01)
    learner = None
    if weighting is not None:
        steps = Adam(weighting.parameters(), 1e-2)
        learner = MetaLearner(student, optimizer, weighting, steps)
    train, held_out = batches(problem.train, BATCH), batches(problem.held_out, BATCH)
    for _ in range(EPOCHS * TRAIN // BATCH):
        (batch, target), (unseen, unseen_target) = next(train), next(held_out)
        teacher = {view: logits[batch["index"]] for view, logits in problem.teacher.items()}

        def inner(
            model: nn.Module,
            batch: dict[str, Tensor] = batch,
            target: Tensor = target,
            teacher: dict[str, Tensor] = teacher,
        ) -> Tensor:
            return msd(VIEWS(model, batch), teacher, target)

        def outer(
            model: nn.Module, batch: dict[str, Tensor] = unseen, target: Tensor = unseen_target
        ) -> Tensor:
            return F.cross_entropy(VIEWS(model, batch)["full"], target)

        if learner is not None:
            learner.step(inner, outer)
        else:
            optimizer.zero_grad()
            inner(student).backward()
            optimizer.step()
    with torch.no_grad():
        logits = VIEWS(student, problem.test[0])["full"]
    return (logits.argmax(1) == problem.test[1]).float().mean().item()


def area(low: Tensor, high: Tensor) -> float:
    """Under the curve: how often a weight of `low` is below one of `high`."""
    return (low[:, None] < high).float().mean().item()


def test_learned_weights_tell_a_corrupted_teacher_and_the_student_gains() -> None:
    gains = []
    for seed in range(3):
        problem = Problem(seed)
        weighting = WeightNet(VIEWS.names, num_classes=CLASSES)
        torch.manual_seed(seed)
        learned = distil(problem, weighting)
        torch.manual_seed(seed)
        gains.append(learned - distil(problem, None))
        terms = torch.zeros(TRAIN, 3)
        with torch.no_grad():
            weights = weighting(terms, problem.teacher, problem.train[1], names=VIEWS.names)
        clean, wrong = weights[~problem.wrong], weights[problem.wrong]
        for column in range(3):
            assert area(wrong[:, column], clean[:, column]) > 0.9
    assert min(gains) > 0.01, gains
