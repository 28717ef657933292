"""`ModalityViews`: the input and the logits of each view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multimodal import (
    ENTRIES,
    PAD,
    Batch,
    Classifier,
    ErrorCases,
    all_views,
    assert_close_logits,
    assert_raises,
    error_cases,
    make_batch,
    make_views,
)
from torch import Tensor, nn

from msdlosses import Fill, LearnedFill, ModalityViews

# Views


@pytest.mark.parametrize("count", [2, 3, 4])
def test_view_masks_the_modalities_that_it_does_not_show(count: int) -> None:
    batch, views = make_batch(count=count), make_views(count, views=all_views(count))
    inputs = views.inputs(batch)
    assert list(inputs) == list(all_views(count))
    for view, masked in inputs.items():
        for modality in list(ENTRIES)[:count]:
            negated = view == f"~{modality}"
            shown = view in ("full", modality) or (view.startswith("~") and not negated)
            entry = ENTRIES[modality]
            expected = batch[entry] if shown else torch.zeros_like(batch[entry])
            assert torch.equal(masked[entry], expected)
            assert masked[entry].dtype == batch[entry].dtype


def test_default_views_are_full_and_each_modality() -> None:
    views = make_views(3)
    assert views.modalities == ("image", "text", "audio")
    assert views.names == ("full", "image", "text", "audio")


def test_model_runs_on_inputs() -> None:
    batch, views, model = make_batch(count=3), make_views(3, views=all_views(3)), Classifier()
    expected = {view: model(**masked) for view, masked in views.inputs(batch).items()}
    assert_close_logits(views(model, batch), expected)


def test_hiding_one_of_two_modalities_shows_the_other() -> None:
    views = make_views(2, views=("text", "~image", "image", "~text"))
    logits = views(Classifier(), make_batch())
    assert torch.equal(logits["~image"], logits["text"])
    assert torch.equal(logits["~text"], logits["image"])


def test_views_keep_the_requested_order() -> None:
    views = make_views(2, views=("text", "full"))
    assert list(views(Classifier(), make_batch())) == ["text", "full"]


def zero_pixels(batch: Mapping[str, Any]) -> Batch:
    return {**batch, "pixels": torch.zeros_like(batch["pixels"])}


def test_plain_function_is_a_masker() -> None:
    model, batch = Classifier(), make_batch()
    views = ModalityViews(image=zero_pixels, text=lambda b: {**b, "tokens": b["tokens"] * 0})
    assert_close_logits(views(model, batch), make_views()(model, batch))


# Forward passes


@given(
    size=st.integers(0, 5),
    count=st.integers(2, 4),
    views_per_forward=st.one_of(st.none(), st.integers(1, 10)),
)
def test_stacked_and_separate_forward_passes_agree(
    size: int, count: int, views_per_forward: int | None
) -> None:
    batch, model, names = make_batch(size, count), Classifier(), all_views(count)
    stacked = make_views(count, views=names, views_per_forward=views_per_forward)
    separate = make_views(count, views=names, views_per_forward=1)
    assert_close_logits(stacked(model, batch), separate(model, batch))


@pytest.mark.parametrize(
    ("views_per_forward", "sizes"), [(None, [20]), (2, [8, 8, 4]), (3, [12, 8]), (1, [4] * 5)]
)
def test_views_per_forward_limits_the_stacked_views(
    views_per_forward: int | None, sizes: list[int]
) -> None:
    batch_sizes = []

    def model(**batch: Tensor) -> Tensor:
        batch_sizes.append(len(batch["pixels"]))
        return batch["pixels"]

    make_views(2, views=all_views(2), views_per_forward=views_per_forward)(model, make_batch())
    assert batch_sizes == sizes


def test_gradients_flow_through_every_view() -> None:
    model = Classifier()
    logits = make_views()(model, make_batch())
    for view in ("full", "image", "text"):
        (gradient,) = torch.autograd.grad(
            logits[view].sum(), [model.layers["tokens"].bias], retain_graph=True
        )
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_batches_of_no_sample_and_of_one_sample(size: int, views_per_forward: int | None) -> None:
    views = ModalityViews(
        image=LearnedFill(pixels=(2, 3)),
        text=Fill(tokens=PAD, keep=0),
        views_per_forward=views_per_forward,
    )
    logits = views(Classifier(), make_batch(size))
    assert {view: value.shape for view, value in logits.items()} == dict.fromkeys(
        views.names, (size, 3)
    )


@pytest.mark.parametrize("shape", [(), (3,), (5, 3), (2, 2, 3)])
def test_logits_keep_trailing_axes(shape: tuple[int, ...]) -> None:
    logits = make_views()(lambda **batch: torch.rand(len(batch["pixels"]), *shape), make_batch())
    assert all(value.shape == (4, *shape) for value in logits.values())


def test_views_with_different_entries_can_run_separately() -> None:
    def remove_pixels(batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name != "pixels"}

    model, batch = Classifier(), make_batch()
    views = ModalityViews(image=remove_pixels, text=Fill(tokens=PAD), views_per_forward=1)
    assert torch.equal(views(model, batch)["text"], model(tokens=batch["tokens"]))


# What the model takes and returns


def test_unpack_false_passes_the_mapping() -> None:
    views = make_views(unpack=False)
    logits = views(lambda batch: batch["pixels"], make_batch())
    assert torch.equal(logits["text"], torch.zeros(4, 2, 3))


class Output(NamedTuple):
    loss: None
    logits: Tensor


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda logits: logits, None),
        (lambda logits: SimpleNamespace(logits=logits), None),
        (lambda logits: Output(None, logits), None),
        (lambda logits: {"logits": logits, "loss": None}, None),
        (lambda logits: {"scores": logits}, lambda returned: returned["scores"]),
        (lambda logits: (None, logits), lambda returned: returned[1]),
        (lambda logits: SimpleNamespace(logits=None, scores=logits), lambda r: r.scores),
    ],
    ids=[
        "tensor",
        "attribute",
        "named tuple",
        "mapping",
        "mapping, output",
        "tuple, output",
        "attribute, output",
    ],
)
def test_finds_logits_in_what_the_model_returns(
    wrap: Callable[[Tensor], Any], output: Callable[[Any], Tensor] | None
) -> None:
    model, batch = Classifier(), make_batch()
    logits = make_views(output=output)(lambda **entries: wrap(model(**entries)), batch)
    assert_close_logits(logits, make_views()(model, batch))


# Errors


class NoOutput(nn.Module):
    def forward(self, **batch: Tensor) -> None:
        return None


def run(views: ModalityViews, model: Any) -> dict[str, Tensor]:
    return views(model, make_batch())


RETURNED = "the model to return a tensor.* `logits`, got"

ERRORS: ErrorCases = {
    "model is a string": (
        lambda: run(make_views(), "model"),
        TypeError,
        "`model` to be callable, got str",
    ),
    "module returns None": (
        lambda: run(make_views(), NoOutput()),
        TypeError,
        f"{RETURNED} NoneType.* `output`",
    ),
    "function returns None": (
        lambda: run(make_views(), lambda **batch: None),
        TypeError,
        f"{RETURNED} NoneType.* `output`",
    ),
    "mapping without logits": (
        lambda: run(make_views(), lambda **batch: {"scores": batch["pixels"]}),
        TypeError,
        f"{RETURNED} dict",
    ),
    "output returns a list": (
        lambda: run(make_views(output=lambda returned: [returned]), Classifier()),
        TypeError,
        f"{RETURNED} list",
    ),
    "logits of the wrong length": (
        lambda: run(make_views(), lambda **batch: torch.ones(5, 3)),
        ValueError,
        r"3 x 4 rows from the model, got \(5, 3\)",
    ),
    "logits without axes": (
        lambda: run(make_views(), lambda **batch: torch.ones(())),
        ValueError,
        r"3 x 4 rows from the model, got \(\)",
    ),
    "masker returns None": (
        lambda: run(ModalityViews(image=lambda batch: None, text=Fill(tokens=0)), Classifier()),
        TypeError,
        "a mapping from the masker of `image`, got NoneType",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)
