"""Errors of builds in several processes: all processes fail, and none waits for ever."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cache_helpers import assert_numbered, make_views, numbered_batch, return_pixels
from groups import in_two
from torch import distributed

from msdlosses import TeacherCache
from msdlosses.cache import _processes


def build(path: Path, batches: Any, **options: Any) -> TeacherCache:
    return TeacherCache.build(return_pixels, make_views(), batches, path, **options)


def error_of(path: Path, batches: list[Any], **options: Any) -> str:
    """Build a cache, and return the type of the error and its message."""
    try:
        build(path, batches, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def build_in_one(rank: int) -> str:
    _processes.MEETING = timedelta(seconds=2)
    return error_of(FOLDER, [numbered_batch(rank)]) if rank == 0 else "none"


def build_in_one_of_a_group(rank: int) -> str:
    _processes.MEETING = timedelta(seconds=2)
    group = distributed.new_group()
    return error_of(FOLDER, [numbered_batch(rank)], group=group) if rank == 1 else "none"


def build_in_a_foreign_folder(rank: int) -> str:
    return error_of(FOLDER, [numbered_batch(rank)])


def fail_in_one(rank: int) -> str:
    return error_of(FOLDER, [numbered_batch(rank), *([3] if rank == 1 else [])])


def disagree(rank: int) -> str:
    batch = numbered_batch(0)
    return error_of(FOLDER, [{**batch, "pixels": batch["pixels"] + rank}])


def agree(rank: int) -> list[float]:
    """Build in two processes, one of which has work for longer than they may take to meet."""
    _processes.MEETING = timedelta(seconds=4)

    def loader() -> Any:
        time.sleep(6 * rank)
        yield numbered_batch(rank, 2)

    cache = build(FOLDER, loader())
    return [len(cache), *cache[:]["full"][:, 0].tolist()]


def build_in_subgroup(rank: int) -> str:
    group = distributed.new_group([0])
    return error_of(FOLDER, [numbered_batch(4)], group=group) if rank == 0 else "none"


FOLDER = Path()


class At:
    """A function that runs in a process with the folder of a test."""

    def __init__(self, work: Any, folder: Path) -> None:
        self.work, self.folder = work, folder

    def __call__(self, rank: int) -> Any:
        self.work.__globals__["FOLDER"] = self.folder
        return self.work(rank)


def run(work: Any, folder: Path) -> list[Any]:
    return in_two(At(work, folder / "cache"), folder)


@pytest.mark.parametrize("work", [build_in_one, build_in_one_of_a_group])
def test_process_that_builds_without_the_others_gets_an_error(work: Any, tmp_path: Path) -> None:
    messages = sorted(run(work, tmp_path))
    assert messages[1] == "none"
    assert "RuntimeError: Expected all processes " in messages[0]
    assert "pass their `group`" in messages[0]


def test_all_processes_refuse_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "train.records").write_text("mine")
    for message in run(build_in_a_foreign_folder, tmp_path):
        assert "FileExistsError" in message


def test_no_process_waits_for_one_that_failed(tmp_path: Path) -> None:
    first, second = run(fail_in_one, tmp_path)
    assert "TypeError: Expected each batch" in second
    assert "RuntimeError: Expected all processes of the group to build" in first


def test_different_logits_of_one_sample_in_two_processes(tmp_path: Path) -> None:
    for message in run(disagree, tmp_path):
        assert "ValueError: Expected different samples to use each `index` once" in message


def test_equal_logits_of_one_sample_in_two_processes(tmp_path: Path) -> None:
    assert run(agree, tmp_path) == [[3, 0.0, 1.0, 2.0]] * 2


def test_one_process_builds_in_a_group_of_its_own(tmp_path: Path) -> None:
    assert run(build_in_subgroup, tmp_path) == ["none", "none"]
    assert_numbered(TeacherCache.open(tmp_path / "cache"), [4])
