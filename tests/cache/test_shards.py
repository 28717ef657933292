"""The files of a finished cache: several shards, and files that are damaged or foreign."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from cache_helpers import Teacher, assert_equal_in_fp16, make_data, make_views, select
from hypothesis import given
from hypothesis import strategies as st

from msdlosses import TeacherCache
from msdlosses.cache import _writing
from msdlosses.cache._files import seal, unseal

MANIFEST = "manifest.json"


@given(data=st.data())
def test_reads_across_shards(data: st.DataObject) -> None:
    rows = data.draw(st.permutations(range(30)))
    index = data.draw(st.lists(st.integers(0, 29), max_size=40))
    samples, teacher, views = make_data(30), Teacher(), make_views()
    batches = [select(samples, rows[i : i + 4]) for i in range(0, 30, 4)]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_writing, "MAX_SHARD", data.draw(st.sampled_from([1, 100, 200])))
        cache = TeacherCache.build(teacher, views, batches, folder)
        assert len([*cache.path.glob("*.records")]) > 2
        assert_equal_in_fp16(
            cache[torch.tensor(index, dtype=torch.long)],
            views(teacher, select(samples, index, None)),
        )


# Each damage gets a file and the folder of another cache.


def truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def fill_with_zeros(path: Path, _: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def replace_by_foreign(path: Path, other: Path) -> None:
    shutil.copy(other / path.name, path)


def remove(path: Path, _: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "damage", [truncate, lengthen, empty, fill_with_zeros, replace_by_foreign, remove]
)
def test_rejects_damaged_or_foreign_files(
    damage: Callable[[Path, Path], None], cache: TeacherCache, teacher: Teacher, tmp_path: Path
) -> None:
    other = TeacherCache.build(teacher, make_views(), [make_data(10)], tmp_path / "other").path
    names = sorted(path.name for path in cache.path.iterdir() if path.name != MANIFEST)
    assert names == ["0000-0000.records", "0000.rows"]
    for name in names:
        folder = tmp_path / name
        shutil.copytree(cache.path, folder)
        damage(folder / name, other)
        with pytest.raises(ValueError, match="Expected ") as error:
            TeacherCache.open(folder)
        assert str(folder / name) in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": "another 3", "rows": 10}', "\udcff\udcfe"],
    ids=["empty", "broken JSON", "list", "null", "another format", "not UTF-8"],
)
def test_rejects_manifest_of_another_format(text: str, cache: TeacherCache) -> None:
    (cache.path / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="Expected a manifest"):
        TeacherCache.open(cache.path)


@pytest.mark.parametrize("fingerprint", [None, "v1"])
def test_rejects_incomplete_manifest(fingerprint: str | None, cache: TeacherCache) -> None:
    path = cache.path / MANIFEST
    complete = unseal(path.read_bytes())
    assert complete is not None
    for key in complete:
        path.write_bytes(seal({k: v for k, v in complete.items() if k != key}))
        message = r"Expected (a complete manifest|the fingerprint)"
        with pytest.raises(ValueError, match=message) as error:
            TeacherCache.open(cache.path, fingerprint=fingerprint)
        assert "KeyError" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"views": {"full": 4}},
        {"shards": {}},
        {"shards": []},
        {"shards": None},
        {"shards": {"0000-0000.records": 9}},
        {"shards": {"another.records": 10}},
        {"index": {}},
        {"index": {"name": "0000.rows", "count": 0, "crc32": 0}},
        {"index": {"name": "0000.rows", "count": 11, "crc32": 0}},
        {"mark": "other"},
        {"dtype": "int8"},
    ],
    ids=str,
)
def test_rejects_malformed_manifest(change: dict[str, Any], cache: TeacherCache) -> None:
    path = cache.path / MANIFEST
    complete = unseal(path.read_bytes())
    path.write_bytes(seal({**(complete or {}), **change}))
    with pytest.raises(ValueError, match="Expected "):
        TeacherCache.open(cache.path)


def test_rejects_manifest_that_was_edited(cache: TeacherCache) -> None:
    path = cache.path / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "shards": {}}))
    with pytest.raises(ValueError, match="Expected a manifest"):
        TeacherCache.open(cache.path)
