"""`TeacherCache`: opening a finished cache, and reading logits from it."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_helpers import Teacher, make_data, make_views, run_script
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from msdlosses import Fill, ModalityViews, Shuffle, TeacherCache

READ_SCRIPT = """
cache = TeacherCache.open(sys.argv[1], fingerprint="v1")
print(cache[torch.tensor([9, 2])]["text"].tolist())
"""


def test_attributes_and_repr(cache: TeacherCache) -> None:
    assert cache.fingerprint == "v1"
    assert len(cache) == 10
    for part in ("TeacherCache", str(cache.path), "('full', 'image', 'text')", "rows=10"):
        assert part in repr(cache)


# Reading


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_index_of_any_integer_dtype(dtype: torch.dtype, cache: TeacherCache) -> None:
    assert torch.equal(
        cache[torch.tensor([7], dtype=dtype)]["full"], cache[torch.tensor([7])]["full"]
    )


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ([7, 0, 7], [7, 0, 7]),
        (np.array([3, 1], dtype=np.int32), [3, 1]),
        (np.array([3, 1], dtype=np.uint64), [3, 1]),
        ([], []),
        (np.array([], dtype=np.int64), []),
        (slice(None), [*range(10)]),
        (slice(2, 5), [2, 3, 4]),
        (slice(-3, None), [7, 8, 9]),
        (slice(8, 100), [8, 9]),
        (slice(None, None, -4), [9, 5, 1]),
        (slice(5, 5), []),
    ],
    ids=str,
)
def test_index_of_lists_arrays_and_slices(index: Any, rows: list[int], cache: TeacherCache) -> None:
    expected = cache[torch.tensor(rows, dtype=torch.long)]
    for view, logits in cache[index].items():
        assert torch.equal(logits, expected[view])


@pytest.mark.parametrize("index", [4, np.int64(4), np.uint8(4)], ids=repr)
def test_integer_returns_the_logits_of_one_sample(index: Any, cache: TeacherCache) -> None:
    expected = cache[torch.tensor([4])]
    for view, logits in cache[index].items():
        assert torch.equal(logits, expected[view][0])


def test_empty_index_returns_empty_logits(cache: TeacherCache) -> None:
    views = cache[torch.tensor([], dtype=torch.long)]
    assert {view: logits.shape for view, logits in views.items()} == dict.fromkeys(
        ("full", "image", "text"), (0, 4)
    )


def test_writing_to_returned_logits_does_not_change_the_cache(cache: TeacherCache) -> None:
    rows = torch.arange(10)
    before = cache[rows]["full"].clone()
    cache[rows]["full"].zero_()
    assert torch.equal(cache[rows]["full"], before)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (torch.tensor([0, 10]), IndexError, r"\[0, 10\), got 10"),
        (torch.tensor([3, -1]), IndexError, r"\[0, 10\), got -1"),
        (torch.tensor([1.0]), TypeError, r"integers, got float32 \(1,\)"),
        (torch.ones(10, dtype=torch.bool), TypeError, r"integers, got bool \(10,\)"),
        (torch.tensor([1j]), TypeError, r"integers, got complex64 \(1,\)"),
        (torch.tensor([]), TypeError, r"integers, got float32 \(0,\)"),
        (torch.tensor([[0, 1]]), ValueError, r"shape \(N,\), got \(1, 2\)"),
        (torch.tensor(3), ValueError, r"shape \(N,\), got \(\)"),
        ([0.0, 1.0], TypeError, r"integers, got float64 \(2,\)"),
        ([True, False], TypeError, r"integers, got bool \(2,\)"),
        ([[0, 1]], ValueError, r"shape \(N,\), got \(1, 2\)"),
        ([0, 10], IndexError, r"\[0, 10\), got 10"),
        (np.array(["a"]), TypeError, r"integers, got <U1 \(1,\)"),
        (10, IndexError, r"\[0, 10\), got 10"),
        (-1, IndexError, r"\[0, 10\), got -1"),
        (2.0, TypeError, "integers, got float"),
        (True, TypeError, r"integers, got bool \(1,\)"),
        ("full", TypeError, "integers, got str"),
        (None, TypeError, "integers, got NoneType"),
    ],
    ids=[
        "too large",
        "negative",
        "float",
        "bool",
        "complex",
        "empty float",
        "2-D",
        "0-D",
        "list of floats",
        "list of bools",
        "nested list",
        "list, too large",
        "array of strings",
        "int, too large",
        "negative int",
        "float number",
        "bool number",
        "view",
        "None",
    ],
)
def test_rejects_invalid_index(
    index: Any, error: type[Exception], message: str, cache: TeacherCache
) -> None:
    with pytest.raises(error, match=rf"Expected `index` .*{message}"):
        cache[index]


# Opening


def test_opens_in_another_process(cache: TeacherCache) -> None:
    done = run_script(READ_SCRIPT, cache.path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == cache[torch.tensor([9, 2])]["text"].tolist()


def test_opens_after_the_folder_is_copied(cache: TeacherCache, tmp_path: Path) -> None:
    expected = cache[torch.arange(10)]["full"]
    shutil.copytree(cache.path, tmp_path / "elsewhere")
    moved = TeacherCache.open(str(tmp_path / "elsewhere"))
    assert torch.equal(moved[torch.arange(10)]["full"], expected)


@pytest.mark.parametrize("folder", [".", "missing"])
def test_rejects_folder_without_a_cache(folder: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got no manifest\.json\. Call `TeacherCache"):
        TeacherCache.open(tmp_path / folder)


@pytest.mark.parametrize("stored", ["v1", None])
@pytest.mark.parametrize("requested", ["v1", "v2", None])
def test_open_compares_the_fingerprint(
    stored: str | None, requested: str | None, teacher: Teacher, tmp_path: Path
) -> None:
    TeacherCache.build(teacher, make_views(), [make_data(2)], tmp_path, fingerprint=stored)
    if requested in (stored, None):
        assert TeacherCache.open(tmp_path, fingerprint=requested).fingerprint == stored
        return
    with pytest.raises(ValueError, match=rf"fingerprint '{requested}' .* got {stored!r}"):
        TeacherCache.open(tmp_path, fingerprint=requested)


# Copies and DataLoader workers


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))],
    ids=["deepcopy", "pickle"],
)
def test_copy_reads_the_same_logits(
    duplicate: Callable[[TeacherCache], TeacherCache], cache: TeacherCache
) -> None:
    other = duplicate(cache)
    assert other.fingerprint == "v1"
    rows = torch.tensor([4, 4, 1])
    for view, logits in cache[rows].items():
        assert torch.equal(other[rows][view], logits)


def test_pickle_holds_only_the_path(teacher: Teacher, tmp_path: Path) -> None:
    cache = TeacherCache.build(teacher, make_views(), [make_data(5000)], tmp_path)
    assert len(pickle.dumps(cache)) < 500


class CachedLogits(Dataset[Tensor]):
    def __init__(self, cache: TeacherCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, i: int) -> Tensor:
        return self.cache[torch.tensor([i])]["image"][0]


def test_dataset_reads_in_workers(cache: TeacherCache) -> None:
    batches = list(DataLoader(CachedLogits(cache), batch_size=3, num_workers=2))
    assert torch.equal(torch.cat(batches), cache[torch.arange(10)]["image"])


def test_collate_function_reads_in_workers(cache: TeacherCache) -> None:
    def collate(rows: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.tensor(rows), cache[torch.tensor(rows)]

    for rows, logits in DataLoader(range(10), 4, num_workers=2, collate_fn=collate):
        for view, values in cache[rows].items():
            assert torch.equal(logits[view], values)


# Arguments of `build`


def test_build_does_not_overwrite_a_finished_cache(cache: TeacherCache, teacher: Teacher) -> None:
    before = cache[torch.arange(10)]["full"]
    with pytest.raises(FileExistsError, match="already holds a finished cache") as error:
        TeacherCache.build(teacher, make_views(), [make_data(3)], cache.path)
    assert str(cache.path) in str(error.value)
    assert torch.equal(TeacherCache.open(cache.path)[torch.arange(10)]["full"], before)


def test_build_creates_missing_folders(teacher: Teacher, tmp_path: Path) -> None:
    TeacherCache.build(teacher, make_views(), [make_data(2)], str(tmp_path / "a" / "b"))
    assert len(TeacherCache.open(tmp_path / "a" / "b")) == 2


def test_build_rejects_shuffle(tmp_path: Path) -> None:
    views = ModalityViews(image=Shuffle("pixels"), text=Fill(tokens=0.0))
    with pytest.raises(ValueError, match=r"Expected `views` .* got Shuffle"):
        TeacherCache.build(Teacher(), views, [make_data(3)], tmp_path)


def test_build_rejects_views_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Expected `views` to be a ModalityViews, got tuple"):
        TeacherCache.build(Teacher(), ("full", "text"), [make_data(3)], tmp_path)
