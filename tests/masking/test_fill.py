"""`Fill` and `LearnedFill`: constant and learned values of absent modalities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from multimodal import PAD, Batch, ErrorCases, assert_raises, error_cases, make_batch
from torch import nn

from msdlosses import Fill, LearnedFill, ModalityViews

# Fill


def test_fills_with_numbers_and_tensors_that_broadcast() -> None:
    mask = Fill(pixels=torch.tensor([0.0, 1.0, 2.0]), tokens=PAD, wave=torch.full((1, 1), -1.0))
    masked = mask(make_batch(2, 3))
    assert masked["pixels"].tolist() == [[[0.0, 1.0, 2.0]] * 2] * 2
    assert masked["tokens"].tolist() == [[PAD] * 5] * 2
    assert masked["wave"].tolist() == [[-1.0] * 4] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_keeps_the_dtype_of_the_entry(dtype: torch.dtype) -> None:
    batch = {"x": torch.ones(2, 3).to(dtype)}
    for value in (4, 4.0, torch.tensor([1, 2, 3])):
        assert Fill(x=value)(batch)["x"].dtype == dtype
    if dtype.is_floating_point:
        assert LearnedFill(x=(3,))(batch)["x"].dtype == dtype


def test_casts_integers_to_other_integers_and_booleans() -> None:
    batch = {"x": torch.zeros(2, 3, dtype=torch.uint8), "m": torch.ones(2, 3, dtype=torch.bool)}
    masked = Fill(x=torch.tensor([0, 128, 255]), m=False)(batch)
    assert masked["x"].tolist() == [[0, 128, 255]] * 2
    assert not masked["m"].any()


@pytest.mark.parametrize(
    "masker",
    [Fill(text=7), Fill(text=torch.tensor([7.0])), LearnedFill(text=7)],
    ids=["number", "tensor", "learned"],
)
def test_value_of_a_nested_entry_fills_all_tensors_in_it(masker: nn.Module) -> None:
    text = {"tokens": torch.ones(2, 1), "more": [torch.ones(2, 3)]}
    masked = masker({"text": text})["text"]
    assert masked["tokens"].tolist() == [[7.0]] * 2
    assert masked["more"][0].tolist() == [[7.0] * 3] * 2


def test_value_of_a_tensor_takes_precedence_over_that_of_its_parent() -> None:
    text = {"tokens": torch.ones(2, 1), "weights": torch.ones(2, 1)}
    masked = Fill(**{"text": 0, "text.tokens": 5})({"text": text})["text"]
    assert [entry.tolist() for entry in masked.values()] == [[[5.0]] * 2, [[0.0]] * 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex64])
def test_infinity_and_fractions_fill_any_floating_point_entry(dtype: torch.dtype) -> None:
    batch = {"x": torch.ones(2, dtype=dtype), "y": torch.ones(2, dtype=dtype)}
    for low in (float("-inf"), torch.tensor(float("-inf"))):
        masked = Fill(x=low, y=0.5)(batch)
        assert masked["x"].real.tolist() == [float("-inf")] * 2
        assert masked["y"].tolist() == [0.5] * 2


def test_unsigned_integers_up_to_their_bound() -> None:
    batch = {"x": torch.zeros(2, dtype=torch.uint64), "y": torch.zeros(2, dtype=torch.uint64)}
    masked = Fill(x=2**64 - 1, y=torch.tensor([0, 2**63 - 1]))(batch)
    assert masked["x"].tolist() == [2**64 - 1] * 2
    assert masked["y"].tolist() == [0, 2**63 - 1]


def test_numbers_of_numpy() -> None:
    batch = {"x": torch.ones(2), "y": torch.ones(2).int(), "z": torch.ones(2, dtype=torch.bool)}
    masked = Fill(x=np.float32(0.5), y=np.int64(3), z=np.bool_(False))(batch)
    assert [entry.tolist() for entry in masked.values()] == [[0.5] * 2, [3] * 2, [False] * 2]
    assert LearnedFill(x=np.float64(0.5))(batch)["x"].tolist() == [0.5] * 2


@pytest.mark.parametrize("kind", [Fill, LearnedFill])
def test_entries_may_have_any_name(kind: Any) -> None:
    names = ("keep", "self", "values", "training", "a.b", "a/b")
    masked = kind({name: float(k) for k, name in enumerate(names)})(
        {name: torch.full((2,), -1.0) for name in names}
    )
    assert [masked[name].tolist() for name in names] == [[float(k)] * 2 for k in range(6)]


def test_mapping_and_keywords_name_different_entries() -> None:
    masked = Fill({"keep": 1, "text": {"tokens": 2}}, self=3, keep=0)(
        {
            "keep": torch.zeros(1, 2),
            "self": torch.zeros(1, 2),
            "text": {"tokens": torch.zeros(1, 2)},
        }
    )
    assert masked["keep"].tolist() == [[0.0, 1.0]]
    assert masked["self"].tolist() == [[0.0, 3.0]]
    assert masked["text"]["tokens"].tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_meta_device(dtype: torch.dtype) -> None:
    batch = {"x": torch.zeros(2, 3, dtype=torch.float16, device="meta")}
    value = torch.zeros(3, dtype=dtype, device="meta")
    for masker in (Fill(x=value), LearnedFill(x=value), Fill(x=0)):
        assert masker(batch)["x"].device.type == "meta"
    with torch.device("meta"):
        assert LearnedFill(x=(3,))(batch)["x"].shape == (2, 3)


def test_integers_of_another_type_compile_to_one_graph() -> None:
    masker, batch = Fill(x=torch.tensor([1, 2, 3])), {"x": torch.zeros(2, 3, dtype=torch.int32)}
    torch.compiler.reset()
    compiled = torch.compile(masker, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(batch)["x"], masker(batch)["x"])


# LearnedFill


@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_learned_fill_learns_by_gradient_descent(views_per_forward: int | None) -> None:
    views = ModalityViews(
        image=LearnedFill(pixels=(2, 3)),
        text=Fill(tokens=PAD),
        views_per_forward=views_per_forward,
    )
    batch, target = make_batch(8), torch.rand(2, 3)
    (parameter,) = views.parameters()
    optimizer = torch.optim.SGD(views.parameters(), 0.1)
    for _ in range(50):
        pixels = views(lambda pixels, tokens: pixels, batch)["text"]
        optimizer.zero_grad()
        (pixels.mean(0) - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), target, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("start", "shape", "value"),
    [
        (0.5, (), 0.5),
        (1, (), 1.0),
        (torch.ones(3), (3,), 1.0),
        ((2, 3), (2, 3), 0.0),
        ([3], (3,), 0.0),
    ],
    ids=["float", "int", "tensor", "shape", "shape as a list"],
)
def test_learned_fill_starts_at_its_initial_value(
    start: Any, shape: tuple[int, ...], value: float
) -> None:
    mask = LearnedFill(pixels=start)
    (parameter,) = mask.parameters()
    assert tuple(parameter.shape) == shape
    assert torch.equal(mask(make_batch())["pixels"], torch.full((4, 2, 3), value))


def test_learned_fill_copies_its_initial_value() -> None:
    start = torch.zeros(3)
    (parameter,) = LearnedFill(pixels=start).parameters()
    with torch.no_grad():
        parameter.add_(1.0)
    assert start.tolist() == [0.0] * 3


# Errors


def fill(masker: nn.Module) -> Batch:
    return masker(make_batch())


def fill_bytes(value: Any) -> Batch:
    return Fill(x=value)({"x": torch.zeros(3, 2, dtype=torch.uint8)})


def fill_half(value: Any) -> Batch:
    return Fill(x=value)({"x": torch.zeros(3, 2, dtype=torch.float16)})


def fill_on_another_device() -> dict[str, Batch]:
    views = ModalityViews(image=Fill(pixels=torch.zeros(3)), text=Fill(tokens=PAD))
    return views.to("meta").inputs(make_batch())


ERRORS: ErrorCases = {
    "string": (lambda: Fill(x="no"), TypeError, "`x` to be a number or a tensor, got str"),
    "None": (lambda: LearnedFill(x=None), TypeError, "`x` to be a number or a tensor, got None"),
    "NaN": (lambda: Fill(x=float("nan")), ValueError, "`x`, got NaN"),
    "tensor with NaN": (
        lambda: Fill(x={"y": torch.tensor([0.0, torch.nan])}),
        ValueError,
        "`x.y`, got NaN",
    ),
    "tensor does not broadcast": (
        lambda: fill(Fill(pixels=torch.ones(5))),
        ValueError,
        r"broadcasts over `pixels` of shape \(4, 2, 3\), got \(5,\)",
    ),
    "learned tensor does not broadcast": (
        lambda: fill(LearnedFill(pixels=(4, 2, 3, 1))),
        ValueError,
        r"broadcasts over `pixels` .* got \(4, 2, 3, 1\)",
    ),
    "fraction for integers": (
        lambda: fill(Fill(tokens=0.5)),
        TypeError,
        r"an integer to fill `tokens`, int64 \(4, 5\), got 0\.5",
    ),
    "floating-point tensor for integers": (
        lambda: fill(Fill(tokens=torch.zeros(5))),
        TypeError,
        r"integers to fill `tokens`, int64 \(4, 5\), got float32 \(5,\)",
    ),
    "learned tensor for integers": (
        lambda: fill(LearnedFill(tokens=0)),
        TypeError,
        r"integers to fill `tokens`, .* got float32 \(\)",
    ),
    "number too large for the dtype": (
        lambda: fill_bytes(256),
        ValueError,
        r"`x` that uint8 \(3, 2\) can represent, got 256",
    ),
    "negative number for bytes": (lambda: fill_bytes(-1), ValueError, "`x` .* represent, got -1"),
    "number that no integer type holds": (
        lambda: fill(Fill(tokens=2**70)),
        ValueError,
        "`tokens` that int64 .* can represent, got 1180591620717411303424",
    ),
    "number too large for half precision": (
        lambda: fill_half(-1e9),
        ValueError,
        r"`x` that float16 \(3, 2\) can represent, got -1000000000\.0",
    ),
    "tensor too large for half precision": (
        lambda: fill_half(torch.tensor(-1e9)),
        ValueError,
        r"`x` that float16 \(3, 2\) can represent, got float32 \(\)",
    ),
    "two for a mask": (
        lambda: Fill(m=2)({"m": torch.ones(2, dtype=torch.bool)}),
        ValueError,
        r"`m` that bool \(2,\) can represent, got 2",
    ),
    "fractions instead of a shape": (
        lambda: LearnedFill(x=[0.5, 0.2]),
        TypeError,
        r"`x` to be a shape, got \[0\.5, 0\.2\]\. Pass values as a tensor",
    ),
    "negative shape": (lambda: LearnedFill(x=(-1,)), TypeError, r"`x` to be a shape, got \(-1,\)"),
    "values in a list": (
        lambda: Fill(["x"]),
        TypeError,
        "`values` to be a mapping of entries to values, got list",
    ),
    "tensor with values outside the dtype": (
        lambda: fill_bytes(torch.tensor([0, -1])),
        ValueError,
        r"`x` that uint8 \(3, 2\) can represent, got int64 \(2,\)",
    ),
    "another device": (
        fill_on_another_device,
        ValueError,
        r"`pixels` on cpu, got meta.* `\.to`",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)
