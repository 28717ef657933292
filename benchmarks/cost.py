"""What a training step of each method of the study costs: time as a ratio to KD's, and memory.

    python -m benchmarks.cost

On hanzi, with the study's networks, batch and optimiser, and the teacher's logits in a cache. MSD
is measured in both forms, with the views stacked in one forward and with each tower run once; and
learned weights where every step learns them, while in the study every fourth does.
"""

from __future__ import annotations

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
    """One step of a student's training, of weights that learn at every step that they do."""
    settings = settings_of(DATASET)[method.partition(",")[0]] | {"every": 1}
    student = Towers(task, **STUDENT, word_dropout=settings["word_dropout"])
    run = Run(
        student=student,
        task=task,
        teacher=cache.__getitem__,
        features=lambda index: features[index],
        held_out=task.validation,  # of which only the time is measured
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
        loss.backward()
        optimizer.step()

    return once


def group(args: Any, folder: Path) -> dict[str, Any]:
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
