"""Nested batches: names of entries, containers, and entries that are not batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from multimodal import (
    PAD,
    Batch,
    Classifier,
    ErrorCases,
    assert_raises,
    error_cases,
    make_batch,
    make_views,
    to_lists,
)
from torch import Tensor

from msdlosses import Fill, ModalityViews
from msdlosses._batches import move


def model_inputs(views: ModalityViews, batch: Batch) -> list[Batch]:
    """The keyword arguments of each call of the model."""
    calls = []

    def model(**entries: Any) -> Tensor:
        calls.append(entries)
        return torch.zeros(len(entries["pixels"]), 1)

    views(model, batch)
    return calls


# Names of nested entries


@pytest.mark.parametrize(
    "text", [{"text": {"tokens": PAD}}, {"text.tokens": PAD}], ids=["mapping", "dotted name"]
)
def test_names_a_nested_entry(text: Batch) -> None:
    batch = {"pixels": torch.ones(2, 3), "text": {"tokens": torch.ones(2, 4), "kind": "caption"}}
    views = ModalityViews(image=Fill(pixels=0.0), text=Fill(**text), views=("full", "image"))
    (entries,) = model_inputs(views, batch)
    assert entries["text"]["tokens"].tolist() == [[1.0] * 4] * 2 + [[0.0] * 4] * 2
    assert entries["text"]["kind"] == "caption"


def test_key_may_contain_a_dot() -> None:
    batch = {"pixels": torch.ones(2, 3), "text.tokens": torch.ones(2, 4)}
    inputs = ModalityViews(image=Fill(pixels=0), text=Fill(**{"text.tokens": PAD})).inputs(batch)
    assert inputs["image"]["text.tokens"].tolist() == [[0.0] * 4] * 2


def test_index_names_a_tensor_in_a_list() -> None:
    frames = [torch.ones(2, 3), torch.ones(2, 1)]
    batch = {"pixels": torch.ones(2, 3), "frames": frames}
    video = Fill(**{"frames.0": 0.0, "frames.1": -1.0})
    views = ModalityViews(image=Fill(pixels=0.0), video=video, views=("full", "image"))
    (entries,) = model_inputs(views, batch)
    assert entries["frames"][0].tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2
    assert entries["frames"][1].tolist() == [[1.0]] * 2 + [[-1.0]] * 2


class Pair(NamedTuple):
    first: Tensor | None
    second: Tensor


@pytest.mark.parametrize("views_per_forward", [None, 1])
@pytest.mark.parametrize(
    "make",
    [list, tuple, lambda pair: Pair(None, pair[1])],
    ids=["list", "tuple", "named tuple"],
)
def test_containers_keep_their_type(
    views_per_forward: int | None, make: Callable[[list[Tensor]], Any]
) -> None:
    pair = make([torch.ones(2, 3), torch.ones(2, 3)])
    views = ModalityViews(
        image=Fill(pixels=0.0), pair=Fill(**{"pair.1": 0.0}), views_per_forward=views_per_forward
    )
    for entries in model_inputs(views, {"pixels": torch.ones(2, 3), "pair": pair}):
        assert type(entries["pair"]) is type(pair)


# Entries that are not batched


@pytest.mark.parametrize("views_per_forward", [None, 2, 1])
def test_unbatched_entries_are_passed_on(views_per_forward: int | None) -> None:
    unbatched = {
        "scale": torch.tensor(3.0),
        "prompt": "what is this?",
        "flag": None,
        "sizes": [7, 7],
        "table": torch.arange(7.0),
        "graph": {"edges": torch.arange(9.0), "kind": "line"},
    }
    views = make_views(
        shared=("table", "graph"), ignore="index", views_per_forward=views_per_forward
    )
    for entries in model_inputs(views, {**make_batch(), **unbatched, "index": torch.arange(3)}):
        assert set(entries) == {"pixels", "tokens", *unbatched}
        assert entries["scale"] is not unbatched["scale"]  # the model may write to it
        assert entries["table"] is unbatched["table"]
        assert to_lists({name: entries[name] for name in unbatched}) == to_lists(unbatched)


def test_views_may_hold_equal_copies_of_an_unbatched_entry() -> None:
    views = ModalityViews(
        image=lambda b: {**b, "sizes": {"a": list(b["sizes"]["a"])}}, text=Fill(tokens=PAD)
    )
    (entries,) = model_inputs(views, {**make_batch(), "sizes": {"a": [7, 7]}})
    assert entries["sizes"] == {"a": [7, 7]}


def test_nested_entries_can_be_shared_and_ignored() -> None:
    batch = {**make_batch(), "aux": {"table": torch.arange(7.0), "index": torch.arange(9)}}
    (entries,) = model_inputs(make_views(shared="aux.table", ignore="aux.index"), batch)
    assert list(entries["aux"]) == ["table"]
    assert entries["aux"]["table"].shape == (7,)


# Errors


def run(batch: Any, views: ModalityViews | None = None) -> dict[str, Tensor]:
    return (views or make_views())(Classifier(), batch)


def mask_image(
    masker: Callable[[Batch], Batch], *, shared: Sequence[str] = (), **entries: Any
) -> dict[str, Tensor]:
    """Run views whose image is masked by this masker, on a batch with some further entries."""
    views = ModalityViews(image=masker, text=Fill(tokens=PAD), shared=shared)
    return run({**make_batch(), **entries}, views)


def replace_scale(batch: Batch) -> Batch:
    return {**batch, "scale": torch.tensor(2.0)}


def replace_sizes(batch: Batch) -> Batch:
    return {**batch, "sizes": {"a": [1, 3]}}


TEXT = {"text": {"tokens": torch.zeros(4, 5)}}
SEPARATELY = "views_per_forward=1"

ERRORS: ErrorCases = {
    "batch is a tensor": (
        lambda: run(torch.ones(2)),
        TypeError,
        r"`batch` to be a mapping, got float32 \(2,\)",
    ),
    "batch is a list": (
        lambda: make_views().inputs([1]),
        TypeError,
        "`batch` to be a mapping, got list",
    ),
    "no batched tensor": (
        lambda: run({"pixels": torch.tensor(1)}),
        ValueError,
        "`batch` to hold a batched tensor, got none",
    ),
    "entries of different length": (
        lambda: run({"pixels": torch.ones(4, 6), "tokens": torch.ones(3, 5)}),
        ValueError,
        "equal length, got 4 for `pixels` and 3 for `tokens`.* `shared`",
    ),
    "nested entry of different length": (
        lambda: run({**make_batch(), "a": {"b": [torch.ones(9)]}}),
        ValueError,
        r"4 for `pixels` and 9 for `a\.b\.0`",
    ),
    "no such entry": (
        lambda: mask_image(Fill(pixel=0.0)),
        KeyError,
        "`pixel`, got `pixels`, `tokens`",
    ),
    "no such nested entry": (
        lambda: Fill(text={"token": 0})(TEXT),
        KeyError,
        r"`text\.token`, got `text\.tokens`",
    ),
    "no entry in a tensor": (
        lambda: Fill(text={"tokens": {"ids": 0}})(TEXT),
        KeyError,
        r"`text\.tokens\.ids`, got none",
    ),
    "masker adds an entry": (
        lambda: mask_image(lambda batch: {**batch, "more": batch["pixels"]}),
        ValueError,
        f"entries `pixels`, `tokens`, got .*`more`.* {SEPARATELY}",
    ),
    "masker changes an unbatched tensor": (
        lambda: mask_image(replace_scale, scale=torch.tensor(1.0)),
        ValueError,
        f"one `scale` in all views, got different values.* {SEPARATELY}",
    ),
    "masker changes an unbatched list": (
        lambda: mask_image(replace_sizes, shared=("sizes",), sizes={"a": [1, 2]}),
        ValueError,
        f"one `sizes` in all views, got different values.* {SEPARATELY}",
    ),
    "masker replaces a shared entry": (
        lambda: mask_image(Fill(pixels=0.0), shared=("pixels",), pixels=torch.ones(7)),
        ValueError,
        f"one `pixels` in all views.* {SEPARATELY}",
    ),
    "masker replaces a part of a shared entry": (
        lambda: mask_image(Fill(a={"b": 0.0}), shared=("a",), a={"b": torch.ones(7)}),
        ValueError,
        f"one `a` in all views.* {SEPARATELY}",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)


# Devices


def test_move_reaches_nested_tensors_and_keeps_other_values() -> None:
    batch = {"text": {"tokens": torch.ones(2, 3)}, "frames": [torch.ones(2)], "id": "a", "n": 1}
    moved = move(batch, "meta")
    assert moved["text"]["tokens"].device.type == moved["frames"][0].device.type == "meta"
    assert (moved["id"], moved["n"]) == ("a", 1)
    assert batch["frames"][0].device.type == "cpu"
