"""Damage at a certain place: what is found when, and what a resumed build keeps."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_helpers import Recorder, assert_numbered, make_views, numbered_batch, return_pixels

from msdlosses import TeacherCache
from msdlosses.cache import _lock, _shards, _writing
from msdlosses.cache._layout import Layout

RECORDS, ROWS = "0000-0000.records", "0000.rows"


def build(path: Path, batches: Any, teacher: Any = return_pixels) -> TeacherCache:
    return TeacherCache.build(teacher, make_views(), batches, path, fingerprint="v1")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build(tmp_path / "cache", [numbered_batch(*range(10))]).path


def test_every_byte_of_a_record_is_protected(path: Path) -> None:
    size = (path / RECORDS).stat().st_size
    record = (size - 4096) // 10
    for at in range(4096 + 3 * record, 4096 + 4 * record):
        flip(path / RECORDS, at)
        cache = TeacherCache.open(path)
        assert_numbered(cache, [0, 1, 2, 4, 9])
        with pytest.raises(ValueError, match=r"intact records in .*0000-0000\.records"):
            cache[3]
        with pytest.raises(ValueError, match="intact records"):
            TeacherCache.open(path, verify=True)
        flip(path / RECORDS, at)
    assert_numbered(TeacherCache.open(path, verify=True), [3])


def test_every_byte_of_the_rows_is_protected(path: Path) -> None:
    for at in range(4096, (path / ROWS).stat().st_size, 7):
        flip(path / ROWS, at)
        with pytest.raises(ValueError, match=r"0000\.rows to be intact"):
            TeacherCache.open(path)
        flip(path / ROWS, at)


def test_every_byte_of_the_manifest_is_protected(path: Path) -> None:
    for at in range((path / "manifest.json").stat().st_size - 1):
        flip(path / "manifest.json", at)
        with pytest.raises(ValueError, match="Expected a manifest"):
            TeacherCache.open(path)
        flip(path / "manifest.json", at)


def test_all_chunks_are_verified(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shards, "CHUNK", 200)
    flip(path / RECORDS, -1)
    with pytest.raises(ValueError, match="intact records"):
        TeacherCache.open(path, verify=True)


def test_resumed_build_keeps_the_records_before_a_damaged_one(tmp_path: Path) -> None:
    loader = [numbered_batch(0), numbered_batch(1), numbered_batch(2)]
    with pytest.raises(TypeError):
        build(tmp_path, [*loader, 3, numbered_batch(3)])
    flip(tmp_path / RECORDS, -1)  # the third is not written before the fourth has run
    teacher = Recorder()
    assert_numbered(build(tmp_path, loader, teacher), [0, 1, 2])
    assert set(teacher.pixels) == {1, 2, 0}
    assert teacher.pixels[0] == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, -1),
        lambda path: flip(path, 3),
        lambda path: flip(path, 4000),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["record", "format", "header", "longer", "empty", "missing"],
)
def test_shard_that_is_damaged_during_the_build(
    damage: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writing, "MAX_SHARD", 1)

    def loader() -> Iterator[Any]:
        yield numbered_batch(0)
        yield numbered_batch(1)
        yield numbered_batch(2)
        damage(tmp_path / RECORDS)

    with pytest.raises(OSError, match="as it was written, got a damaged file"):
        build(tmp_path, loader())
    assert_numbered(build(tmp_path, [numbered_batch(0, 1, 2)]), [0, 1, 2])


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_lock.fcntl, "flock", fail)
    with pytest.warns(UserWarning, match="file system without locks"):
        build(tmp_path, [numbered_batch(0)])


def test_file_that_is_replaced_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(*_: Any) -> None:
        (tmp_path / "msdlosses-build.json").unlink()

    monkeypatch.setattr(_lock.fcntl, "flock", finish)
    with pytest.raises(FileExistsError, match="Another process is building"):
        build(tmp_path, [numbered_batch(0)])


@pytest.mark.parametrize("bits", [(63, 63), (31, 31), (31, 63), (15, 47)])
def test_changes_of_two_words_do_not_cancel(bits: tuple[int, int], tmp_path: Path) -> None:
    """Modulo 2**64, two changes of the highest bit add up to nothing."""
    layout = Layout("0123456789abcdef", {"full": (64,)}, None, "float32", ())
    words = np.arange(layout.words, dtype="<u8")[None].copy()
    before = layout.checksums(words)
    for word, bit in zip((3, 7), bits, strict=True):
        words[0, word] ^= np.uint64(1) << np.uint64(bit)
    assert (layout.checksums(words) != before).all()
