"""Samples that occur again: equal ones are stored once, different ones are an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cache_helpers import assert_numbered, logits_loader, make_views, numbered_batch, return_pixels
from torch import Tensor

from msdlosses import TeacherCache


def build(batches: list[Any], path: Path, **options: Any) -> TeacherCache:
    return TeacherCache.build(return_pixels, make_views(), batches, path, **options)


@pytest.mark.parametrize(
    "batches",
    [
        [(0, 1, 2), (3, 4, 0)],
        [(0, 1, 1, 2), (3, 4)],
        [(0, 1), (2, 3), (4, 0), (1, 4)],
        [(0, 0, 0, 1, 2, 3, 4)],
    ],
    ids=str,
)
def test_equal_samples_are_stored_once(batches: list[tuple[int, ...]], tmp_path: Path) -> None:
    cache = build([numbered_batch(*rows) for rows in batches], tmp_path)
    assert len(cache) == 5
    assert_numbered(cache, [*range(5)])
    assert torch.equal(cache[:]["full"], cache[[0, 1, 2, 3, 4]]["full"])


def twice(logits: Tensor, change: Tensor | float, path: Path, **options: Any) -> Tensor:
    """Build a cache of samples that occur again with other logits."""
    batches = [
        {**batch, "index": torch.arange(len(logits))}
        for x in (logits, logits + change)
        for batch in logits_loader(x)
    ]
    return build(batches, path, **options)[:]["full"]


OPTIONS = [{}, {"dtype": "bfloat16"}, {"dtype": "float32"}, {"top_k": 3}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (6, 2, 5), (6,)], ids=str)
def test_first_of_nearly_equal_samples_counts(
    shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    if "top_k" in options and len(shape) == 1:
        return
    logits = torch.randn(shape)
    noise = 1e-3 * torch.rand_like(logits) * logits.abs().reshape(6, -1).amin(1).amin()
    once = twice(logits, 0.0, tmp_path / "once", **options)
    assert torch.equal(twice(logits, noise, tmp_path / "twice", **options), once)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rejects_different_logits_of_one_sample(options: dict[str, Any], tmp_path: Path) -> None:
    change = torch.zeros(6, 5)
    change[4] = torch.randn(5)
    with pytest.raises(
        ValueError, match=r"each `index` once, got different logits in `full` for 4"
    ):
        twice(torch.randn(6, 5), change, tmp_path, **options)


def test_equal_masks_of_repeated_samples(tmp_path: Path) -> None:
    logits = torch.tensor([[-torch.inf, 1.0], [2.0, -torch.inf]])
    assert torch.equal(twice(logits, 0.0, tmp_path), logits)


def test_different_masks_of_repeated_samples(tmp_path: Path) -> None:
    change = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    with pytest.raises(ValueError, match="each `index` once"):
        twice(torch.ones(2, 2), change, tmp_path)
