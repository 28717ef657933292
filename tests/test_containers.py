"""Containers of a batch keep their type, at the top and nested, stacked and separate."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from multimodal import ErrorCases, assert_raises, error_cases, make_batch, make_views
from torch import Tensor

from msdlosses import Fill, ModalityDropout, ModalityViews


@dataclasses.dataclass
class Record:
    tokens: Any
    kind: str = "caption"

    def __post_init__(self) -> None:
        assert isinstance(self.tokens, Tensor)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    tokens: Any
    kind: str = "caption"


class Pair(NamedTuple):
    tokens: Any
    kind: str = "caption"


@dataclasses.dataclass
class Output(OrderedDict):  # type: ignore[type-arg]
    """A mapping whose values are attributes too, as the outputs of transformers."""

    tokens: Any = None
    kind: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self[field.name] = getattr(self, field.name)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Rows(MutableMapping[str, Any]):
    """Tensors of one batch size, over which it iterates, as a TensorDict."""

    def __init__(self, values: Mapping[str, Any], batch_size: tuple[int, ...]) -> None:
        self.batch_size = batch_size
        self.values_: dict[str, Any] = {}
        for key, value in values.items():
            self[key] = value

    def empty(self) -> Rows:
        return Rows({}, self.batch_size)

    def keys(self) -> Any:
        return self.values_.keys()

    def __getitem__(self, key: str) -> Any:
        return self.values_[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, Tensor):
            assert value.shape[: len(self.batch_size)] == self.batch_size
        self.values_[key] = value

    def __delitem__(self, key: str) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("iterates over rows")

    def __len__(self) -> int:
        return self.batch_size[0]


def get(container: Any, key: str) -> Any:
    return container[key] if isinstance(container, Mapping) else getattr(container, key)


TOKENS = torch.ones(4, 5)
CONTAINERS: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"tokens": TOKENS, "kind": "caption"},
    "OrderedDict": lambda: OrderedDict(tokens=TOKENS, kind="caption"),
    "defaultdict": lambda: defaultdict(list, tokens=TOKENS, kind="caption"),
    "UserDict": lambda: UserDict(tokens=TOKENS, kind="caption"),
    "read-only mapping": lambda: MappingProxyType({"tokens": TOKENS, "kind": "caption"}),
    "dataclass": lambda: Record(TOKENS),
    "frozen dataclass": lambda: Frozen(TOKENS),
    "named tuple": lambda: Pair(TOKENS),
    "mapping with attributes": lambda: Output(TOKENS, "caption"),
    "mapping with a batch size": lambda: Rows({"tokens": TOKENS, "kind": "caption"}, (4,)),
    "mapping without a batch size": lambda: Rows({"tokens": TOKENS, "kind": "caption"}, ()),
    "mapping with two batch axes": lambda: Rows({"tokens": TOKENS, "kind": "caption"}, (4, 5)),
}
MAPPINGS = [name for name in CONTAINERS if isinstance(CONTAINERS[name](), Mapping)]


def entry(container: Any) -> str:
    return "text.0" if isinstance(container, tuple) else "text.tokens"


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_nested_containers_keep_their_type(name: str, views_per_forward: int | None) -> None:
    text, seen = CONTAINERS[name](), []
    views = ModalityViews(
        image=Fill(pixels=0.0),
        text=Fill({entry(text): 0.0}),
        views=("full", "image"),
        views_per_forward=views_per_forward,
    )

    def model(pixels: Tensor, text: Any) -> Tensor:
        seen.append(text)
        return pixels

    views(model, {"pixels": torch.ones(4, 2), "text": text})
    assert {type(other) for other in seen} == {type(text)}
    assert all(other is not text for other in seen)
    assert all(get(other, "kind") == "caption" for other in seen)
    tokens = torch.cat([get(other, "tokens") for other in seen])
    assert tokens[:, 0].tolist() == [1.0] * 4 + [0.0] * 4
    assert (get(text, "tokens") == 1).all()


@pytest.mark.parametrize("name", CONTAINERS)
def test_dropout_keeps_types(name: str) -> None:
    text = CONTAINERS[name]()
    views = ModalityViews(image=Fill(pixels=0.0), text=Fill({entry(text): 0.0}))
    dropped = ModalityDropout(views, 1.0)({"pixels": torch.ones(4, 2), "text": text})["text"]
    assert type(dropped) is type(text)
    assert get(dropped, "kind") == "caption"


@pytest.mark.parametrize("name", MAPPINGS)
@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_batches_keep_their_type(name: str, views_per_forward: int | None) -> None:
    batch, seen = CONTAINERS[name](), []
    views = ModalityViews(
        image=lambda b: b,
        text=Fill(tokens=0.0),
        ignore=("kind",),
        views_per_forward=views_per_forward,
        unpack=False,
    )

    def model(entries: Any) -> Tensor:
        seen.append(entries)
        return get(entries, "tokens")

    views(model, batch)
    assert {type(entries) for entries in seen} == {type(batch)}
    assert all(list(entries.keys()) == ["tokens"] for entries in seen)


def test_default_of_a_defaultdict_stays() -> None:
    batch = defaultdict(list, make_batch())
    assert all(b.default_factory is list for b in make_views().inputs(batch).values())


@pytest.mark.parametrize("name", ["dataclass", "frozen dataclass", "named tuple"])
def test_records_hold_none_for_what_is_ignored(name: str) -> None:
    batch = {**make_batch(), "text": CONTAINERS[name]()}
    kind = "text.1" if name == "named tuple" else "text.kind"
    text = make_views(ignore=(kind,)).inputs(batch)["full"]["text"]
    assert text.kind is None
    assert torch.equal(text.tokens, TOKENS)


def test_attributes_of_ignored_entries_are_none() -> None:
    batch = {**make_batch(), "text": Output(TOKENS, "caption")}
    text = make_views(ignore=("text.kind",)).inputs(batch)["full"]["text"]
    assert text.kind is None
    assert list(text) == ["tokens"]


def test_ignored_elements_of_lists_are_left_out() -> None:
    frames = [torch.ones(4), torch.zeros(9), {"x": torch.ones(4), "index": torch.arange(3)}]
    views = make_views(ignore=("frames.1", "frames.2.index"))
    frames = views.inputs({**make_batch(), "frames": frames})["full"]["frames"]
    assert len(frames) == 2
    assert list(frames[1]) == ["x"]


@pytest.mark.parametrize(
    "shared", [Output(torch.ones(7), "a"), [torch.ones(2)], Record(torch.ones(3)), {1: 2}]
)
@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_shared_entries_are_the_object_itself(shared: Any, views_per_forward: int | None) -> None:
    views = ModalityViews(
        image=lambda b: b,
        text=Fill(tokens=0),
        shared=("encoder_outputs", "a.b"),
        ignore=("a.c",),
        views_per_forward=views_per_forward,
    )

    def model(pixels: Tensor, tokens: Tensor, encoder_outputs: Any, a: Any) -> Tensor:
        assert encoder_outputs is a["b"] is shared
        assert list(a) == ["b"]
        return pixels

    batch = {**make_batch(), "encoder_outputs": shared, "a": {"b": shared, "c": 1}}
    views(model, batch)
    assert ModalityDropout(views, 0.5)(batch)["encoder_outputs"] is shared


# Lists


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b", "c", "d"],
        ("a", None, "c", "d"),
        [1, 2.5, None, "d"],
        [["a", "b"], [], ["c"], ["d"]],
        [{"role": "user"}, {}, {}, {}],
        [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0), None],
    ],
    ids=["strings", "tuple", "mixed", "lists", "dicts", "tensors without axes"],
)
def test_list_of_one_value_per_sample_is_stacked(values: Any) -> None:
    seen = []

    def model(pixels: Tensor, tokens: Tensor, values: Any) -> Tensor:
        seen.append(values)
        return pixels

    make_views()(model, {**make_batch(), "values": values})
    assert seen == [values * 3]
    assert type(seen[0]) is type(values)


@pytest.mark.parametrize("values", [["a", "b", "c"], torch.Size([4, 4, 4, 4]), "abcd", [], {}])
def test_other_lists_are_constants(values: Any) -> None:
    seen = []
    views = make_views(unpack=False)
    views(lambda b: (seen.append(b["values"]), b["pixels"])[1], {**make_batch(), "values": values})
    assert seen == [values]
    assert type(seen[0]) is type(values)


# Errors


def stack(masker: Callable[[Any], Any]) -> Any:
    views = ModalityViews(image=masker, text=Fill(tokens=0))
    return views(lambda pixels, **others: pixels, make_batch())


ERRORS: ErrorCases = {
    "another dtype": (
        lambda: stack(lambda b: {**b, "pixels": b["pixels"].double()}),
        ValueError,
        r"`pixels` of one dtype .* float32 \(4, 2, 3\) and float64 .* views_per_forward=1",
    ),
    "another shape": (
        lambda: stack(lambda b: {**b, "pixels": b["pixels"][:, :1]}),
        ValueError,
        r"one shape per sample in all views, got .* \(4, 1, 3\)",
    ),
    "another number of axes": (
        lambda: stack(lambda b: {**b, "pixels": b["pixels"].flatten(1)}),
        ValueError,
        r"one shape per sample in all views, got .* \(4, 6\)",
    ),
    "array": (
        lambda: make_views()(lambda **b: b["pixels"], {**make_batch(), "boxes": np.ones((4, 2))}),
        TypeError,
        "`boxes` to be a tensor or a list of one value per sample, got ndarray.* `shared`",
    ),
    "no tensor": (
        lambda: stack(lambda b: {**b, "pixels": None}),
        ValueError,
        "`pixels` .* and NoneType",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)


# Containers of other packages


def test_tensordict() -> None:
    tensordict = pytest.importorskip("tensordict")
    batch = tensordict.TensorDict(
        {**make_batch(), "ids": list("abcd"), "kind": "caption", "more": {"x": torch.ones(4)}},
        batch_size=[4],
    )
    for step, sizes in ((None, [12]), (1, [4] * 3)):
        seen = model_inputs(batch, step)
        assert [list(b.batch_size) for b in seen] == [[size] for size in sizes]
        assert all(type(b) is type(b["more"]) is tensordict.TensorDict for b in seen)
        assert all(list(b["ids"]) == list("abcd") * (len(b) // 4) for b in seen)
        assert all(b["kind"] == "caption" for b in seen)


def test_outputs_and_encodings_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_outputs import BaseModelOutput

    output = BaseModelOutput(torch.ones(4, 2), hidden_states=(torch.ones(4, 1), torch.ones(4, 3)))
    batch = transformers.BatchEncoding({**make_batch(), "encoder_outputs": output})
    for step, rows in ((None, 12), (1, 4)):
        for entries in model_inputs(batch, step):
            assert type(entries) is transformers.BatchEncoding
            nested = entries["encoder_outputs"]
            assert type(nested) is BaseModelOutput
            assert len(nested.last_hidden_state) == len(nested["hidden_states"][1]) == rows
            assert nested.attentions is None


def model_inputs(batch: Any, views_per_forward: int | None) -> list[Any]:
    seen: list[Any] = []
    views = make_views(views_per_forward=views_per_forward, unpack=False)
    views(lambda b: (seen.append(b), b["pixels"])[1], batch)
    return seen
