"""`Downsample`: images of fewer pixels, enlarged to their old size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from multimodal import ErrorCases, assert_raises, error_cases

from msdlosses import Downsample, Fill, ModalityViews


def test_blocks_are_replaced_by_their_mean() -> None:
    image = torch.tensor([[0.0, 2.0, 4.0, 8.0], [2.0, 0.0, 0.0, 0.0]])
    masked = Downsample("x", factor=2)({"x": image.expand(3, 2, 2, 4)})["x"]
    assert masked.tolist() == [[[[1.0, 1.0, 3.0, 3.0]] * 2] * 2] * 3


def test_blocks_at_the_edges_are_smaller() -> None:
    image = torch.tensor([[[1.0, 3.0, 10.0], [5.0, 7.0, 20.0], [8.0, 0.0, 6.0]]])
    masked = Downsample("x", factor=2)({"x": image})["x"]
    assert masked.tolist() == [[[4.0, 4.0, 15.0], [4.0, 4.0, 15.0], [4.0, 4.0, 6.0]]]


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 7), (2, 4, 3, 5, 7), (0, 3, 4, 4)])
@pytest.mark.parametrize("factor", [2, 3, 9])
def test_each_pixel_is_the_mean_of_its_block(shape: tuple[int, ...], factor: int) -> None:
    images = torch.rand(shape, dtype=torch.float64)
    masked = Downsample("x", factor=factor)({"x": images})["x"]
    assert masked.shape == shape
    height, width = shape[-2:]
    for i in range(height):
        for j in range(width):
            top, left = i - i % factor, j - j % factor
            block = images[..., top : top + factor, left : left + factor]
            torch.testing.assert_close(masked[..., i, j], block.mean((-2, -1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    masked = Downsample("x", factor=2)({"x": torch.ones(1, 3, 3, dtype=dtype)})["x"]
    assert masked.dtype == dtype
    assert (masked == 1).all()


def test_gradients_flow_to_the_images() -> None:
    images = torch.rand(1, 2, 2, requires_grad=True)
    Downsample("x", factor=2)({"x": images})["x"][0, 0, 0].backward()
    assert torch.equal(images.grad, torch.full((1, 2, 2), 0.25))


def fuse() -> Any:
    views = ModalityViews(image=Downsample("x", factor=2), text=Fill(y=0.0))
    return views.late_fusion(dict, dict, {"x": torch.ones(2, 2, 2), "y": torch.ones(2)})


ERRORS: ErrorCases = {
    "packed patches": (
        lambda: Downsample("x", factor=2)({"x": torch.ones(6, 4)}),
        ValueError,
        r"images `x` of shape \(N, ..., H, W\), got \(6, 4\).* before the processor",
    ),
    "bytes": (
        lambda: Downsample("x", factor=2)({"x": torch.ones(1, 2, 2, dtype=torch.uint8)}),
        TypeError,
        "`x` to be a floating-point tensor, got uint8",
    ),
    "factor 1": (lambda: Downsample("x", factor=1), ValueError, "`factor` of at least 2, got 1"),
    "fraction": (lambda: Downsample("x", factor=1.5), TypeError, "`factor` to be an integer"),
    "no entry": (lambda: Downsample(factor=2), ValueError, "Downsample to name an entry"),
    "late fusion": (fuse, ValueError, "blank input for all samples, got Downsample for `image`"),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)


def test_repr_shows_options() -> None:
    assert repr(Downsample("x", "y", factor=4)) == "Downsample(x, y, factor=4)"
