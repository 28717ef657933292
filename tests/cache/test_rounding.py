"""What rounding keeps: large logits, masked classes, and each dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cache_helpers import logits_loader, make_views, return_pixels
from torch import Tensor

from msdlosses import TeacherCache

EPSILON = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 0.0}


def stored(logits: Tensor, path: Path, **options: Any) -> Tensor:
    """The logits of the full view, after a round trip through a cache."""
    loader = logits_loader(logits)
    cache = TeacherCache.build(return_pixels, make_views(), loader, path, **options)
    assert cache[:]["full"].dtype == torch.float32
    return cache[:]["full"]


@pytest.mark.parametrize("shape", [(50,), (50, 3), (20, 4, 3)], ids=str)
@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
def test_logits_of_either_sign(
    scale: float, dtype: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    logits = scale * torch.randn(shape).clamp(-3, 3)
    largest = logits.abs().reshape(len(logits), -1).amax(1).reshape(-1, *[1] * (len(shape) - 1))
    error = (stored(logits, tmp_path, dtype=dtype) - logits).abs() / largest
    assert error.max() <= 1.5 * EPSILON[dtype] + 2**-24


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("offset", [2e4, 6e4, 1e6])
def test_differences_of_large_logits_are_kept(offset: float, sign: int, tmp_path: Path) -> None:
    logits = sign * offset + torch.randn(20, 9, dtype=torch.float64)
    kept = stored(logits, tmp_path).double()
    # The sum is rounded to float32, and the difference to the maximum, of at most 8, to float16.
    assert (kept - logits).abs().max() <= offset * 2**-23 + 8 * 2**-11


def test_large_logits_next_to_small_ones(tmp_path: Path) -> None:
    logits = torch.tensor([[20000.0, 19999.0, 0.0, -5.0]])
    expected = logits.softmax(-1)
    torch.testing.assert_close(stored(logits, tmp_path).softmax(-1), expected)


@pytest.mark.parametrize("dtype", EPSILON)
def test_float32_is_exact(dtype: str, tmp_path: Path) -> None:
    logits = 1000 + 100 * torch.randn(20, 9)
    assert torch.equal(stored(logits, tmp_path, dtype=dtype), logits) == (dtype == "float32")


@pytest.mark.parametrize("stored_as", EPSILON)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_masked_classes_are_read_as_minus_infinity(
    dtype: torch.dtype, stored_as: str, tmp_path: Path
) -> None:
    mask, inf = torch.finfo(dtype).min, torch.inf
    logits = torch.tensor([[1.0, mask, 0.5, -inf], [mask, mask, -inf, mask]], dtype=dtype)
    expected = [[1.0, -inf, 0.5, -inf], [-inf] * 4]
    assert stored(logits, tmp_path, dtype=stored_as).tolist() == expected


def test_mask_that_was_added_to_a_logit(tmp_path: Path) -> None:
    logits = torch.tensor([[1.0, 7.0]]).half() + torch.tensor([[0.0, torch.finfo(torch.half).min]])
    assert stored(logits.half(), tmp_path).tolist() == [[1.0, -torch.inf]]


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rejects_nan_and_infinity(value: float, dtype: str, tmp_path: Path) -> None:
    logits = torch.tensor([[0.0, 1.0], [value, -1.0]])
    with pytest.raises(ValueError, match="teacher"):
        stored(logits, tmp_path, dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_wider_dtypes_hold_masks_of_minus_a_billion(dtype: str, tmp_path: Path) -> None:
    logits = torch.tensor([[1.0, -1e9]])
    kept = stored(logits, tmp_path, dtype=dtype)
    torch.testing.assert_close(kept, logits, rtol=EPSILON[dtype], atol=0)


def test_top_k_of_large_logits(tmp_path: Path) -> None:
    logits = 2e4 + torch.randn(10, 30)
    kept = stored(logits, tmp_path, top_k=29)
    torch.testing.assert_close(kept, logits, rtol=0, atol=8 * 2**-11 + 2e4 * 2**-23)


def test_rejects_logits_that_are_not_floating_point(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"floating-point tensor, got int64 \(2, 3\)"):
        stored(torch.ones(2, 3, dtype=torch.long), tmp_path)


@pytest.mark.parametrize("dtype", ["float64", "half", torch.float16])
def test_rejects_unknown_dtype(dtype: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`dtype` to be one of `float16`"):
        stored(torch.ones(2, 3), tmp_path, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("stored_as", ["float16", "float32"])
def test_teacher_may_return_one_buffer_again(
    stored_as: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    buffer = torch.empty(3 * 2, 2, dtype=dtype)

    def teacher(pixels: Tensor, tokens: Tensor) -> Tensor:
        return buffer.copy_(pixels)

    logits = torch.arange(12.0).reshape(3, 2, 2)
    batches = [batch for x in logits for batch in logits_loader(x)]
    cache = TeacherCache.build(teacher, make_views(), batches, tmp_path, dtype=stored_as)
    assert torch.equal(cache[:]["full"], logits.flatten(0, 1))
