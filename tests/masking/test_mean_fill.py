"""`MeanFill`: the mean of the data as the value of absent modalities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from multimodal import ErrorCases, assert_raises, error_cases, make_batch
from torch import Tensor

from msdlosses import MeanFill


def test_fills_with_the_mean_over_all_samples() -> None:
    data = torch.rand(7, 3, dtype=torch.float64).float() + 100.0
    batches = [{"x": part, "id": "a"} for part in data.split([4, 0, 2, 1])]
    mask = MeanFill("x").fit(batches)
    masked = mask({"x": torch.zeros(2, 3)})["x"]
    torch.testing.assert_close(masked, data.mean(0).expand(2, 3))
    mask_of_pairs = MeanFill("x").fit((batch, torch.zeros(1)) for batch in batches)
    assert torch.equal(mask_of_pairs({"x": torch.zeros(2, 3)})["x"], masked)


def test_second_fit_replaces_the_first() -> None:
    mask = MeanFill("x").fit([{"x": torch.ones(2, 1)}])
    mask.fit([{"x": torch.full((2, 1), 5.0)}])
    assert mask({"x": torch.zeros(1, 1)})["x"].item() == 5.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_dtype_of_the_entry(dtype: torch.dtype) -> None:
    batch = {"x": torch.ones(2, 3).to(dtype)}
    assert MeanFill("x").fit([batch])(batch)["x"].dtype == dtype


def test_fills_all_tensors_of_a_nested_entry() -> None:
    text = {"tokens": torch.tensor([[1.0], [3.0]]), "more": [torch.tensor([[5.0], [9.0]])]}
    masked = MeanFill("text").fit([{"text": text}])({"text": text})["text"]
    assert masked["tokens"].tolist() == [[2.0], [2.0]]
    assert masked["more"][0].tolist() == [[7.0], [7.0]]


def test_samples_without_the_modality_do_not_count() -> None:
    batches = [
        {"x": torch.tensor([[2.0], [torch.nan]]), "has": torch.tensor([True, False])},
        {"x": torch.tensor([[0.0], [4.0]]), "has": torch.tensor([False, True])},
        {"x": torch.zeros(1, 1), "has": torch.tensor([False])},
    ]
    mask = MeanFill("x").fit(batches, present=lambda batch: batch["has"])
    assert mask({"x": torch.zeros(1, 1)})["x"].item() == 3.0


def fit(x: Tensor, present: Any) -> MeanFill:
    return MeanFill("x").fit([{"x": x}], present=present)


ERRORS: ErrorCases = {
    "no batch": (lambda: MeanFill("x").fit([]), ValueError, "samples to fit MeanFill to, got none"),
    "no sample": (
        lambda: MeanFill("x").fit([{"x": torch.ones(0, 2)}]),
        ValueError,
        "samples to fit MeanFill to, got none",
    ),
    "no sample with the modality": (
        lambda: fit(torch.ones(2, 2), lambda batch: torch.zeros(2, dtype=torch.bool)),
        ValueError,
        "samples to fit MeanFill to",
    ),
    "present is a mask": (
        lambda: fit(torch.ones(2), torch.ones(2, dtype=torch.bool)),
        TypeError,
        r"`present` to be callable, got bool \(2,\)",
    ),
    "present returns numbers": (
        lambda: fit(torch.ones(2, 2), lambda batch: torch.ones(2)),
        TypeError,
        r"`present\(batch\)` to be a boolean tensor, got float32 \(2,\)",
    ),
    "present returns another length": (
        lambda: fit(torch.ones(2, 2), lambda batch: torch.ones(3, dtype=torch.bool)),
        ValueError,
        r"`present\(batch\)` of shape \(2,\), got \(3,\)",
    ),
    "sequences of different length": (
        lambda: MeanFill("x").fit([{"x": torch.ones(2, 3)}, {"x": torch.ones(2, 4)}]),
        ValueError,
        r"`x` of one shape per sample in all batches.* got \(3,\) and \(4,\)",
    ),
    "integers": (
        lambda: MeanFill("tokens").fit([make_batch()]),
        TypeError,
        r"`tokens` to be a floating-point tensor, got int64 \(4, 5\)",
    ),
    "batches are tensors": (
        lambda: MeanFill("x").fit([torch.ones(2)]),
        TypeError,
        r"each batch of `batches` to be a mapping, got float32 \(2,\)",
    ),
    "a number": (lambda: MeanFill("x").fit(3), TypeError, "an iterable of batches, got int"),
    "batch without the entry": (
        lambda: MeanFill("x").fit([{"y": torch.ones(2)}]),
        KeyError,
        "`x`, got `y`",
    ),
}


@error_cases(ERRORS)
def test_fit_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)
