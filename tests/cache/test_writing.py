"""Builds that are interrupted: resumed with the same fingerprint, otherwise started again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_helpers import (
    Batch,
    Recorder,
    Teacher,
    assert_equal_in_fp16,
    assert_numbered,
    make_data,
    make_views,
    numbered_batch,
    run_script,
)

from msdlosses import TeacherCache

EXITING_BUILD = """
views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
def loader():
    yield {"pixels": torch.ones(3, 4), "tokens": torch.ones(3, 1)}
    os._exit(7)  # no cleanup runs
TeacherCache.build(lambda pixels, tokens: pixels, views, loader(), sys.argv[1])
"""


# Resumed builds


def write_part_of_a_record(folder: Path) -> None:
    """Leave a file as a kill in the middle of a write does."""
    with (folder / "0000-0000.records").open("ab") as file:
        file.write(b"half a record"[:7])


@pytest.mark.parametrize(
    "damage", [lambda folder: None, write_part_of_a_record], ids=["whole records", "torn record"]
)
def test_killed_build_is_resumed(damage: Callable[[Path], None], killed: Path) -> None:
    damage(killed)
    teacher = Recorder()
    loader = [numbered_batch(5, 1), numbered_batch(0, 3), numbered_batch(2, 4), numbered_batch(6)]
    views = make_views(views_per_forward=3)
    cache = TeacherCache.build(teacher, views, loader, killed, fingerprint="v1")
    # Batches on disk are skipped; the others run as full, image, and text view, the last masked.
    assert teacher.pixels == [2, 4, 2, 4, 0, 0, 6, 6, 0]
    assert_numbered(cache, [*range(7)])


def test_killed_build_is_resumed_with_other_batches(killed: Path) -> None:
    teacher = Recorder()
    loader = [numbered_batch(3, 6, 0), numbered_batch(7, 5), numbered_batch(2)]
    cache = TeacherCache.build(teacher, make_views(), loader, killed, fingerprint="v1")
    assert_numbered(cache, [0, 1, 2, 3, 5, 6, 7])  # 1 is from the killed build
    assert set(teacher.pixels) == {3, 6, 0, 7, 5, 2}


def test_shard_with_a_damaged_header_is_built_again(killed: Path) -> None:
    with (killed / "0000-0000.records").open("r+b") as file:
        file.write(b"\0" * 16)
    teacher = Recorder()
    loader = [numbered_batch(5, 1), numbered_batch(0, 3)]
    cache = TeacherCache.build(teacher, make_views(), loader, killed, fingerprint="v1")
    assert set(teacher.pixels) == {5, 1, 0, 3}
    assert_numbered(cache, [0, 1, 3, 5])


# Builds that start again


@pytest.mark.parametrize(
    "options",
    [
        {"fingerprint": "v2"},
        {"fingerprint": None},
        {"fingerprint": "v1", "views": ("full", "image")},
        {"fingerprint": "v1", "top_k": 1},
    ],
    ids=["other fingerprint", "no fingerprint", "other views", "other top_k"],
)
def test_build_with_other_options_starts_again(options: dict[str, Any], killed: Path) -> None:
    options = dict(options)
    teacher, views = Recorder(), make_views(views=options.pop("views", None))
    cache = TeacherCache.build(teacher, views, [numbered_batch(5, 1)], killed, **options)
    assert teacher.pixels
    with pytest.raises(IndexError, match=r"written, got 3"):
        cache[torch.tensor([3])]


def test_killed_build_without_fingerprint_starts_again(teacher: Teacher, tmp_path: Path) -> None:
    assert run_script(EXITING_BUILD, tmp_path).returncode == 7
    assert any(tmp_path.iterdir())
    assert_unfinished_and_rebuilt(teacher, tmp_path)


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_failed_build_starts_again(batches: int, teacher: Teacher, tmp_path: Path) -> None:
    def loader() -> Iterator[Batch]:
        for _ in range(batches):
            yield make_data(20)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        TeacherCache.build(teacher, make_views(views=("text", "full")), loader(), tmp_path)
    assert_unfinished_and_rebuilt(teacher, tmp_path)


def assert_unfinished_and_rebuilt(teacher: Teacher, path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Expected a finished cache"):
        TeacherCache.open(path)
    data, views = make_data(5), make_views()
    cache = TeacherCache.build(teacher, views, [data], path)
    assert_equal_in_fp16(cache[torch.arange(5)], views(teacher, data))
