"""`EntryMasker`: the entries that a masker replaces and the positions that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from multimodal import PAD, Batch, ErrorCases, assert_raises, error_cases, make_batch
from torch import Tensor

from msdlosses import Fill, MeanFill, ModalityViews, Shuffle


def special_tokens(batch: Mapping[str, Any]) -> Tensor:
    special: Tensor = batch["special"]
    return special


SPECIAL = torch.tensor([[True, False, False, False, True], [True, False, False, True, False]])


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (0, [[1, 0, 0, 0, 0]] * 2),
        (-1, [[0, 0, 0, 0, 5]] * 2),
        ([0, -2], [[1, 0, 0, 4, 0]] * 2),
        (range(2), [[1, 2, 0, 0, 0]] * 2),
        (np.int64(1), [[0, 2, 0, 0, 0]] * 2),
        ((), [[0] * 5] * 2),
        (SPECIAL[0], [[1, 0, 0, 0, 5]] * 2),
        (SPECIAL[:1], [[1, 0, 0, 0, 5]] * 2),
        (SPECIAL, [[1, 0, 0, 0, 5], [1, 0, 0, 4, 0]]),
        (special_tokens, [[1, 0, 0, 0, 5], [1, 0, 0, 4, 0]]),
        (lambda batch: batch["tokens"] == 3, [[0, 0, 3, 0, 0]] * 2),
    ],
    ids=[
        "first",
        "last",
        "two",
        "range",
        "number of NumPy",
        "none",
        "mask (L,)",
        "mask (1, L)",
        "mask (N, L)",
        "function of an ignored entry",
        "function of the masked entry",
    ],
)
def test_keep_preserves_positions(keep: Any, expected: list[list[int]]) -> None:
    batch = {
        "pixels": torch.rand(2, 3),
        "tokens": torch.tensor([[1, 2, 3, 4, 5]] * 2),
        "special": SPECIAL,
    }
    views = ModalityViews(
        image=Fill(pixels=0.0), text=Fill(tokens=PAD, keep=keep), ignore=("special",)
    )
    masked = views.inputs(batch)["image"]
    assert masked["tokens"].tolist() == expected
    assert "special" not in masked


def keep(keep: Any) -> Batch:
    return dict(Fill(tokens=PAD, keep=keep)(make_batch()))


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


KEEP = "`keep` to be positions, a boolean mask, or a function that returns one, got"
MASK = r"`keep` mask of shape \(L,\) or \(N, L\) for `tokens` of shape \(4, 5\), got"

ERRORS: ErrorCases = {
    "Fill without entries": (Fill, ValueError, "Fill to name an entry, got none"),
    "Shuffle without entries": (Shuffle, ValueError, "Shuffle to name an entry, got none"),
    "MeanFill without entries": (
        lambda: MeanFill(keep=0),
        ValueError,
        "MeanFill to name an entry, got none",
    ),
    "entry is a string": (
        lambda: Fill(x=0)({"x": "words"}),
        TypeError,
        "`x` to be a batched tensor, got str",
    ),
    "entry without axes": (
        lambda: Fill(x=0)({"x": torch.tensor(1.0)}),
        TypeError,
        r"`x` to be a batched tensor, got float32 \(\)",
    ),
    "keep is a string": (lambda: keep("all"), TypeError, f"{KEEP} 'all'"),
    "keep is a float": (lambda: keep(0.5), TypeError, rf"{KEEP} 0\.5"),
    "keep is a bool": (lambda: keep(True), TypeError, f"{KEEP} True"),
    "keep is a list of bools": (lambda: keep([True, False]), TypeError, rf"{KEEP} \[True, False\]"),
    "position too large": (lambda: keep(5), IndexError, "`keep` in 5 positions of `tokens`, got 5"),
    "position too small": (lambda: keep([0, -6]), IndexError, "`keep` .* got -6"),
    "entry without positions": (
        lambda: Fill(x=0, keep=0)({"x": torch.ones(3)}),
        IndexError,
        "`keep` in 0 positions of `x`, got 0",
    ),
    "mask of integers": (
        lambda: keep(torch.tensor([0, 4])),
        TypeError,
        r"`keep` to be positions or a boolean mask, got int64 \(2,\)",
    ),
    "mask of another length": (lambda: keep(ones(4)), ValueError, rf"{MASK} \(4,\)"),
    "mask of another batch": (lambda: keep(ones(3, 5)), ValueError, rf"{MASK} \(3, 5\)"),
    "mask of length 1": (lambda: keep(ones(1)), ValueError, rf"{MASK} \(1,\)"),
    "mask without axes": (lambda: keep(ones()), ValueError, rf"{MASK} \(\)"),
    "mask with too many axes": (lambda: keep(ones(4, 5, 1)), ValueError, rf"{MASK} \(4, 5, 1\)"),
    "function returns None": (
        lambda: keep(lambda batch: None),
        TypeError,
        "`keep` to be positions or a boolean mask, got NoneType",
    ),
    "function returns integers": (
        lambda: keep(lambda batch: batch["tokens"]),
        TypeError,
        r"`keep` to be positions or a boolean mask, got int64 \(4, 5\)",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)
