"""The teacher's cache: reading it against the teacher that it replaces, and ten million samples.

    python -m benchmarks.cache

The large one has a made-up teacher, so that its build is the cache's own work. Memory is what the
process holds for itself (Linux's RssAnon): pages of mapped files go when they are not needed.
"""

from __future__ import annotations

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
from benchmarks.views import MASKERS, Step, make_batch, transformers
from msdlosses import Fill, KDLoss, ModalityViews, TeacherCache

ROWS, AT_ONCE, READ, CLASSES = 10_000_000, 8192, 64, 23
TABLE = 8 * torch.randn(1009, CLASSES, generator=torch.Generator().manual_seed(0))


def made_up(number: Tensor, other: Tensor) -> Tensor:
    """A teacher whose logits are looked up."""
    return TABLE[(number + other) % len(TABLE)]


def large(path: Path, rows: int = ROWS) -> tuple[TeacherCache, dict[str, Any]]:
    """Build a cache of samples in random order, and read from it: sizes, times, memory."""
    views = ModalityViews(image=Fill(number=0), text=Fill(other=0))
    order = torch.randperm(rows).split(AT_ONCE)
    batches = ({"index": index, "number": index, "other": index} for index in order)
    with private_memory() as memory:
        start = time.perf_counter()
        cache = TeacherCache.build(made_up, views, batches, path)
        built = time.perf_counter() - start
    for index in torch.randint(rows, (10, AT_ONCE)):
        _check(index, cache[index]["image"])
    with private_memory() as reading:
        start = time.perf_counter()
        for index in torch.randint(rows, (1000, READ)):
            cache[index]
        read = (time.perf_counter() - start) / 1000
    return cache, {
        "rows": rows,
        "views x classes": f"{len(views.names)} x {CLASSES}",
        "MB on disk": _megabytes(sum(file.stat().st_size for file in path.iterdir())),
        "shards": len(list(path.glob("*.records"))),
        "build, seconds for a million rows": round(built / rows * 1e6, 3),
        "build, MB of memory": _megabytes(max(memory)),
        f"read of {READ} random rows, microseconds": round(1e6 * read, 1),
        "1000 reads, MB of memory": _megabytes(max(reading)),
    }


def _check(index: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(logits, TABLE[index % len(TABLE)], rtol=2**-10, atol=1e-6)


def largest(path: Path, classes: int = 30522, top_k: int = 64) -> dict[str, Any]:
    """What is lost where the largest logits alone are kept of a vocabulary, by Zipf's law."""
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


def _error(found: Tensor, exact: Tensor) -> float:
    """Relative, the mean over samples."""
    errors = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
    return round(errors.mean().item(), 3)


def reads(cache: TeacherCache, args: Any) -> dict[str, Any]:
    """A read from the large cache, a teacher's forward over as many views, a student's step."""
    device = args.device
    views = ModalityViews(**MASKERS).to(device)
    whole = ModalityViews(**MASKERS, views=("full",)).to(device)
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
    """Bytes that the process holds more than at the start, looked up every few milliseconds."""
    done, start = threading.Event(), _private()
    seen = [0]

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(_private() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
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
