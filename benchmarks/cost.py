"""Time, as a ratio to KD, and memory of a training step of each method of the study.

    python -m benchmarks.cost

The data are hanzi. Networks, batch size, and optimizer are those of the study, and a cache holds
the teacher's logits. MSD is measured with stacked views, and with each tower run once per step.
Here every step learns weights, while every fourth step does in the study.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.datasets import Task, load
from benchmarks.full import settings_of
from benchmarks.methods import ALL, EQUAL, KD, Run
from benchmarks.models import STUDENT, TEACHER, Towers
from benchmarks.training import BATCH
from msdlosses import TeacherCache

DATASET = "hanzi"
STACKED = "MSD equal, views stacked"


def step(task: Task, cache: TeacherCache, features: Tensor, method: str) -> Callable[[], None]:
    """Return one step of a student's training, which always updates learned weights."""
    settings = settings_of(DATASET)[method.partition(",")[0]] | {"every": 1}
    student = Towers(task, **STUDENT, word_dropout=settings["word_dropout"])
    run = Run(
        student=student,
        task=task,
        teacher=cache.__getitem__,
        features=lambda index: features[index],
        held_out=task.validation,  # only the time matters here
        settings=settings,
        steps=1000,
        once=method != STACKED,
    )
    objective = ALL[method.partition(",")[0]](run)
    parameters = [*student.parameters(), *run.learned.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-4, fused=True)
    batch, target = next(task.train.batches(BATCH))

    def once() -> None:
        loss = objective(student, batch, target)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return once


def group(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    task = load(DATASET, 0)
    teacher = Towers(task, **TEACHER).eval()
    cache = TeacherCache.build(teacher, task.teacher_views(), task.train.batches(512), folder)
    features = torch.randn(len(task.train), TEACHER["width"])
    names = [name for name in ALL if name in settings_of(DATASET)]
    names.insert(names.index(EQUAL) + 1, STACKED)
    variants = {name: step(task, cache, features, name) for name in names}
    return measure.compare(
        f"a training step on {DATASET}, batch {BATCH}",
        variants,
        baseline=KD,
        rounds=args.rounds,
        uncounted=names,
    )


def main() -> None:
    args = measure.arguments(__doc__)
    args.device = "cpu"
    with TemporaryDirectory() as folder:
        measure.publish("cost", [group(args, Path(folder) / "cache")], args)


if __name__ == "__main__":
    main()
