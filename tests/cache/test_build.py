"""Building a cache: loaders, the index, and how the teacher is called."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from cache_helpers import (
    Batch,
    Teacher,
    assert_equal_in_fp16,
    make_data,
    make_views,
    return_pixels,
    select,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from msdlosses import TeacherCache

# Loaders


class Samples(Dataset[dict[str, Any]]):
    def __init__(self, data: Batch) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data["pixels"])

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**{name: value[i] for name, value in self.data.items()}, "index": i}


def in_order(data: Batch, index: str | None) -> list[Batch]:
    return [select(data, [*rows], index) for rows in (range(0, 4), range(4, 9), range(9, 10))]


LOADERS: dict[str, Callable[[Batch], Any]] = {
    "list": lambda data: in_order(data, "index"),
    "tuple": lambda data: tuple(in_order(data, "index")),
    "generator": lambda data: (batch for batch in in_order(data, "index")),
    "pairs": lambda data: [(batch, torch.zeros(1)) for batch in in_order(data, "index")],
    "DataLoader": lambda data: DataLoader(Samples(data), batch_size=3, shuffle=True),
    "reversed": lambda data: reversed(in_order(data, "index")),
    "no index": lambda data: in_order(data, None),
    "pairs without index": lambda data: ([batch, 0] for batch in in_order(data, None)),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_stores_the_teacher_logits_of_each_sample(
    loader: str, teacher: Teacher, tmp_path: Path
) -> None:
    data, views = make_data(10), make_views(views=("full", "~image", "image"))
    cache = TeacherCache.build(teacher, views, LOADERS[loader](data), tmp_path)
    assert len(cache) == 10
    assert cache.names == ("full", "~image", "image")
    assert_equal_in_fp16(cache[torch.arange(10)], views(teacher, data))
    rows = [3, 9, 3, 0]
    assert_equal_in_fp16(cache[torch.tensor(rows)], views(teacher, select(data, rows, None)))


@given(data=st.data())
def test_any_order_and_batch_sizes(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=20, unique=True))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(rows)))))
    bounds = [0, *cuts, len(rows)]
    samples, teacher, views = make_data(41), Teacher(), make_views()
    batches = [select(samples, rows[a:b]) for a, b in pairwise(bounds)]
    with TemporaryDirectory() as folder:
        cache = TeacherCache.build(teacher, views, batches, folder)
        assert len(cache) == len(rows)
        expected = views(teacher, select(samples, sorted(rows), None))
        assert_equal_in_fp16(cache[torch.tensor(sorted(rows))], expected)
        for missing in set(range(max(rows))) - set(rows):
            with pytest.raises(IndexError, match=rf"written, got {missing}\."):
                cache[torch.tensor([missing])]


def test_many_small_batches(teacher: Teacher, tmp_path: Path) -> None:
    data, views = make_data(1000), make_views()
    batches = (select(data, rows.tolist()) for rows in torch.randperm(1000).split(7))
    cache = TeacherCache.build(teacher, views, batches, tmp_path)
    assert_equal_in_fp16(cache[torch.arange(1000)], views(teacher, data))


# Calls of the teacher


@pytest.mark.parametrize("index", ["index", "row"])
def test_teacher_does_not_get_the_index(index: str, tmp_path: Path) -> None:
    data, names = make_data(4), []

    def teacher(**batch: Tensor) -> Tensor:
        names.append(set(batch))
        return batch["pixels"]

    batches = [select(data, [3, 1, 0, 2], index)]
    cache = TeacherCache.build(teacher, make_views(), batches, tmp_path, index=index)
    assert names == [{"pixels", "tokens"}]
    torch.testing.assert_close(
        cache[torch.arange(4)]["full"], data["pixels"], rtol=2**-11, atol=2**-25
    )


class ModeRecorder(nn.Module):
    """Records for each call whether it trains: a module in training mode, logits with a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout())])
        self.weight = nn.Parameter(torch.ones(1))
        self.calls: list[tuple[bool, bool]] = []

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits = pixels * self.weight
        training = any(module.training for module in self.modules())
        self.calls.append((training, logits.requires_grad))
        return logits


@pytest.mark.parametrize("fails", [False, True], ids=["build succeeds", "build fails"])
def test_teacher_runs_in_evaluation_mode_and_its_modes_are_restored(
    fails: bool, tmp_path: Path
) -> None:
    teacher = ModeRecorder()
    teacher.parts[1][0].eval()
    before = {name: module.training for name, module in teacher.named_modules()}
    loader: list[Any] = [make_data(3), *(["not a batch"] if fails else [])]
    if fails:
        with pytest.raises(TypeError):
            TeacherCache.build(teacher, make_views(), loader, tmp_path)
    else:
        TeacherCache.build(teacher, make_views(), loader, tmp_path)
    assert teacher.calls == [(False, False)]
    assert {name: module.training for name, module in teacher.named_modules()} == before


# Errors


def with_index(index: Any, size: int = 3) -> Any:
    return [{**make_data(size), "index": index}]


INVALID: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "repeated in a batch": (
        lambda: with_index(torch.tensor([4, 1, 4])),
        ValueError,
        r"index.* once, got .*\b4\b",
    ),
    "repeated in two batches": (
        lambda: with_index(torch.arange(3)) + with_index(torch.tensor([5, 1, 7])),
        ValueError,
        r"index.* once, got .*\b1\b",
    ),
    "negative": (
        lambda: with_index(torch.tensor([0, -1, 2])),
        IndexError,
        "`index` of 0 or more, got -1",
    ),
    "float": (lambda: with_index(torch.rand(3)), TypeError, r"integers, got float32 \(3,\)"),
    "bool": (lambda: with_index(torch.ones(3).bool()), TypeError, r"integers, got bool \(3,\)"),
    "list": (lambda: with_index([0, 1, 2]), TypeError, "integers, got list"),
    "2-D": (lambda: with_index(torch.zeros(3, 1).long()), ValueError, r"\(3,\), got \(3, 1\)"),
    "too short": (lambda: with_index(torch.arange(2)), ValueError, r"\(3,\), got \(2,\)"),
    "only in some batches": (
        lambda: [*with_index(torch.arange(3)), make_data(3)],
        KeyError,
        "`index` in all batches or in none",
    ),
    "empty loader": (lambda: [], ValueError, "samples in `loader`, got none"),
    "empty batches": (lambda: [make_data(0)] * 2, ValueError, "samples .* got none"),
    "number as loader": (lambda: 3, TypeError, "iterable of batches, got int"),
    "tensor as loader": (
        lambda: torch.rand(3, 5),
        TypeError,
        "each batch of `loader` to be a mapping, got float32",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_rejects_invalid_loader_or_index(name: str, tmp_path: Path) -> None:
    make_loader, error, message = INVALID[name]
    with pytest.raises(error, match=rf"Expected .*{message}"):
        TeacherCache.build(return_pixels, make_views(), make_loader(), tmp_path)
    with pytest.raises(FileNotFoundError):
        TeacherCache.open(tmp_path)


def test_rejects_missing_index_entry(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"hold `row`, got .*`pixels`"):
        TeacherCache.build(return_pixels, make_views(), [make_data(3)], tmp_path, index="row")
