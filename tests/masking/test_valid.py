"""`ModalityViews.valid`: which views of samples with missing modalities are valid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from multimodal import ErrorCases, all_views, assert_raises, error_cases, make_views
from torch import Tensor


def test_view_is_valid_if_all_of_its_modalities_are_present() -> None:
    present = {
        "text": torch.tensor([True, True, False]),
        "image": torch.tensor([True, False, True]),
    }
    valid = make_views(2, views=("full", "image", "text", "~image")).valid(present)
    assert valid.dtype == torch.bool
    assert valid.int().tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 0]]


@given(st.lists(st.tuples(*[st.booleans()] * 3), max_size=6))
def test_three_modalities(rows: list[tuple[bool, bool, bool]]) -> None:
    table = torch.tensor(rows, dtype=torch.bool).reshape(-1, 3)
    present = dict(zip(("image", "text", "audio"), table.unbind(1), strict=True))
    valid = make_views(3, views=all_views(3)).valid(present)
    expected = [[i and t and a, i, t, a, t and a, i and a, i and t] for i, t, a in rows]
    assert valid.tolist() == expected
    assert valid.shape == (len(rows), 7)


def valid(**present: Any) -> Tensor:
    return make_views(2).valid(present)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


ERRORS: ErrorCases = {
    "a modality is missing": (
        lambda: valid(image=ones(2)),
        KeyError,
        "`present` for each of `image`, `text`, got `image`",
    ),
    "unknown modality": (
        lambda: valid(image=ones(2), text=ones(2), audio=ones(2)),
        KeyError,
        "`present` .* got `image`, `text`, `audio`",
    ),
    "present is a tensor": (
        lambda: make_views(2).valid(ones(2, 2)),
        TypeError,
        r"`present` to be a mapping of modalities to masks, got bool \(2, 2\)",
    ),
    "list first": (
        lambda: valid(image=[True, False], text=ones(2)),
        TypeError,
        r"`present\['image'\]` to be a boolean tensor, got list",
    ),
    "list": (
        lambda: valid(text=ones(2), image=[True, False]),
        TypeError,
        r"`present\['image'\]` to be a boolean tensor, got list",
    ),
    "None": (
        lambda: valid(text=ones(2), image=None),
        TypeError,
        r"`present\['image'\]` to be a boolean tensor, got NoneType",
    ),
    "floating-point mask": (
        lambda: valid(image=ones(2), text=torch.ones(2)),
        TypeError,
        r"`present\['text'\]` to be a boolean tensor, got float32 \(2,\)",
    ),
    "different lengths": (
        lambda: valid(image=ones(2), text=ones(3)),
        ValueError,
        r"`present\['text'\]` of shape \(2,\), got \(3,\)",
    ),
    "mask with positions": (
        lambda: valid(image=ones(2), text=ones(2, 2)),
        ValueError,
        r"`present\['text'\]` of shape \(2,\), got \(2, 2\)",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)
