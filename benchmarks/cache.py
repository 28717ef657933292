"""Time and memory of the teacher cache, against the teacher, and with ten million samples.

    python -m benchmarks.cache

The teacher of the large cache is a lookup, so that the build measures the cache. Memory is
RssAnon, which only Linux reports. It excludes mapped files, whose pages the system can drop.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.views import Step, make_batch, make_views, transformers
from msdlosses import Fill, KDLoss, ModalityViews, TeacherCache

ROWS, BATCH, READ, CLASSES = 10_000_000, 8192, 64, 23
TABLE = 8 * torch.randn(1009, CLASSES, generator=torch.Generator().manual_seed(0))


def lookup_teacher(number: Tensor, other: Tensor) -> Tensor:
    return TABLE[(number + other) % len(TABLE)]


def large(path: Path, rows: int = ROWS) -> tuple[TeacherCache, dict[str, Any]]:
    """Build a cache of samples in random order, read from it, and return it with measurements."""
    views = ModalityViews(image=Fill(number=0), text=Fill(other=0))
    order = torch.split(torch.randperm(rows), BATCH)
    batches = ({"index": index, "number": index, "other": index} for index in order)
    with private_memory() as build_memory:
        start = time.perf_counter()
        cache = TeacherCache.build(lookup_teacher, views, batches, path)
        build_time = time.perf_counter() - start
    for index in torch.randint(rows, (10, BATCH)):
        _check(index, cache[index]["image"])
    with private_memory() as read_memory:
        start = time.perf_counter()
        for index in torch.randint(rows, (1000, READ)):
            cache[index]
        read_time = (time.perf_counter() - start) / 1000
    return cache, {
        "rows": rows,
        "views x classes": f"{len(views.names)} x {CLASSES}",
        "MB on disk": _megabytes(sum(file.stat().st_size for file in path.iterdir())),
        "shards": len(list(path.glob("*.records"))),
        "build, seconds for a million rows": round(build_time / rows * 1e6, 3),
        "build, MB of memory": _megabytes(max(build_memory)),
        f"read of {READ} random rows, microseconds": round(1e6 * read_time, 1),
        "1000 reads, MB of memory": _megabytes(max(read_memory)),
    }


def _check(index: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(logits, TABLE[index % len(TABLE)], rtol=2**-10, atol=1e-6)


def largest(path: Path, classes: int = 30522, top_k: int = 64) -> dict[str, Any]:
    """Measure the error from keeping only the largest logits of a vocabulary with Zipf's law."""
    zipf = -1.2 * torch.arange(1, classes + 1).log().repeat(READ, 1) + torch.randn(READ, classes)
    logits = torch.stack([row[torch.randperm(classes)] for row in zipf])
    views = ModalityViews(image=Fill(number=0), text=Fill(other=0), views=("full",))
    batch = {"number": torch.zeros(READ), "other": torch.zeros(READ)}
    cache = TeacherCache.build(lambda number, other: logits, views, [batch], path, top_k=top_k)
    read, student = cache[torch.arange(READ)]["full"], logits + torch.randn_like(logits)
    errors = {
        f"top {top_k} of {classes}, error of KD's gradient at temperature {t:g}": _error(
            _gradient(student, read, t), _gradient(student, logits, t)
        )
        for t in (1.0, 2.0)
    }
    size = (next(path.glob("*.records")).stat().st_size - 4096) / READ  # without the header
    return {f"top {top_k} of {classes}, bytes a sample": round(size), **errors}


def _gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    student = student.clone().requires_grad_()
    loss = KDLoss(temperature, reduction="sum")(student, teacher)
    return torch.autograd.grad(loss, student)[0]


def _error(approximate: Tensor, exact: Tensor) -> float:
    """Return the mean relative error of the samples."""
    errors = torch.linalg.vector_norm(approximate - exact, dim=-1)
    relative = errors / torch.linalg.vector_norm(exact, dim=-1)
    return round(float(relative.mean()), 3)


def reads(cache: TeacherCache, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a read from the large cache, the teacher's forward pass, and a student's step."""
    device = args.device
    views, whole = make_views(device), make_views(device, views=("full",))
    teacher, student = transformers(256, 4).to(device).eval(), transformers(128, 2).to(device)
    entries, target = make_batch(READ, device)
    step, kd = Step(student, entries, target), KDLoss(2.0)
    logits = {view: torch.randn(READ, CLASSES, device=device) for view in views.names}

    def read() -> None:
        for values in cache[torch.randint(len(cache), (READ,))].values():
            values.to(device)

    def forward() -> None:
        with torch.no_grad():
            views(teacher, entries)

    def learn() -> None:
        step(lambda: whole(student, entries), lambda: logits, lambda s, t: kd(s["full"], t["full"]))

    return measure.compare(
        f"a batch of {READ}: the cache against a two-tower Transformer over three views",
        {"teacher's forward": forward, "student's step of KD": learn, "cache": read},
        baseline="teacher's forward",
        second="student's step of KD",
        device=device,
        rounds=args.rounds,
    )


@contextmanager
def private_memory() -> Iterator[list[int]]:
    """Record every few milliseconds how many more bytes the process holds than at the start."""
    done, start = threading.Event(), _private()
    growth = [0]

    def watch() -> None:
        while not done.wait(0.005):
            growth.append(_private() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        done.set()
        thread.join()


def _private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _megabytes(size: int) -> float:
    return round(size / 1e6, 1)


def main() -> None:
    args = measure.arguments(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        cache, notes = large(Path(folder) / "large")
        notes |= largest(Path(folder) / "largest")
        groups = [reads(cache, args)]
        measure.publish("cache", groups, args, notes=notes)


if __name__ == "__main__":
    main()
