"""Fingerprints of any kind that JSON can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_helpers import Recorder, make_views, numbered_batch

from msdlosses import TeacherCache

FINGERPRINTS: list[Any] = [
    "v1",
    "",
    0,
    1.5,
    False,
    ("teacher", 1),
    ["a", ["b", None]],
    Path("a") / "b",
    (Path("a"), {"data": (1, 2)}),
    torch.__version__,
    np.int64(3),
]
DIFFERENT: list[tuple[Any, Any]] = [
    ("1", 1),
    (1, 1.0),
    (1, True),
    (("a", "b"), "ab"),
    (["a"], ["a", None]),
    ({"a": 1}, {"a": 2}),
    (Path("a"), Path("b")),
    (0, ""),
]


def build(fingerprint: Any, path: Path, batches: list[Any]) -> tuple[TeacherCache, Recorder]:
    teacher = Recorder()
    cache = TeacherCache.build(teacher, make_views(), batches, path, fingerprint=fingerprint)
    return cache, teacher


@pytest.mark.parametrize("fingerprint", FINGERPRINTS, ids=repr)
def test_fingerprint_is_compared_after_a_round_trip(fingerprint: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        build(fingerprint, tmp_path, [numbered_batch(0), numbered_batch(1), "an error"])
    cache, teacher = build(fingerprint, tmp_path, [numbered_batch(0), numbered_batch(1)])
    assert 0.0 not in teacher.pixels[:1]  # the first batch was on disk
    opened = TeacherCache.open(tmp_path, fingerprint=fingerprint)
    assert opened.fingerprint == cache.fingerprint


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=repr)
def test_different_fingerprints(one: Any, other: Any, tmp_path: Path) -> None:
    build(one, tmp_path, [numbered_batch(0)])
    with pytest.raises(ValueError, match="Expected the fingerprint"):
        TeacherCache.open(tmp_path, fingerprint=other)


def test_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    build({"a": 1, "b": 2}, tmp_path, [numbered_batch(0)])
    TeacherCache.open(tmp_path, fingerprint={"b": 2, "a": 1})


@pytest.mark.parametrize(
    "fingerprint", [b"v1", {1, 2}, object(), torch.ones(2)], ids=lambda x: type(x).__name__
)
def test_rejects_other_types(fingerprint: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Expected `fingerprint` of strings"):
        build(fingerprint, tmp_path / "cache", [numbered_batch(0)])
    assert not (tmp_path / "cache").exists()
