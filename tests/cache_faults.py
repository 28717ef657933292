"""A small cache, its interrupted build, and what can go wrong with files."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from msdlosses import Fill, LinearLogits, ModalityViews, TeacherCache
from msdlosses.cache import _writing

SAMPLES, BATCH, SHARD = 12, 3, 150
TOKENS = (torch.arange(4) < torch.arange(SAMPLES)[:, None] % 4).float()
ORDER = [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 4, 6]
ERRORS = (ValueError, OSError)  # FileExistsError and FileNotFoundError are OSErrors


@dataclass(frozen=True)
class Recipe:
    """What is built, and the right logits of it."""

    teacher: int = 0
    fill: float = -1.0
    fingerprint: str | None = "v1"
    dtype: str = "float16"

    def build(self, folder: Path, batches: Any = None) -> TeacherCache:
        views = ModalityViews(
            image=Fill(pixels=self.fill), text=Fill(tokens=0.0), output=self.output
        )
        loader = self.batches() if batches is None else batches
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_writing, "MAX_SHARD", SHARD)
            return TeacherCache.build(
                lambda pixels, tokens: pixels,
                views,
                loader,
                folder,
                fingerprint=self.fingerprint,
                dtype=self.dtype,
                **self.options,
            )

    output: ClassVar[Any] = None
    options: ClassVar[dict[str, Any]] = {}

    def pixels(self) -> Tensor:
        # Integers, which are exact in every dtype.
        return torch.arange(3.0 * SAMPLES).reshape(SAMPLES, 3) + 100 * self.teacher

    def batches(self) -> Iterator[dict[str, Tensor]]:
        for rows in torch.tensor(ORDER).split(BATCH):
            yield {"index": rows, "pixels": self.pixels()[rows], "tokens": TOKENS[rows]}

    def is_right(self, cache: TeacherCache) -> bool:
        masked = torch.full((SAMPLES, 3), self.fill)
        expected = {"full": self.pixels(), "image": self.pixels(), "text": masked}
        read = cache[torch.arange(SAMPLES)]
        return all(torch.equal(read[view], expected[view]) for view in expected)


WEIGHT = torch.arange(24.0).reshape(8, 3)


def head(pixels: Tensor) -> LinearLogits:
    """Use the pixels of a sample, moved by 0, 1, 2, 3, as the hidden states of four positions."""
    return LinearLogits(pixels[:, None] + torch.arange(4.0)[:, None], WEIGHT, softcap=2.0)


@dataclass(frozen=True)
class SequenceRecipe(Recipe):
    """Hidden states at none to three positions of each sample."""

    output = staticmethod(head)
    options: ClassVar[dict[str, Any]] = {"positions": lambda batch: batch["tokens"] > 0}

    def is_right(self, cache: TeacherCache) -> bool:
        mask = TOKENS > 0
        masked = torch.full((SAMPLES, 3), self.fill)
        expected = {"full": self.pixels(), "image": self.pixels(), "text": masked}
        read = cache.read(torch.arange(SAMPLES), mask)
        return all(
            torch.equal(read[view].hidden, head(expected[view]).hidden * mask[..., None])
            and torch.equal(read[view].weight, WEIGHT)
            for view in expected
        )


class LoaderError(Exception):
    """Ends a build in the middle."""


def interrupt(recipe: Recipe, folder: Path, batches: int) -> None:
    """Leave the build of a recipe after some batches."""

    def loader() -> Iterator[Any]:
        for number, batch in enumerate(recipe.batches()):
            if number == batches:
                raise LoaderError
            yield batch

    with pytest.raises(LoaderError):
        recipe.build(folder, loader())


# Damage of files. Each gets the content and a random number of bytes to start at.


def flip(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at % len(content)] ^= 1 << at % 8
    return bytes(changed)


def zero_page(content: bytes, at: int) -> bytes:
    start = at % len(content) // 512 * 512
    return content[:start] + bytes(len(content[start : start + 512])) + content[start + 512 :]


def truncate(content: bytes, at: int) -> bytes:
    return content[: at % len(content)]


def append(content: bytes, at: int) -> bytes:
    return content + os.urandom(1 + at % 500)


def repeat_end(content: bytes, at: int) -> bytes:
    return content + content[-1 - at % 500 :]


DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    function.__name__: function for function in (flip, zero_page, truncate, append, repeat_end)
}
FOREIGN = {"train.records": b"mine", "notes.txt": b"", "0000-0001.rows": b"{}", "x.part": b"\0"}


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.stat().st_size)


@contextmanager
def failing_writes(after: int, fail: Callable[[], None]) -> Iterator[None]:
    """Let writes fail after some bytes, as on a full disk."""
    budget = [after]
    original = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = original(path, mode, *args, **options)
        return file if mode == "rb" else LimitedFile(file, budget, fail)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", opened)
        yield


class LimitedFile:
    """A file that takes a number of bytes."""

    def __init__(self, file: Any, budget: list[int], fail: Callable[[], None]) -> None:
        self.file, self.budget, self.fail = file, budget, fail

    def write(self, data: Any) -> int:
        content = bytes(data)
        self.file.write(content[: max(0, self.budget[0])])
        self.budget[0] -= len(content)
        if self.budget[0] < 0:
            self.file.flush()
            self.fail()
        return len(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> LimitedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def build_and_die(folder: str, after: int, recipe: Recipe) -> None:
    """Build a cache in a process that is killed after it has written some bytes."""
    with failing_writes(after, kill):
        recipe.build(Path(folder))


RECIPES = {"logits": Recipe(), "positions of hidden states": SequenceRecipe()}


def others(recipe: Recipe) -> dict[str, Recipe]:
    """Return what a second build in the same folder may want."""
    return {
        "same": recipe,
        "other teacher": replace(recipe, teacher=1, fingerprint="v2"),
        "no fingerprint": replace(recipe, teacher=1, fingerprint=None),
        "other maskers": replace(recipe, fill=-2.0),
        "other dtype": replace(recipe, dtype="float32"),
    }


OTHERS = [*others(Recipe())]


def copy_folder(template: Path, folder: Path) -> Path:
    return Path(shutil.copytree(template, folder / "cache"))
