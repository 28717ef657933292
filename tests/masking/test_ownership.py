"""Each view owns its input: who writes to it changes neither the batch nor other views."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from multimodal import ErrorCases, assert_raises, error_cases, make_batch, make_views
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from msdlosses import Downsample, Fill, LearnedFill, MeanFill, ModalityDropout, ModalityViews

Batch = dict[str, Any]
EACH = ("full", "image", "text", "audio", "~image", "~text", "~audio")


class Memory:
    """What a model keeps between calls, such as the keys and values of a decoder."""

    def __init__(self) -> None:
        self.calls = 0


@pytest.mark.parametrize("views_per_forward", [None, 1, 2])
def test_model_that_writes_to_its_input(views_per_forward: int | None) -> None:
    batch = {**make_batch(), "memory": Memory(), "scale": torch.tensor(2.0), "ids": list("abcd")}
    pixels = batch["pixels"].clone()

    def model(entries: Batch) -> Tensor:
        assert entries["memory"].calls == 0
        entries["memory"].calls += 1
        entries["ids"].clear()
        logits = entries["pixels"] * entries["scale"].mul_(2)
        entries["pixels"].zero_()
        entries["added"] = 1
        return logits

    logits = make_views(views_per_forward=views_per_forward, unpack=False)(model, batch)
    assert torch.equal(logits["image"], 4 * pixels)
    assert torch.equal(batch["pixels"], pixels)
    assert (batch["memory"].calls, batch["scale"].item(), batch["ids"]) == (0, 2, list("abcd"))
    assert "added" not in batch


@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_late_fusion_with_a_head_that_starts_in_place(views_per_forward: int | None) -> None:
    tower = nn.Linear(6, 3)
    views = make_views(views_per_forward=views_per_forward)
    activation = nn.ReLU(inplace=True)

    def towers(pixels: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        return {"image": tower(pixels.flatten(1)), "text": tokens[:, :3] - 4.0}

    def head(image: Tensor, text: Tensor) -> Tensor:
        return activation(image) + 2 * activation(text)

    batch = make_batch()
    fused = views.late_fusion(towers, head, batch)
    for view, logits in views(lambda **entries: head(**towers(**entries)), batch).items():
        torch.testing.assert_close(fused[view], logits)
    sum(logits.sum() for logits in fused.values()).backward()
    assert tower.weight.grad is not None


MASKERS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: Fill(x=torch.ones(1, 3)),
    "learned": lambda: LearnedFill(x=(1, 3)),
    "mean": lambda: MeanFill("x").fit([{"x": torch.ones(2, 3)}]),
    "function": lambda: ReturnsItsBuffer(),
}


class ReturnsItsBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("blank", torch.ones(1, 3))

    def forward(self, batch: Batch) -> Batch:
        return {**batch, "x": self.blank}


@pytest.mark.parametrize("name", MASKERS)
def test_model_cannot_write_to_what_a_masker_holds(name: str) -> None:
    """A batch of one sample needs no broadcasting, so a masker might return its own tensor."""
    masker = MASKERS[name]()
    before = copy.deepcopy(masker.state_dict())
    views = ModalityViews(image=masker, text=Fill(y=0.0), views_per_forward=1)
    views(lambda x, y: x.add_(5.0) + y, {"x": torch.zeros(1, 3), "y": torch.zeros(1, 3)})
    for key, value in masker.state_dict().items():
        assert torch.equal(value, before[key])


def test_gradients_reach_the_batch_through_copies() -> None:
    batch = make_batch()
    batch["pixels"].requires_grad_()
    logits = make_views(views_per_forward=1)(lambda pixels, tokens: pixels.mul_(2), batch)
    logits["full"].sum().backward()
    assert torch.equal(batch["pixels"].grad, torch.full((4, 2, 3), 2.0))


class Clones(TorchDispatchMode):
    """Count copies of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function is torch.ops.aten.clone.default
        return function(*args, **(kwargs or {}))


def zero(name: str) -> Callable[[Batch], Batch]:
    def masker(batch: Batch) -> Batch:
        batch[name].zero_()
        return batch

    return masker


def count_clones(views_per_forward: int | None, *maskers: Any) -> int:
    maskers_of = dict(zip(("image", "text", "audio"), maskers, strict=True))
    views = ModalityViews(**maskers_of, views=EACH, views_per_forward=views_per_forward)
    with Clones() as clones:
        views(lambda pixels, **others: pixels, make_batch(count=3))
    return clones.count


def test_entries_are_copied_at_most_once_per_view() -> None:
    """Seven views of three entries."""
    functions = [zero(name) for name in ("pixels", "tokens", "wave")]
    assert count_clones(None, *functions) == 18  # `full` is stacked without a copy
    assert count_clones(1, *functions) == 21
    fills = Fill(pixels=0.0), Fill(tokens=0), Fill(wave=0.0)
    assert count_clones(None, *fills) == 0  # stacking makes new tensors
    assert count_clones(1, *fills) == 12  # entries that are shown


def image(shape: tuple[int, ...], memory_format: torch.memory_format) -> Tensor:
    return torch.rand(shape).to(memory_format=memory_format)


CHANNELS_LAST = {
    "number": Fill(x=0.0),
    "tensor": Fill(x=torch.rand(3, 1, 1)),
    "keep": Fill(x=torch.rand(3, 1, 1), keep=1),
    "learned": LearnedFill(x=(3, 4, 4)),
    "mean": MeanFill("x").fit([{"x": torch.rand(2, 3, 4, 4)}]),
    "downsample": Downsample("x", factor=3),
}


@pytest.mark.parametrize("name", CHANNELS_LAST)
@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_channels_last_is_preserved(name: str, views_per_forward: int | None) -> None:
    batch = {"x": image((2, 3, 4, 4), torch.channels_last), "y": torch.ones(2)}
    assert CHANNELS_LAST[name](batch)["x"].is_contiguous(memory_format=torch.channels_last)
    formats = []

    def model(x: Tensor, y: Tensor) -> Tensor:
        formats.append(x.is_contiguous(memory_format=torch.channels_last))
        return y

    ModalityViews(image=CHANNELS_LAST[name], text=Fill(y=0.0), views_per_forward=views_per_forward)(
        model, batch
    )
    assert all(formats)


def test_three_dimensional_channels_last_is_preserved() -> None:
    batch = {"x": image((2, 3, 4, 4, 4), torch.channels_last_3d)}
    masked = LearnedFill(x=0.0)(batch)["x"]
    assert masked.is_contiguous(memory_format=torch.channels_last_3d)


# Constants


def change_scale(batch: Batch) -> Batch:
    batch["scale"].mul_(0)
    return batch


def change_memory(batch: Batch) -> Batch:
    batch["memory"].calls += 1
    return batch


def run(masker: Callable[[Batch], Batch], **constants: Any) -> Any:
    views = ModalityViews(image=masker, text=Fill(tokens=0))
    return views(lambda pixels, **others: pixels, {**make_batch(), **constants})


def drop(masker: Callable[[Batch], Batch], **constants: Any) -> Any:
    views = ModalityViews(image=masker, text=Fill(tokens=0))
    return ModalityDropout(views, 0.5)({**make_batch(), **constants})


@pytest.mark.parametrize("call", [run, drop])
@pytest.mark.parametrize(
    "constant", [torch.tensor(1.0), "words", None, torch.float16, {"a": 1}, [1, 2], min, {1}]
)
def test_constants_that_a_function_leaves_alone(call: Callable[..., Any], constant: Any) -> None:
    call(zero("pixels"), constant=constant)


class Lock:
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("cannot be copied")


ERRORS: ErrorCases = {
    "stacked constant that a masker writes to": (
        lambda: run(change_scale, scale=torch.tensor(2.0)),
        ValueError,
        "one `scale` in all views, got different values.* views_per_forward=1",
    ),
    "stacked object that a masker changes": (
        lambda: run(change_memory, memory=Memory()),
        ValueError,
        "one `memory` in all views.* views_per_forward=1",
    ),
    "dropout of a constant": (
        lambda: drop(change_scale, scale=torch.tensor(2.0)),
        ValueError,
        "`scale` to be per sample",
    ),
    "object that cannot be copied": (
        lambda: run(zero("pixels"), lock=Lock()),
        TypeError,
        "`lock` to be an object that can be copied for each view, got Lock.* `shared`",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)
