"""`LinearLogits`: what they are, how they are indexed, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from msdlosses import LinearLogits

HIDDEN, WEIGHT, BIAS = torch.randn(3, 4, 6), torch.randn(9, 6), torch.randn(9)


def make(**options: Any) -> LinearLogits:
    return LinearLogits(HIDDEN, WEIGHT, BIAS, **options)


# The logits


def test_materialize_is_a_linear_map() -> None:
    assert_close(make().materialize(), torch.einsum("nld,cd->nlc", HIDDEN, WEIGHT) + BIAS)
    assert_close(LinearLogits(HIDDEN, WEIGHT).materialize(), HIDDEN @ WEIGHT.T)


def test_logits_are_scaled_and_then_capped() -> None:
    logits = make(scale=0.5, softcap=3.0).materialize()
    assert_close(logits, 3 * torch.tanh(0.5 * (HIDDEN @ WEIGHT.T + BIAS) / 3))
    assert logits.abs().max() <= 3


def test_only_the_first_classes_are_used() -> None:
    logits = make(classes=5)
    assert logits.shape == (3, 4, 5)
    assert_close(logits.materialize(), make().materialize()[..., :5])


def test_half_precision_is_multiplied_in_half_and_capped_in_float32() -> None:
    logits = LinearLogits(HIDDEN.bfloat16(), WEIGHT, BIAS, softcap=2.0)
    product = torch.nn.functional.linear(HIDDEN.bfloat16(), WEIGHT.bfloat16(), BIAS.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits.materialize(), 2 * torch.tanh(product.float() / 2))


def test_autocast_applies_to_the_product_but_not_to_float64() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        values = make().materialize()
        double = make().to(torch.float64).materialize()
    product = torch.nn.functional.linear(HIDDEN.bfloat16(), WEIGHT.bfloat16(), BIAS.bfloat16())
    assert torch.equal(values, product.float())
    assert_close(double, make().to(torch.float64).materialize())


# Attributes


def test_attributes_are_those_of_the_logits() -> None:
    logits = make()
    assert logits.shape == (3, 4, 9)
    assert logits.ndim == 3
    assert len(logits) == 3
    assert logits.dtype == torch.float32
    assert logits.device == HIDDEN.device
    assert not logits.requires_grad
    assert len(LinearLogits(HIDDEN[0, 0], WEIGHT)) == 9


@pytest.mark.parametrize("name", ["hidden", "weight", "bias"])
def test_requires_grad_if_any_tensor_does(name: str) -> None:
    tensors = {"hidden": HIDDEN, "weight": WEIGHT, "bias": BIAS}
    tensors[name] = tensors[name].clone().requires_grad_()
    logits = LinearLogits(**tensors)
    assert logits.requires_grad
    assert not logits.detach().requires_grad
    assert logits.materialize().requires_grad


def test_to_moves_and_casts_all_tensors() -> None:
    logits = make(scale=2.0, classes=5).to("meta", torch.float16)
    assert logits.device.type == "meta"
    assert {tensor.dtype for tensor in logits.tensors} == {torch.float16}
    assert (logits.scale, logits.shape) == (2.0, (3, 4, 5))


def test_repr_shows_options() -> None:
    assert repr(make()) == "LinearLogits((3, 4, 9), width=6, dtype=torch.float32)"
    assert "scale=2.0, softcap=30.0" in repr(make(scale=2.0, softcap=30.0))


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_are_equal(duplicate: Callable[[LinearLogits], LinearLogits]) -> None:
    logits = make(softcap=2.0, classes=5)
    assert torch.equal(duplicate(logits).materialize(), logits.materialize())


# Indexing


@pytest.mark.parametrize(
    "index",
    [
        1,
        slice(1, 3),
        (slice(None), slice(None, -1)),
        (0, 2),
        (None, 1),
        torch.tensor([2, 0]),
        torch.rand(3, 4) < 0.5,
    ],
    ids=["sample", "samples", "positions", "position", "new axis", "order", "mask"],
)
def test_index_selects_samples_and_positions(index: Any) -> None:
    assert_close(make()[index].materialize(), make().materialize()[index])


def test_iterates_over_samples() -> None:
    assert [sample.shape for sample in make()] == [(4, 9)] * 3


@pytest.mark.parametrize("index", [(0, 0, 0), (slice(None),) * 3, (..., 0), ...], ids=str)
def test_index_of_the_classes_is_refused(index: Any) -> None:
    with pytest.raises(IndexError):
        make()[index]


# Errors


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ((HIDDEN, WEIGHT[:, :5]), ValueError, r"\(3, 4, 6\), \(9, 5\)"),
        ((HIDDEN, WEIGHT[0]), ValueError, "`weight` "),
        ((HIDDEN[0, 0, 0], WEIGHT), ValueError, "`hidden` "),
        ((HIDDEN, WEIGHT, BIAS[:5]), ValueError, r"\(5,\)"),
        ((HIDDEN, WEIGHT, BIAS[:, None]), ValueError, "`bias` "),
        ((HIDDEN.long(), WEIGHT), TypeError, "`hidden` to be a floating-point tensor, got int64"),
        ((HIDDEN, WEIGHT.long()), TypeError, "`weight` to be a floating-point tensor"),
        ((HIDDEN, WEIGHT, BIAS.long()), TypeError, "`bias` to be a floating-point tensor"),
        ((HIDDEN, None), TypeError, "`weight` to be a floating-point tensor, got NoneType"),
        ((HIDDEN, WEIGHT.to("meta")), ValueError, "one device, got `cpu`, `meta`"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tensors: tuple[Tensor, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LinearLogits(*tensors)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"softcap": 0.0}, ValueError, r"`softcap` in \(0, inf\), got 0"),
        ({"softcap": True}, TypeError, "`softcap` to be a number"),
        ({"scale": float("nan")}, ValueError, "`scale` in"),
        ({"scale": "2"}, TypeError, "`scale` to be a number"),
        ({"classes": 0}, ValueError, "`classes` of at least 1, got 0"),
        ({"classes": 10}, ValueError, r"`classes` up to 9, got 10"),
        ({"classes": 2.0}, TypeError, "`classes` to be an integer"),
    ],
)
def test_options_are_checked(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**options)
