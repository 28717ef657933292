"""Ragged entries, and entries that are batched along another axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from multimodal import ErrorCases, assert_raises, error_cases
from torch import Tensor

from msdlosses import Fill, MeanFill, ModalityDropout, ModalityViews, Shuffle

COUNTS = torch.tensor([1, 0, 3])
Batch = dict[str, Any]


def make_batch() -> Batch:
    """Packed patches: one of the first sample, none of the second, three of the third."""
    return {
        "patches": torch.tensor([[1.0], [2.0], [3.0], [4.0]]),
        "images": torch.tensor([[1, 1], [1, 3]]),
        "tokens": torch.tensor([[5, 6], [7, 8], [9, 9]]),
        "position_ids": torch.arange(12).reshape(2, 3, 2) + 1,
    }


def make_views(counts: Any = COUNTS, **options: Any) -> ModalityViews:
    spec = {
        "image": Fill(patches=0.0),
        "text": Fill(tokens=0, position_ids=0),
        "ragged": {
            "patches": lambda batch: counts,
            "images": lambda batch: torch.tensor([1, 0, 1]),
        },
        "batch_axis": {"position_ids": 1},
    }
    return ModalityViews(**{**spec, **options})


def inputs(views: ModalityViews, batch: Batch) -> list[Batch]:
    """The batches that the model gets."""
    seen = []

    def model(**entries: Any) -> Tensor:
        seen.append(entries)
        return entries["tokens"]

    views(model, batch)
    return seen


def test_ragged_entries_are_concatenated() -> None:
    (stacked,) = inputs(make_views(), make_batch())
    assert stacked["patches"].flatten().tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 0, 0, 0, 0]
    assert stacked["images"].tolist() == [[1, 1], [1, 3]] * 3
    assert stacked["tokens"][:, 0].tolist() == [5, 7, 9, 0, 0, 0, 5, 7, 9]


def test_other_batch_axis_is_the_one_that_grows() -> None:
    (stacked,) = inputs(make_views(), make_batch())
    first = [[1, 2], [3, 4], [5, 6]]
    assert stacked["position_ids"].shape == (2, 9, 2)
    assert stacked["position_ids"][0].tolist() == first + [[0, 0]] * 3 + first


def test_masked_patches_may_differ_in_number_when_they_are_stacked() -> None:
    def remove(batch: Batch) -> Batch:
        return {**batch, "patches": batch["patches"][:0], "images": batch["images"][:0]}

    (stacked,) = inputs(make_views(image=remove), make_batch())
    assert stacked["patches"].flatten().tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    assert len(stacked["images"]) == 4


def test_counts_are_computed_once_from_the_batch_of_the_caller() -> None:
    calls = []

    def counts(batch: Batch) -> Tensor:
        calls.append(batch)
        return batch["tokens"].new_tensor([1, 0, 3])

    batch = make_batch()
    make_views(ragged={"patches": counts, "images": lambda _: [1, 0, 1]}, views_per_forward=1)(
        lambda **entries: entries["tokens"], batch
    )
    assert len(calls) == 1
    assert calls[0] is batch


def test_counts_of_a_container_hold_for_everything_in_it() -> None:
    nested = {"vision": {"patches": torch.ones(4, 1), "norms": torch.ones(4)}, "tokens": COUNTS}
    views = ModalityViews(
        image=Fill(vision=0.0), text=Fill(tokens=0), ragged={"vision": lambda _: COUNTS}
    )
    (stacked,) = inputs(views, nested)
    assert [len(stacked["vision"][name]) for name in ("patches", "norms")] == [12, 12]


def test_batch_of_ragged_entries_only() -> None:
    views = ModalityViews(
        image=Fill(patches=0.0),
        text=Fill(words=0.0),
        ragged={"patches": lambda _: COUNTS, "words": lambda _: torch.tensor([2, 1, 1])},
    )
    batch = {"patches": torch.ones(4, 1), "words": torch.ones(4, 1)}
    logits = views(lambda patches, words: torch.zeros(9, 2), batch)
    assert logits["full"].shape == (3, 2)


def test_dropout_drops_all_rows_of_a_sample() -> None:
    drop = ModalityDropout(make_views(), p=0.9)
    kept = set()
    for _ in range(50):
        batch = drop(make_batch())
        first, *others = batch["patches"].flatten().tolist()
        assert first in (0.0, 1.0)
        assert others in ([0.0] * 3, [2.0, 3.0, 4.0])
        shown = batch["tokens"][:, 0] != 0
        assert (batch["position_ids"] != 0).all(-1).tolist() == [shown.tolist()] * 2
        kept.add((first, *others))
    assert len(kept) == 4


SEPARATE = "to mask samples along axis 0, got"

ERRORS: ErrorCases = {
    "counts that do not add up": (
        lambda: make_views(torch.tensor([1, 1, 1])).inputs(make_batch()),
        ValueError,
        r"counts of `patches` .* 4 rows, got \[1, 1, 1\]",
    ),
    "negative counts": (
        lambda: make_views(torch.tensor([-1, 1, 4])).inputs(make_batch()),
        ValueError,
        r"counts of `patches` to be 0 or more",
    ),
    "counts of another batch size": (
        lambda: make_views(torch.tensor([1, 3])).inputs(make_batch()),
        ValueError,
        "equal length, got 3 for `tokens` and 2 for `the counts of patches`",
    ),
    "fractional counts": (
        lambda: make_views(COUNTS.float()).inputs(make_batch()),
        TypeError,
        r"`ragged\['patches'\]` to return integers of shape \(N,\), got float32 \(3,\)",
    ),
    "counts are a mask": (
        lambda: make_views(COUNTS > 0).inputs(make_batch()),
        TypeError,
        r"`ragged\['patches'\]` to return integers",
    ),
    "ragged is no function": (
        lambda: make_views(ragged={"patches": COUNTS}),
        TypeError,
        r"`ragged\['patches'\]` to be callable, got int64",
    ),
    "axis is a float": (
        lambda: make_views(batch_axis={"position_ids": 1.0}),
        TypeError,
        r"`batch_axis\['position_ids'\]` to be an integer",
    ),
    "no such axis": (
        lambda: make_views(batch_axis={"position_ids": 3}).inputs(make_batch()),
        IndexError,
        r"`batch_axis\['position_ids'\]` to be an axis of \(2, 3, 2\), got 3",
    ),
    "ragged and another axis": (
        lambda: make_views(batch_axis={"patches": 1}),
        ValueError,
        "entries in `ragged` or in `batch_axis`, got `patches`",
    ),
    "Shuffle of ragged entries": (
        lambda: make_views(image=Shuffle("patches")),
        ValueError,
        f"Shuffle {SEPARATE} `patches`",
    ),
    "Shuffle along another axis": (
        lambda: make_views(text=Shuffle("position_ids")),
        ValueError,
        f"Shuffle {SEPARATE} `position_ids`",
    ),
    "MeanFill along another axis": (
        lambda: make_views(text=MeanFill("position_ids")),
        ValueError,
        f"MeanFill {SEPARATE} `position_ids`",
    ),
    "keep along another axis": (
        lambda: make_views(text=Fill(position_ids=0, keep=0)),
        ValueError,
        f"Fill {SEPARATE} `position_ids`",
    ),
    "late fusion of ragged entries": (
        lambda: make_views().late_fusion(dict, dict, make_batch()),
        ValueError,
        "no ragged entries, got `patches`, `images`",
    ),
    "dropout of another number of rows": (
        lambda: ModalityDropout(
            make_views(image=lambda b: {**b, "patches": b["patches"][:0]}), p=0.5
        )(make_batch()),
        ValueError,
        "`patches` to be per sample",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)


@pytest.mark.parametrize("axis", [1, -2])
def test_late_fusion_takes_entries_with_another_batch_axis(axis: int) -> None:
    views = ModalityViews(image=Fill(pixels=0.0), text=Fill(ids=0.0), batch_axis={"ids": axis})
    batch = {"pixels": torch.rand(3, 2), "ids": torch.rand(2, 3, 4)}

    def towers(pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return {"image": pixels.sum(1), "text": ids.sum((0, 2))}

    def head(image: Tensor, text: Tensor) -> Tensor:
        return image + 2 * text

    fused = views.late_fusion(towers, head, batch)
    torch.testing.assert_close(
        dict(fused), dict(views(lambda **entries: head(**towers(**entries)), batch))
    )
