"""Records of a cache: logits in fp16, all of them or the largest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_helpers import logits_loader, make_views, return_pixels

from msdlosses import TeacherCache


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_logits_are_rounded_to_fp16(dtype: torch.dtype, tmp_path: Path) -> None:
    magnitudes = torch.logspace(-9, 4.8, 400, base=10, dtype=torch.float64)
    logits = (magnitudes * (torch.randint(0, 2, (400,)) * 2 - 1)).reshape(100, 4).to(dtype)
    logits[0, 0], logits[0, 1] = -torch.inf, 65504.0 if dtype != torch.bfloat16 else 65280.0
    cache = TeacherCache.build(return_pixels, make_views(), logits_loader(logits), tmp_path)
    stored = cache[torch.arange(100)]
    assert stored["full"][0, 0] == -torch.inf
    torch.testing.assert_close(stored["full"], logits.float(), rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize("shape", [(), (3,), (5, 3)], ids=str)
def test_logits_of_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    logits = torch.rand(6, *shape)
    cache = TeacherCache.build(return_pixels, make_views(), logits_loader(logits), tmp_path)
    stored = cache[torch.tensor([5, 0])]["full"]
    assert stored.shape == (2, *shape)
    torch.testing.assert_close(stored, logits[[5, 0]], rtol=2**-11, atol=0)


# Only the largest logits


@pytest.mark.parametrize("shape", [(6, 9), (4, 3, 9)], ids=str)
def test_top_k_keeps_the_largest_logits_and_the_total_probability_of_the_others(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    logits = 5 * torch.randn(shape)
    loader = logits_loader(logits)
    cache = TeacherCache.build(return_pixels, make_views(), loader, tmp_path, top_k=3)
    stored = cache[torch.arange(len(logits))]["full"]
    assert stored.shape == shape
    expected, actual = logits.softmax(-1), stored.softmax(-1)
    largest = expected.topk(3).indices
    torch.testing.assert_close(
        stored.gather(-1, largest), logits.topk(3).values, rtol=2**-11, atol=0
    )
    torch.testing.assert_close(
        actual.gather(-1, largest), expected.gather(-1, largest), rtol=2e-2, atol=0
    )
    others = actual.scatter(-1, largest, 0.0)
    torch.testing.assert_close(
        others.sum(-1), expected.scatter(-1, largest, 0.0).sum(-1), rtol=2e-2, atol=0
    )
    assert all(len(row.unique()) == 2 for row in others.flatten(0, -2))


def test_top_k_is_small_on_disk_and_read_after_opening(tmp_path: Path) -> None:
    logits = torch.randn(50, 1000)
    loader = logits_loader(logits)
    cache = TeacherCache.build(return_pixels, make_views(), loader, tmp_path, top_k=8)
    (records,) = tmp_path.glob("*.records")
    # For each of three views 8 values, their classes, the rest, and the shift.
    assert records.stat().st_size <= 4096 + 50 * (3 * (8 * (2 + 4) + 2 + 4) + 24)
    rows = torch.tensor([49, 0])
    assert torch.equal(TeacherCache.open(tmp_path)[rows]["full"], cache[rows]["full"])


@pytest.mark.parametrize("view", ["full", "image"])
def test_top_k_of_all_but_one_class_is_lossless(view: str, tmp_path: Path) -> None:
    logits = torch.randn(20, 7)
    loader = logits_loader(logits)
    cache = TeacherCache.build(return_pixels, make_views(), loader, tmp_path, top_k=6)
    torch.testing.assert_close(cache[torch.arange(20)][view], logits, rtol=2**-11, atol=2**-20)


@pytest.mark.parametrize(
    ("top_k", "error", "message"),
    [
        (0, ValueError, "`top_k` of at least 1, got 0"),
        (2.0, TypeError, "`top_k` to be an integer, got float"),
        (4, ValueError, r"more than `top_k` = 4 classes in `full`, got .*\(3, 4\)"),
    ],
    ids=["zero", "float", "all classes"],
)
def test_rejects_invalid_top_k(
    top_k: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    loader = one_batch([1.0] * 4, [2.0] * 4, [0.0] * 4)
    with pytest.raises(error, match=rf"Expected {message}"):
        TeacherCache.build(return_pixels, make_views(), loader, tmp_path, top_k=top_k)


# Logits that cannot be stored


def one_batch(*logits: list[float]) -> Any:
    return logits_loader(torch.tensor(logits))


def sequences(*lengths: int) -> Any:
    return [{"pixels": torch.rand(2, length, 3), "tokens": torch.zeros(2, 1)} for length in lengths]


INVALID: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN": (lambda: one_batch([1.0], [torch.nan]), "no NaN in the teacher's logits of `full`"),
    "too large": (lambda: one_batch([-70000.0, 70000.0]), "`full` of at most 65504.*got -70000"),
    "too small": (lambda: one_batch([0.0, -1e9]), "`full` of at most 65504.*got -1e"),
    "zero classes": (lambda: [logits_loader(torch.ones(3, 0))[0]], r"at least one class.*\(0,\)"),
    "infinite": (lambda: one_batch([torch.inf]), "`full` of at most 65504.*got inf"),
    "other shape": (
        lambda: sequences(5, 6),
        r"shape \(5, 3\) for `full`, as before, got \(6, 3\)",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_rejects_invalid_logits(name: str, tmp_path: Path) -> None:
    make_loader, message = INVALID[name]
    with pytest.raises(ValueError, match=rf"Expected .*{message}"):
        TeacherCache.build(return_pixels, make_views(), make_loader(), tmp_path)
    with pytest.raises(FileNotFoundError):
        TeacherCache.open(tmp_path)
