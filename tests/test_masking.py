"""Views, maskers and modality dropout: what a model is shown, and what it is not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from msdlosses import (
    Fill,
    KDLoss,
    LearnedFill,
    MeanFill,
    MetaLearner,
    ModalityDropout,
    ModalityViews,
    MSDLoss,
    Shuffle,
    WeightNet,
)

Batch = dict[str, Any]

ENTRIES = {"image": "pixels", "text": "tokens", "audio": "wave", "video": "frames"}
SHAPES = {"pixels": (2, 3), "tokens": (5,), "wave": (4,), "frames": (2, 2)}
PAD = 0


def make_batch(size: int = 4, count: int = 2) -> Batch:
    """Entries of which none holds the value that stands for absent."""
    batch = {}
    for name in list(ENTRIES.values())[:count]:
        shape = (size, *SHAPES[name])
        batch[name] = torch.randint(1, 9, shape) if name == "tokens" else torch.rand(shape) + 1.0
    return batch


def make_views(count: int = 2, **options: Any) -> ModalityViews:
    maskers = {m: Fill(**{ENTRIES[m]: 0}) for m in list(ENTRIES)[:count]}
    return ModalityViews(**maskers, **options)


def every_view(count: int) -> tuple[str, ...]:
    modalities = list(ENTRIES)[:count]
    return ("full", *modalities, *(f"~{modality}" for modality in modalities))


class Model(nn.Module):
    """Logits of shape (N, 3) from the entries given as keywords."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {name: torch.Size(shape).numel() for name, shape in SHAPES.items()}
        self.layers = nn.ModuleDict({name: nn.Linear(size, 3) for name, size in sizes.items()})

    def forward(self, **batch: Tensor) -> Tensor:
        parts = [self.layers[name](value.flatten(1).float() / 9) for name, value in batch.items()]
        return torch.stack(parts).sum(0).tanh()


def pixels_of(batch: Mapping[str, Any]) -> Tensor:
    pixels: Tensor = batch["pixels"]
    return pixels


def no_pixels(batch: Mapping[str, Any]) -> Batch:
    return {**batch, "pixels": torch.zeros_like(batch["pixels"])}


def logits_of(returned: Mapping[str, Tensor]) -> Tensor:
    return returned["scores"]


def assert_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert list(left) == list(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=1e-6)


def snapshot(tree: Any) -> Any:
    """A copy of a nested batch, with its tensors as lists, to compare with `==`."""
    if isinstance(tree, Tensor):
        return tree.tolist()
    if isinstance(tree, Mapping):
        return {key: snapshot(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(snapshot(value) for value in tree)
    return tree


# --- what a view shows


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_view_shows_its_modalities_and_masks_the_others(count: int) -> None:
    batch, views = make_batch(count=count), make_views(count, views=every_view(count))
    modalities = list(ENTRIES)[:count]
    inputs = views.inputs(batch)
    assert list(inputs) == list(every_view(count))
    for view, given_to_model in inputs.items():
        for modality in modalities:
            negated = view == f"~{modality}"
            shown = view in ("full", modality) or (view.startswith("~") and not negated)
            entry = ENTRIES[modality]
            expected = batch[entry] if shown else torch.zeros_like(batch[entry])
            assert torch.equal(given_to_model[entry], expected)
            assert given_to_model[entry].dtype == batch[entry].dtype


def test_default_views_are_full_and_each_modality() -> None:
    views = make_views(3)
    assert views.modalities == ("image", "text", "audio")
    assert views.names == ("full", "image", "text", "audio")


def test_the_model_is_run_on_what_inputs_gives() -> None:
    batch, views, model = make_batch(count=3), make_views(3, views=every_view(3)), Model()
    one_by_one = {view: model(**given) for view, given in views.inputs(batch).items()}
    assert_equal(views(model, batch), one_by_one)


def test_without_one_of_two_modalities_is_the_other() -> None:
    views = make_views(2, views=("text", "~image", "image", "~text"))
    logits = views(Model(), make_batch())
    assert torch.equal(logits["~image"], logits["text"])
    assert torch.equal(logits["~text"], logits["image"])


def test_views_come_in_the_order_in_which_they_are_asked_for() -> None:
    views = make_views(2, views=("text", "full"))
    assert list(views(Model(), make_batch())) == ["text", "full"]


# --- every tower once


class Late(nn.Module):
    """A tower for each entry, and a head on all their features; double, to compare gradients."""

    def __init__(self, count: int, *, nested: bool = False) -> None:
        super().__init__()
        self.names = {m: ENTRIES[m] for m in list(ENTRIES)[:count]}
        sizes = {m: torch.Size(SHAPES[entry]).numel() for m, entry in self.names.items()}
        self.layers = nn.ModuleDict({m: nn.Linear(size, 4) for m, size in sizes.items()})
        self.mix = nn.Linear(4 * count, 3)
        self.nested = nested
        self.double()

    def towers(self, **batch: Tensor) -> Batch:
        entries = {m: batch[entry].flatten(1).double() for m, entry in self.names.items()}
        features = {m: self.layers[m](entry).tanh() for m, entry in entries.items()}
        return {m: {"last": [f]} for m, f in features.items()} if self.nested else features

    def head(self, **features: Any) -> Tensor:
        parts = [features[m]["last"][0] if self.nested else features[m] for m in self.names]
        logits: Tensor = self.mix(torch.cat(parts, -1)).tanh()
        return logits

    def forward(self, **batch: Tensor) -> Tensor:
        return self.head(**self.towers(**batch))


@given(data=st.data())
def test_towers_that_run_once_give_the_logits_and_gradients_of_masked_inputs(
    data: st.DataObject,
) -> None:
    count, size = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 4))
    names = data.draw(st.lists(st.sampled_from(every_view(count)), min_size=1, unique=True))
    step = data.draw(st.sampled_from([None, 1, 2]))
    learned = LearnedFill(pixels=torch.rand(2, 3, dtype=torch.double))
    maskers = {m: Fill(**{ENTRIES[m]: 0}) for m in list(ENTRIES)[1:count]}
    views = ModalityViews(image=learned, **maskers, views=names, views_per_forward=step)
    model, batch = Late(count, nested=data.draw(st.booleans())), make_batch(size, count)
    batch["pixels"] = batch["pixels"].double().requires_grad_()
    wanted = [batch["pixels"], *learned.parameters(), *model.parameters()]
    expected, actual = views(model, batch), views.late_fusion(model.towers, model.head, batch)
    for logits in (expected, actual):
        assert list(logits) == names
    for name, logits in actual.items():
        torch.testing.assert_close(logits, expected[name], rtol=0, atol=1e-12)
    total, other = (sum((v**2).sum() for v in views.values()) for views in (expected, actual))
    gradients = torch.autograd.grad(total, wanted, materialize_grads=True)
    others = torch.autograd.grad(other, wanted, materialize_grads=True)
    for gradient, by_features in zip(gradients, others, strict=True):
        torch.testing.assert_close(by_features, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", [None, 1])
def test_each_tower_runs_once_on_the_samples_and_a_blank_one(step: int | None) -> None:
    model, seen = Late(3), []

    def towers(**batch: Tensor) -> Batch:
        seen.append({name: len(entry) for name, entry in batch.items()})
        return model.towers(**batch)

    make_views(3, views_per_forward=step).late_fusion(towers, model.head, make_batch(5, 3))
    assert seen == [{"pixels": 6, "tokens": 6, "wave": 6}]


def test_what_is_ignored_or_shared_is_so_for_towers_too() -> None:
    views = make_views(ignore=("index",), shared=("scale",), unpack=False)
    batch = {**make_batch(), "index": torch.arange(4), "scale": torch.ones(3)}
    seen: list[set[str]] = []

    def towers(given: Batch) -> Batch:
        seen.append(set(given))
        assert given["scale"] is batch["scale"]
        return {"image": given["pixels"].flatten(1)[:, :3], "text": given["tokens"][:, :3]}

    def head(features: Batch) -> Tensor:
        total: Tensor = features["image"] + features["text"]
        return total

    logits = views.late_fusion(towers, head, batch)
    assert seen == [{"pixels", "tokens", "scale"}]
    assert torch.equal(logits["image"], batch["pixels"].flatten(1)[:, :3])


def test_no_samples_have_no_logits() -> None:
    model = Late(2)
    logits = make_views().late_fusion(model.towers, model.head, make_batch(0))
    assert {name: tuple(value.shape) for name, value in logits.items()} == dict.fromkeys(
        ("full", "image", "text"), (0, 3)
    )


def by_inputs(views: ModalityViews, model: Late, batch: Batch) -> Batch:
    return views(model, batch)


def by_features(views: ModalityViews, model: Late, batch: Batch) -> Batch:
    return views.late_fusion(model.towers, model.head, batch)


@pytest.mark.parametrize("logits_of_views", [by_inputs, by_features])
def test_views_compile_whole_and_once_more_for_a_last_smaller_batch(
    logits_of_views: Callable[..., Batch],
) -> None:
    views = ModalityViews(image=LearnedFill(pixels=(2, 3)), text=Fill(tokens=0), ignore="index")
    model, counter = Late(2), CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(
        lambda batch: logits_of_views(views, model, batch), backend=counter, fullgraph=True
    )
    for size in (8, 8, 5, 8, 3):
        batch = {**make_batch(size), "index": torch.arange(size)}
        assert_equal(compiled(batch), logits_of_views(views, model, batch))
    assert counter.frame_count <= 2


def test_a_meta_learner_gets_the_same_gradient_by_features() -> None:
    model, batch, views = Late(2), make_batch(), make_views()
    target = torch.randint(3, (4,))
    taught = {name: torch.randn(4, 3, dtype=torch.double) for name in views.names}
    weights = WeightNet(views.names, num_classes=3).double()
    msd = MSDLoss(KDLoss(), weights)
    learner = MetaLearner(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        weights,
        torch.optim.SGD(weights.parameters(), 0.1),
    )

    def gradient(logits_of_views: Callable[..., Batch]) -> tuple[Tensor, ...]:
        return learner.gradient(
            lambda student: msd(logits_of_views(views, student, batch), taught, target),
            lambda student: nn.functional.cross_entropy(student(**batch), target),
        )

    for one, other in zip(gradient(by_inputs), gradient(by_features), strict=True):
        torch.testing.assert_close(one, other)


def first(features: Batch) -> Batch:
    return {m: f[:1] for m, f in features.items()}


LATE: dict[str, tuple[Callable[[Late], tuple[Any, Any]], type[Exception], str]] = {
    "no towers": (lambda model: (None, model.head), TypeError, "`towers` to be callable"),
    "no head": (lambda model: (model.towers, 3), TypeError, "`head` to be callable, got int"),
    "a tensor": (
        lambda model: (lambda **b: b["pixels"], model.head),
        TypeError,
        r"mapping of modalities, got float32 \(5, 2, 3\)",
    ),
    "names": (
        lambda model: (lambda **b: b, model.head),
        ValueError,
        "features of `image`, `text`, got `pixels`, `tokens`",
    ),
    "rows": (
        lambda model: (lambda **b: first(model.towers(**b)), model.head),
        ValueError,
        r"5 rows of `image`, .* got \(1, 4\)",
    ),
}


@pytest.mark.parametrize("name", LATE)
def test_towers_and_heads_of_another_kind(name: str) -> None:
    make, kind, message = LATE[name]
    with pytest.raises(kind, match=f"Expected .*{message}"):
        make_views().late_fusion(*make(Late(2)), make_batch())


@pytest.mark.parametrize(
    ("masker", "message"),
    [(Shuffle("pixels"), "Shuffle"), (Fill(pixels=0.0, keep=0), "Fill with `keep`")],
)
def test_blank_inputs_that_differ_are_refused(masker: nn.Module, message: str) -> None:
    views, model = ModalityViews(image=masker, text=Fill(tokens=0)), Late(2)
    with pytest.raises(ValueError, match=f"all samples alike, got {message} for `image`"):
        views.late_fusion(model.towers, model.head, make_batch())


# --- forwards


@given(
    size=st.integers(0, 5),
    count=st.integers(2, 4),
    views_per_forward=st.one_of(st.none(), st.integers(1, 10)),
)
def test_stacked_and_separate_forwards_agree(
    size: int, count: int, views_per_forward: int | None
) -> None:
    batch, model, names = make_batch(size, count), Model(), every_view(count)
    stacked = make_views(count, views=names, views_per_forward=views_per_forward)
    separate = make_views(count, views=names, views_per_forward=1)
    assert_equal(stacked(model, batch), separate(model, batch))


@pytest.mark.parametrize(
    ("views_per_forward", "sizes"), [(None, [20]), (2, [8, 8, 4]), (3, [12, 8]), (1, [4] * 5)]
)
def test_views_per_forward_is_how_many_are_stacked(
    views_per_forward: int | None, sizes: list[int]
) -> None:
    seen = []

    def model(**batch: Tensor) -> Tensor:
        seen.append(len(batch["pixels"]))
        return batch["pixels"]

    make_views(2, views=every_view(2), views_per_forward=views_per_forward)(model, make_batch())
    assert seen == sizes


def test_gradients_reach_the_model_through_every_view() -> None:
    model = Model()
    logits = make_views()(model, make_batch())
    for view in ("full", "image", "text"):
        (grad,) = torch.autograd.grad(
            logits[view].sum(), [model.layers["tokens"].bias], retain_graph=True
        )
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_small_batches(size: int, views_per_forward: int | None) -> None:
    views = ModalityViews(
        image=LearnedFill(pixels=(2, 3)),
        text=Fill(tokens=PAD, keep=0),
        views_per_forward=views_per_forward,
    )
    logits = views(Model(), make_batch(size))
    assert {view: value.shape for view, value in logits.items()} == dict.fromkeys(
        views.names, (size, 3)
    )


@pytest.mark.parametrize("shape", [(), (3,), (5, 3), (2, 2, 3)])
def test_logits_keep_their_further_axes(shape: tuple[int, ...]) -> None:
    logits = make_views()(lambda **batch: torch.rand(len(batch["pixels"]), *shape), make_batch())
    assert all(value.shape == (4, *shape) for value in logits.values())


# --- what the model is called with, and what it may return


def test_a_model_that_takes_the_mapping_whole() -> None:
    views = make_views(unpack=False)
    logits = views(pixels_of, make_batch())
    assert torch.equal(logits["text"], torch.zeros(4, 2, 3))


class Output(NamedTuple):
    loss: None
    logits: Tensor


@pytest.mark.parametrize(
    ("form", "output"),
    [
        (lambda logits: logits, None),
        (lambda logits: SimpleNamespace(logits=logits), None),
        (lambda logits: Output(None, logits), None),
        (lambda logits: {"logits": logits, "loss": None}, None),
        (lambda logits: {"scores": logits}, logits_of),
        (lambda logits: (None, logits), lambda returned: returned[1]),
        (lambda logits: SimpleNamespace(logits=None, scores=logits), lambda r: r.scores),
    ],
    ids=["tensor", "attribute", "named tuple", "mapping", "output", "tuple", "output first"],
)
def test_logits_are_found_in_what_the_model_returns(
    form: Callable[[Tensor], Any], output: Callable[[Any], Tensor] | None
) -> None:
    model, batch = Model(), make_batch()
    expected = make_views()(model, batch)
    assert_equal(make_views(output=output)(lambda **b: form(model(**b)), batch), expected)


# --- nested entries, and those that are not batched


def seen_by(views: ModalityViews, batch: Batch) -> list[Batch]:
    """What the model was called with, call by call."""
    calls = []

    def model(**given: Any) -> Tensor:
        calls.append(given)
        first = next(v for k, v in given.items() if k == "pixels")
        return torch.zeros(len(first), 1)

    views(model, batch)
    return calls


@pytest.mark.parametrize("text", [{"text": {"tokens": PAD}}, {"text.tokens": PAD}])
def test_nested_entries_by_mapping_and_by_dotted_name(text: Batch) -> None:
    batch = {"pixels": torch.ones(2, 3), "text": {"tokens": torch.ones(2, 4), "kind": "caption"}}
    views = ModalityViews(image=Fill(pixels=0.0), text=Fill(**text), views=("full", "image"))
    (given_to_model,) = seen_by(views, batch)
    assert given_to_model["text"]["tokens"].tolist() == [[1.0] * 4] * 2 + [[0.0] * 4] * 2
    assert given_to_model["text"]["kind"] == "caption"


def test_an_entry_with_a_dot_in_its_own_name() -> None:
    batch = {"pixels": torch.ones(2, 3), "text.tokens": torch.ones(2, 4)}
    inputs = ModalityViews(image=Fill(pixels=0), text=Fill(**{"text.tokens": PAD})).inputs(batch)
    assert inputs["image"]["text.tokens"].tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize(
    "masker", [Fill(text=7), Fill(text=torch.tensor([7.0])), LearnedFill(text=7)]
)
def test_one_value_for_all_that_a_nested_entry_holds(masker: nn.Module) -> None:
    text = {"tokens": torch.ones(2, 1), "more": [torch.ones(2, 3)]}
    masked = masker({"text": text})["text"]
    assert masked["tokens"].tolist() == [[7.0]] * 2
    assert masked["more"][0].tolist() == [[7.0] * 3] * 2


def test_a_value_of_its_own_goes_before_that_of_the_whole_entry() -> None:
    text = {"tokens": torch.ones(2, 1), "weights": torch.ones(2, 1)}
    masked = Fill(**{"text": 0, "text.tokens": 5})({"text": text})["text"]
    assert [entry.tolist() for entry in masked.values()] == [[[5.0]] * 2, [[0.0]] * 2]


@pytest.mark.parametrize("masker", [MeanFill("text"), Shuffle("text")], ids=["mean", "shuffle"])
def test_a_masker_of_a_whole_nested_entry(masker: nn.Module) -> None:
    text = {"tokens": torch.tensor([[1.0], [3.0]]), "more": [torch.tensor([[5.0], [9.0]])]}
    if isinstance(masker, MeanFill):
        masker.fit([{"text": text}])
    masked = masker({"text": text})["text"]
    mean = isinstance(masker, MeanFill)
    assert masked["tokens"].tolist() == ([[2.0], [2.0]] if mean else [[3.0], [1.0]])
    assert masked["more"][0].tolist() == ([[7.0], [7.0]] if mean else [[9.0], [5.0]])


def test_tensors_in_lists_are_masked_and_stacked() -> None:
    frames = [torch.ones(2, 3), torch.ones(2, 1)]
    batch = {"pixels": torch.ones(2, 3), "frames": frames}
    video = Fill(**{"frames.0": 0.0, "frames.1": -1.0})
    views = ModalityViews(image=Fill(pixels=0.0), video=video, views=("full", "image"))
    (given_to_model,) = seen_by(views, batch)
    assert given_to_model["frames"][0].tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2
    assert given_to_model["frames"][1].tolist() == [[1.0]] * 2 + [[-1.0]] * 2


@pytest.mark.parametrize("views_per_forward", [None, 1])
@pytest.mark.parametrize("kind", [list, tuple, lambda pair: Output(None, pair[1])])
def test_containers_keep_their_kind(
    views_per_forward: int | None, kind: Callable[[list[Tensor]], Any]
) -> None:
    pair = kind([torch.ones(2, 3), torch.ones(2, 3)])
    views = ModalityViews(
        image=Fill(pixels=0.0), pair=Fill(**{"pair.1": 0.0}), views_per_forward=views_per_forward
    )
    for given_to_model in seen_by(views, {"pixels": torch.ones(2, 3), "pair": pair}):
        assert type(given_to_model["pair"]) is type(pair)


@pytest.mark.parametrize("views_per_forward", [None, 2, 1])
def test_what_is_not_batched_is_handed_on(views_per_forward: int | None) -> None:
    extras = {
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
    for given_to_model in seen_by(views, {**make_batch(), **extras, "index": torch.arange(3)}):
        assert set(given_to_model) == {"pixels", "tokens", *extras}
        assert given_to_model["scale"] is extras["scale"]
        assert given_to_model["table"] is extras["table"]
        assert snapshot({name: given_to_model[name] for name in extras}) == snapshot(extras)


def test_what_is_not_batched_may_be_an_equal_copy_in_each_view() -> None:
    views = ModalityViews(
        image=lambda b: {**b, "sizes": {"a": list(b["sizes"]["a"])}}, text=Fill(tokens=PAD)
    )
    (given_to_model,) = seen_by(views, {**make_batch(), "sizes": {"a": [7, 7]}})
    assert given_to_model["sizes"] == {"a": [7, 7]}


def test_nested_entries_can_be_shared_and_ignored() -> None:
    batch = {**make_batch(), "aux": {"table": torch.arange(7.0), "index": torch.arange(9)}}
    (given_to_model,) = seen_by(make_views(shared="aux.table", ignore="aux.index"), batch)
    assert list(given_to_model["aux"]) == ["table"]
    assert given_to_model["aux"]["table"].shape == (7,)


# --- nothing is changed in place


def mutates_the_mapping(batch: Any) -> Any:
    batch["pixels"] = torch.zeros_like(batch["pixels"])
    batch["text"]["tokens"] = batch["text"]["tokens"] * 0
    return batch


def writes_into_the_tensors(batch: Any) -> Any:
    batch["pixels"].zero_()
    batch["text"]["tokens"][:, 1:] = 0
    return batch


class AsModule(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, batch: Any) -> Any:
        return self.function(batch)


@pytest.mark.parametrize(
    "masker",
    [
        mutates_the_mapping,
        writes_into_the_tensors,
        AsModule(mutates_the_mapping),
        AsModule(writes_into_the_tensors),
        Fill(pixels=0.0, text={"tokens": 0}),
        Shuffle("pixels", "text"),
    ],
    ids=["mapping", "tensor", "module, mapping", "module, tensor", "Fill", "Shuffle"],
)
@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_a_batch_is_never_changed(masker: Any, views_per_forward: int | None) -> None:
    batch = {"pixels": torch.rand(3, 2), "text": {"tokens": torch.rand(3, 2)}, "x": torch.rand(3)}
    before = snapshot(batch)
    views = ModalityViews(
        any=masker,
        other=lambda b: {**b, "x": b["x"] * 0},
        views=("other", "full"),
        views_per_forward=views_per_forward,
        unpack=False,
    )
    logits = views(pixels_of, batch)
    ModalityDropout(views, p=1.0)(batch)
    views.inputs(batch)
    assert snapshot(batch) == before
    assert torch.equal(logits["full"], batch["pixels"])
    assert not torch.equal(logits["other"], batch["pixels"])


# --- maskers


def test_fill_takes_numbers_and_tensors_that_broadcast() -> None:
    mask = Fill(pixels=torch.tensor([0.0, 1.0, 2.0]), tokens=PAD, wave=torch.full((1, 1), -1.0))
    masked = mask(make_batch(2, 3))
    assert masked["pixels"].tolist() == [[[0.0, 1.0, 2.0]] * 2] * 2
    assert masked["tokens"].tolist() == [[PAD] * 5] * 2
    assert masked["wave"].tolist() == [[-1.0] * 4] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_the_masked_entry_has_the_dtype_of_the_entry(dtype: torch.dtype) -> None:
    entry = {"x": torch.ones(2, 3).to(dtype)}
    whole = torch.tensor([1, 2, 3])
    for value in (4, 4.0, whole):
        assert Fill(x=value)(entry)["x"].dtype == dtype
    if dtype.is_floating_point:
        assert LearnedFill(x=(3,))(entry)["x"].dtype == dtype
        assert MeanFill("x").fit([entry])(entry)["x"].dtype == dtype


def test_a_fill_of_whole_numbers_in_another_type_of_integers() -> None:
    entry = {"x": torch.zeros(2, 3, dtype=torch.uint8), "m": torch.ones(2, 3, dtype=torch.bool)}
    masked = Fill(x=torch.tensor([0, 128, 255]), m=False)(entry)
    assert masked["x"].tolist() == [[0, 128, 255]] * 2
    assert not masked["m"].any()


def padding(batch: Mapping[str, Any]) -> Tensor:
    special: Tensor = batch["special"]
    return special


SPECIAL = torch.tensor([[True, False, False, False, True], [True, False, False, True, False]])


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (0, [[1, 0, 0, 0, 0]] * 2),
        (-1, [[0, 0, 0, 0, 5]] * 2),
        ([0, -2], [[1, 0, 0, 4, 0]] * 2),
        ((), [[0] * 5] * 2),
        (SPECIAL[0], [[1, 0, 0, 0, 5]] * 2),
        (SPECIAL[:1], [[1, 0, 0, 0, 5]] * 2),
        (SPECIAL, [[1, 0, 0, 0, 5], [1, 0, 0, 4, 0]]),
        (padding, [[1, 0, 0, 0, 5], [1, 0, 0, 4, 0]]),
        (lambda batch: batch["tokens"] == 3, [[0, 0, 3, 0, 0]] * 2),
    ],
    ids=["first", "last", "two", "none", "(L,)", "(1, L)", "(N, L)", "function", "own entry"],
)
def test_keep_spares_positions(keep: Any, kept: list[list[int]]) -> None:
    batch = {
        "pixels": torch.rand(2, 3),
        "tokens": torch.tensor([[1, 2, 3, 4, 5]] * 2),
        "special": SPECIAL,
    }
    views = ModalityViews(
        image=Fill(pixels=0.0), text=Fill(tokens=PAD, keep=keep), ignore=("special",)
    )
    given_to_model = views.inputs(batch)["image"]
    assert given_to_model["tokens"].tolist() == kept
    assert "special" not in given_to_model


def test_mean_fill_takes_the_mean_over_all_samples() -> None:
    data = torch.rand(7, 3, dtype=torch.float64).float() + 100.0
    parts = [{"x": part, "id": "a"} for part in data.split([4, 0, 2, 1])]
    mask = MeanFill("x").fit(parts)
    masked = mask({"x": torch.zeros(2, 3)})["x"]
    torch.testing.assert_close(masked, data.mean(0).expand(2, 3))
    pairs = MeanFill("x").fit((part, torch.zeros(1)) for part in parts)
    assert torch.equal(pairs({"x": torch.zeros(2, 3)})["x"], masked)


def test_mean_fill_can_be_fitted_again() -> None:
    mask = MeanFill("x").fit([{"x": torch.ones(2, 1)}])
    mask.fit([{"x": torch.full((2, 1), 5.0)}])
    assert mask({"x": torch.zeros(1, 1)})["x"].item() == 5.0


@pytest.mark.parametrize("strict", [True, False])
def test_a_fitted_mean_goes_to_a_fresh_module_by_its_state(strict: bool) -> None:
    batch = {"x": torch.rand(4, 3), "text": {"y": torch.rand(4, 2)}}

    def make() -> ModalityViews:
        keep = torch.tensor([True, False, False])
        return ModalityViews(image=MeanFill("x", keep=keep), text=MeanFill("text.y"))

    fitted = make()
    for masker in fitted.maskers.values():
        masker.fit([batch])
    fresh = make()
    fresh.load_state_dict(fitted.state_dict(), strict=strict)
    for view in fitted.names:
        assert snapshot(fresh.inputs(batch)[view]) == snapshot(fitted.inputs(batch)[view])


@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_learned_fill_is_learned_by_gradient_descent(views_per_forward: int | None) -> None:
    views = ModalityViews(
        image=LearnedFill(pixels=(2, 3)),
        text=Fill(tokens=PAD),
        views_per_forward=views_per_forward,
    )
    batch, target = make_batch(8), torch.rand(2, 3)
    (parameter,) = views.parameters()
    optimizer = torch.optim.SGD(views.parameters(), 0.1)
    for _ in range(50):
        shown = views(lambda pixels, tokens: pixels, batch)["text"]
        optimizer.zero_grad()
        (shown.mean(0) - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), target, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("start", "shape"), [(0.5, ()), (1, ()), (torch.ones(3), (3,)), ((2, 3), (2, 3)), ([3], (3,))]
)
def test_learned_fill_starts_where_it_is_told(start: Any, shape: tuple[int, ...]) -> None:
    mask = LearnedFill(pixels=start)
    (parameter,) = mask.parameters()
    assert tuple(parameter.shape) == shape
    value = 0.0 if isinstance(start, tuple | list) else float(torch.as_tensor(start).max())
    assert torch.equal(mask(make_batch())["pixels"], torch.full((4, 2, 3), value))


def test_learned_fill_does_not_change_the_tensor_that_it_starts_from() -> None:
    start = torch.zeros(3)
    (parameter,) = LearnedFill(pixels=start).parameters()
    with torch.no_grad():
        parameter.add_(1.0)
    assert start.tolist() == [0.0] * 3


@pytest.mark.parametrize("size", range(2, 7))
def test_shuffle_gives_every_sample_the_value_of_another(size: int) -> None:
    masked = Shuffle("x", "y")({"x": torch.arange(size), "y": torch.arange(size) * 10})
    assert sorted(masked["x"].tolist()) == list(range(size))
    assert (masked["x"] != torch.arange(size)).all()
    assert torch.equal(masked["y"], masked["x"] * 10)


@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_teacher_and_student_are_shown_the_same_shuffle(views_per_forward: int | None) -> None:
    batch = make_batch()
    seen = []
    for each in (views_per_forward, None):  # the teacher's and the student's
        views = ModalityViews(
            image=Shuffle("pixels"), text=Shuffle("tokens"), views_per_forward=each
        )
        seen.append(views(lambda pixels, tokens: tokens, batch)["image"])
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], batch["tokens"])


def test_a_plain_function_is_a_masker() -> None:
    model, batch = Model(), make_batch()
    views = ModalityViews(image=no_pixels, text=lambda b: {**b, "tokens": b["tokens"] * 0})
    assert_equal(views(model, batch), make_views()(model, batch))


def test_views_that_differ_in_entries_can_be_run_one_by_one() -> None:
    def remove(batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name != "pixels"}

    model, batch = Model(), make_batch()
    views = ModalityViews(image=remove, text=Fill(tokens=PAD), views_per_forward=1)
    assert torch.equal(views(model, batch)["text"], model(tokens=batch["tokens"]))


# --- which views are valid


def test_a_view_is_valid_where_all_that_it_shows_is_present() -> None:
    present = {
        "text": torch.tensor([True, True, False]),
        "image": torch.tensor([True, False, True]),
    }
    valid = make_views(2, views=("full", "image", "text", "~image")).valid(present)
    assert valid.dtype == torch.bool
    assert valid.int().tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 0]]


@given(st.lists(st.tuples(*[st.booleans()] * 3), max_size=6))
def test_valid_with_three_modalities(rows: list[tuple[bool, bool, bool]]) -> None:
    table = torch.tensor(rows, dtype=torch.bool).reshape(-1, 3)
    present = dict(zip(("image", "text", "audio"), table.unbind(1), strict=True))
    valid = make_views(3, views=every_view(3)).valid(present)
    expected = [[i and t and a, i, t, a, t and a, i and a, i and t] for i, t, a in rows]
    assert valid.tolist() == expected
    assert valid.shape == (len(rows), 7)


# --- modality dropout


def dropped(p: float, size: int, count: int) -> Tensor:
    """Which modality of which sample is taken away: (N, M)."""
    batch = make_batch(size, count)
    masked = ModalityDropout(make_views(count), p)(batch)
    return torch.stack([(value == 0).flatten(1).all(1) for value in masked.values()], dim=1)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_dropout_takes_each_modality_away_as_often_as_asked_but_never_all(
    p: float, count: int
) -> None:
    absent = dropped(p, 20_000, count)
    assert not absent.all(1).any()
    expected = p - p**count / count  # a sample that would lose all keeps one of them
    torch.testing.assert_close(
        absent.double().mean(0), torch.full((count,), expected).double(), rtol=0, atol=0.015
    )


def test_dropout_of_one_modality_is_independent_of_the_other_samples() -> None:
    absent = dropped(0.5, 20_000, 3).double()
    following = torch.corrcoef(torch.cat([absent[:-1], absent[1:]], dim=1).T)[:3, 3:]
    assert following.abs().max() < 0.03


def test_without_dropout_nothing_and_with_p_of_one_all_but_one_is_taken_away() -> None:
    assert not dropped(0.0, 100, 3).any()
    absent = dropped(1.0, 3_000, 3)
    assert (absent.sum(1) == 2).all()
    assert (absent.double().mean(0) - 2 / 3).abs().max() < 0.03


@pytest.mark.parametrize("size", [0, 1, 50])
def test_dropped_samples_look_as_the_masker_says_and_others_as_they_came(size: int) -> None:
    views = ModalityViews(image=Fill(pixels=7.0, keep=0), text=Fill(tokens=PAD), shared=("table",))
    batch = {**make_batch(size), "table": torch.arange(3), "id": "a", "one": torch.tensor(1)}
    masked = ModalityDropout(views, 0.5)(batch)
    assert set(masked) == set(batch)
    for modality, entry in (("image", "pixels"), ("text", "tokens")):
        absent = views.maskers[modality](batch)[entry]
        for i in range(size):
            same = torch.equal(masked[entry][i], batch[entry][i])
            assert same or torch.equal(masked[entry][i], absent[i])
    assert torch.equal(masked["table"], batch["table"])
    assert (masked["id"], masked["one"].item()) == ("a", 1)


def test_dropout_is_reproducible_by_its_seed() -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropped(0.5, 50, 2))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_dropout_hands_the_batch_on_in_evaluation() -> None:
    batch = make_batch()
    assert ModalityDropout(make_views(), 1.0).eval()(batch) is batch


def test_dropout_trains_a_learned_fill() -> None:
    views = ModalityViews(image=LearnedFill(pixels=0.0), text=Fill(tokens=PAD))
    drop = ModalityDropout(views, 0.9)
    assert len(list(drop.parameters())) == 1
    drop(make_batch(20))["pixels"].sum().backward()
    (parameter,) = drop.parameters()
    assert parameter.grad is not None
    assert parameter.grad.abs() > 0


# --- copies


def with_state() -> ModalityViews:
    """One masker of each kind, with all that it can hold, and nothing that can't be pickled."""
    return ModalityViews(
        image=Fill(pixels=torch.rand(2, 3), keep=torch.tensor([True, False])),
        text=LearnedFill(text={"wave": torch.rand(4)}, keep=padding_of_wave),
        audio=MeanFill("sound").fit([{"sound": torch.rand(3, 4)}]),
        touch=Shuffle("force", keep=(0, -1)),
        smell=no_smell,
        views=("full", "~image", "text", "~smell"),
        views_per_forward=2,
        ignore=("index",),
        output=logits_of,
    )


def padding_of_wave(batch: Mapping[str, Any]) -> Tensor:
    return batch["text"]["wave"] > 0.9


def no_smell(batch: Mapping[str, Any]) -> Batch:
    return {**batch, "smell": torch.zeros_like(batch["smell"])}


def rich_batch() -> Batch:
    return {
        "pixels": torch.rand(4, 2, 3),
        "text": {"wave": torch.rand(4, 4)},
        "sound": torch.rand(4, 4),
        "force": torch.rand(4, 3),
        "smell": torch.rand(4),
        "index": torch.arange(4),
    }


def rich_model(**b: Any) -> dict[str, Tensor]:
    parts = (b["pixels"], b["text"]["wave"], b["sound"], b["force"], b["smell"])
    return {"scores": torch.cat([part.flatten(1) for part in map(torch.atleast_2d, parts[:4])], 1)}


def reloaded(views: ModalityViews) -> ModalityViews:
    fresh = with_state()
    fresh.load_state_dict(views.state_dict())
    return fresh


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda views: pickle.loads(pickle.dumps(views)), reloaded],
    ids=["deepcopy", "pickle", "state_dict"],
)
def test_copies_give_the_same_views(duplicate: Callable[[ModalityViews], ModalityViews]) -> None:
    views, batch = with_state(), rich_batch()
    expected = views(rich_model, batch)
    other = duplicate(views)
    assert_equal(other(rich_model, batch), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert_equal(views(rich_model, batch), expected)  # they share nothing


def test_views_move_with_to() -> None:
    batch = {name: value.to("meta") for name, value in make_batch(4, 3).items()}
    views = ModalityViews(
        image=Fill(pixels=torch.rand(3), keep=torch.tensor([True, False])),
        text=Fill(tokens=PAD, keep=0),
        audio=LearnedFill(wave=0.0),
    ).to("meta")
    logits = views(Model().to("meta"), batch)
    assert all(value.device.type == "meta" for value in logits.values())


def test_views_are_shown_with_their_options() -> None:
    shown = repr(ModalityDropout(make_views(views=("full", "text"), views_per_forward=1), 0.25))
    for part in ("'full', 'text'", "views_per_forward=1", "p=0.25", "pixels", "tokens"):
        assert part in shown


# --- errors


def run(views: ModalityViews, batch: Any = None, model: Any = None) -> Any:
    return views(model or Model(), make_batch() if batch is None else batch)


def two(image: Any, **options: Any) -> ModalityViews:
    return ModalityViews(image=image, text=Fill(tokens=PAD), **options)


def keep(keep: Any) -> Batch:
    return dict(Fill(tokens=PAD, keep=keep)(make_batch()))


def masks(**present: Any) -> Tensor:
    return make_views(2).valid(present)


def present(size: int) -> Tensor:
    return torch.ones(size, dtype=torch.bool)


def adds_an_entry(batch: Batch) -> Batch:
    return {**batch, "more": batch["pixels"]}


def another_scale(batch: Batch) -> Batch:
    return {**batch, "scale": torch.tensor(2.0)}


def another_size(batch: Batch) -> Batch:
    return {**batch, "sizes": {"a": [1, 3]}}


SETTINGS = {"scale": torch.tensor(1.0), "sizes": {"a": [1, 2]}}
TEXT = {"text": {"tokens": torch.zeros(4, 5)}}

Case = tuple[str, Callable[[], Any], type[Exception], tuple[str, ...]]

CONSTRUCTION: list[Case] = [
    ("no modality", lambda: ModalityViews(), ValueError, ("two modalities", "none")),
    ("one", lambda: ModalityViews(image=no_pixels), ValueError, ("two modalities", "`image`")),
    ("full", lambda: two(no_pixels, full=no_pixels), ValueError, ("modality names", "got `full`")),
    ("~x", lambda: two(no_pixels, **{"~x": no_pixels}), ValueError, ("`~`", "got `~x`")),
    ("dot", lambda: two(no_pixels, **{"a.b": no_pixels}), ValueError, ("dots", "got `a.b`")),
    ("empty", lambda: two(no_pixels, **{"": no_pixels}), ValueError, ("modality names", "``")),
    ("values", lambda: two(no_pixels, values=Fill(x=0)), ValueError, ("attributes", "`values`")),
    ("training", lambda: two(no_pixels, training=Fill(x=0)), ValueError, ("got `training`",)),
    ("output", lambda: two(no_pixels, output=Fill(x=0)), ValueError, ("options", "`output`")),
    ("shared", lambda: two(no_pixels, shared=Fill(x=0)), ValueError, ("options", "`shared`")),
    ("unpack", lambda: two(no_pixels, unpack=no_pixels), ValueError, ("options", "`unpack`")),
    ("no masker", lambda: two(0.0), TypeError, ("masker of `image`", "callable", "float")),
    ("unknown view", lambda: make_views(views=("full", "audio")), ValueError,
     ("`views`", "`full`, `image`, `text`, `~image`, `~text`", "`audio`")),
    ("duplicate view", lambda: make_views(views=("full", "text", "full")), ValueError,
     ("`views`", "once", "`full`, `text`, `full`")),
    ("no view", lambda: make_views(views=()), ValueError, ("`views`", "none")),
    ("views per forward", lambda: make_views(views_per_forward=0), ValueError,
     ("`views_per_forward`", "1 or more", "got 0")),
    ("half a view", lambda: make_views(views_per_forward=1.5), TypeError,
     ("`views_per_forward`", "whole number", "float")),
    ("no function", lambda: make_views(output="logits"), TypeError,
     ("`output`", "function", "str")),
    ("dropout of none", lambda: ModalityDropout(Fill(x=0), 0.5), TypeError,
     ("`views`", "ModalityViews", "Fill")),
    ("p too large", lambda: ModalityDropout(make_views(), 1.5), ValueError,
     ("`p`", "[0, 1]", "1.5")),
    ("p negative", lambda: ModalityDropout(make_views(), -0.1), ValueError, ("`p`", "-0.1")),
    ("p NaN", lambda: ModalityDropout(make_views(), float("nan")), ValueError, ("`p`", "nan")),
    ("p a word", lambda: ModalityDropout(make_views(), "half"), TypeError, ("`p`", "str")),
    ("empty Fill", lambda: Fill(), ValueError, ("Fill", "name an entry", "none")),
    ("empty Shuffle", lambda: Shuffle(), ValueError, ("Shuffle", "name an entry", "none")),
    ("empty MeanFill", lambda: MeanFill(keep=0), ValueError, ("MeanFill", "name an entry", "none")),
    ("fill of text", lambda: Fill(x="no"), TypeError, ("number or a tensor", "`x`", "str")),
    ("fill of None", lambda: LearnedFill(x=None), TypeError, ("`x`", "NoneType")),
    ("fill of NaN", lambda: Fill(x=float("nan")), ValueError, ("`x`", "NaN")),
    ("tensor of NaN", lambda: Fill(x={"y": torch.tensor([0.0, torch.nan])}), ValueError,
     ("`x.y`", "NaN")),
    ("keep a word", lambda: Fill(x=0, keep="all"), TypeError, ("`keep`", "positions", "all")),
    ("keep a float", lambda: Fill(x=0, keep=0.5), TypeError, ("`keep`", "positions", "0.5")),
    ("keep bools", lambda: Fill(x=0, keep=[True, False]), TypeError,
     ("`keep`", "boolean mask", "[True, False]")),
    ("keep a bool", lambda: Fill(x=0, keep=True), TypeError, ("`keep`", "True")),
]  # fmt: skip

CALLS: list[Case] = [
    ("no model", lambda: run(make_views(), model="model"), TypeError,
     ("`model`", "callable", "str")),
    ("no mapping", lambda: run(make_views(), torch.ones(2)), TypeError,
     ("`batch`", "mapping", "float32 (2,)")),
    ("inputs of none", lambda: make_views().inputs([1]), TypeError, ("`batch`", "mapping", "list")),
    ("nothing batched", lambda: run(make_views(), {"pixels": torch.tensor(1)}), ValueError,
     ("`batch`", "batched tensor", "none")),
    ("lengths", lambda: run(make_views(), {"pixels": torch.ones(4, 6), "tokens": torch.ones(3, 5)}),
     ValueError, ("one length", "4 for `pixels`", "3 for `tokens`", "`shared`")),
    ("nested lengths", lambda: run(make_views(), {**make_batch(), "a": {"b": [torch.ones(9)]}}),
     ValueError, ("4 for `pixels`", "9 for `a.b.0`")),
    ("dropout lengths", lambda: ModalityDropout(make_views(), 0.5)(
        {"pixels": torch.ones(4, 6), "tokens": torch.ones(3, 5)}), ValueError, ("3 for `tokens`",)),
    ("missing", lambda: run(two(Fill(pixel=0.0))), KeyError, ("`pixel`", "`pixels`, `tokens`")),
    ("missing within", lambda: Fill(text={"token": 0})(TEXT), KeyError,
     ("`text.token`", "`text.tokens`")),
    ("into a tensor", lambda: Fill(text={"tokens": {"ids": 0}})(TEXT), KeyError,
     ("`text.tokens.ids`", "none")),
    ("not a tensor", lambda: Fill(x=0)({"x": "words"}), TypeError, ("`x`", "batched", "str")),
    ("0-dim", lambda: Fill(x=0)({"x": torch.tensor(1.0)}), TypeError, ("`x`", "float32 ()")),
    ("returns None", lambda: run(make_views(), model=lambda **b: None), TypeError,
     ("model", "tensor", "NoneType", "`output`")),
    ("no logits", lambda: run(make_views(), model=lambda **b: {"scores": b["pixels"]}), TypeError,
     ("model", "logits by attribute or key", "dict")),
    ("output's fault", lambda: run(make_views(output=lambda r: [r])), TypeError, ("model", "list")),
    ("wrong length", lambda: run(make_views(), model=lambda **b: torch.ones(5, 3)), ValueError,
     ("one row for each of 3 x 4", "(5, 3)")),
    ("scalar", lambda: run(make_views(), model=lambda **b: torch.ones(())), ValueError,
     ("one row for each", "()")),
    ("no broadcast", lambda: run(two(Fill(pixels=torch.ones(5)))), ValueError,
     ("broadcasts over `pixels`", "(4, 2, 3)", "(5,)")),
    ("learned, no broadcast", lambda: run(two(LearnedFill(pixels=(4, 2, 3, 1)))), ValueError,
     ("`pixels`", "(4, 2, 3, 1)")),
    ("fraction", lambda: Fill(tokens=0.5)(make_batch()), TypeError,
     ("whole number", "`tokens`", "int64 (4, 5)", "0.5")),
    ("float tensor", lambda: Fill(tokens=torch.zeros(5))(make_batch()), TypeError,
     ("whole numbers", "`tokens`", "int64 (4, 5)", "float32 (5,)")),
    ("learned tokens", lambda: LearnedFill(tokens=0)(make_batch()), TypeError,
     ("whole numbers", "`tokens`", "float32 ()")),
    ("too large", lambda: Fill(x=256)({"x": torch.zeros(2, 3, dtype=torch.uint8)}), ValueError,
     ("`x`", "uint8 (2, 3)", "can hold", "256")),
    ("tensor too large", lambda: Fill(x=torch.tensor([0, -1]))(
        {"x": torch.zeros(3, 2, dtype=torch.uint8)}), ValueError, ("`x`", "uint8", "can hold")),
    ("another device", lambda: two(Fill(pixels=torch.zeros(3))).to("meta").inputs(make_batch()),
     ValueError, ("`pixels`", "cpu", "meta", ".to(device)")),
    ("keep out of range", lambda: keep(5), IndexError, ("`keep`", "5 positions of `tokens`", "5")),
    ("keep below range", lambda: keep([0, -6]), IndexError, ("`keep`", "-6")),
    ("keep in a column", lambda: Fill(x=0, keep=0)({"x": torch.ones(3)}), IndexError, ("`x`", "0")),
    ("keep of integers", lambda: keep(torch.tensor([0, 4])), TypeError,
     ("`keep`", "boolean mask", "int64 (2,)")),
    ("keep of another length", lambda: keep(torch.ones(4).bool()), ValueError,
     ("`keep`", "(L,) or (N, L)", "(4, 5)", "got (4,)")),
    ("keep of other samples", lambda: keep(torch.ones(3, 5).bool()), ValueError,
     ("`keep`", "(4, 5)", "(3, 5)")),
    ("keep to broadcast", lambda: keep(torch.ones(1).bool()), ValueError, ("`keep`", "(1,)")),
    ("keep without axes", lambda: keep(torch.tensor(True)), ValueError, ("`keep`", "got ()")),
    ("keep with more axes", lambda: keep(torch.ones(4, 5, 1).bool()), ValueError, ("(4, 5, 1)",)),
    ("keep gives none", lambda: keep(lambda batch: None), TypeError,
     ("`keep`", "mask", "NoneType")),
    ("keep gives numbers", lambda: keep(lambda batch: batch["tokens"]), TypeError,
     ("`keep`", "boolean mask", "int64 (4, 5)")),
    ("masker gives none", lambda: run(two(lambda batch: None)), TypeError,
     ("masker of `image`", "mapping", "NoneType")),
    ("dropout gives none", lambda: ModalityDropout(two(lambda batch: None), 0.5)(make_batch()),
     TypeError, ("masker of `image`", "mapping", "NoneType")),
    ("other entries", lambda: run(two(adds_an_entry)), ValueError,
     ("`pixels`, `tokens`", "`more`", "views_per_forward=1")),
    ("dropout, other entries", lambda: ModalityDropout(two(adds_an_entry), 0.5)(make_batch()),
     ValueError, ("`pixels`, `tokens`", "`more`", "all entries")),
    ("another scale", lambda: run(two(another_scale), {**make_batch(), **SETTINGS}),
     ValueError, ("`scale`", "alike", "different", "views_per_forward=1")),
    ("another size", lambda: run(two(another_size, shared="sizes"), {**make_batch(), **SETTINGS}),
     ValueError, ("`sizes`", "alike", "different", "views_per_forward=1")),
    ("shared but masked", lambda: run(
        two(Fill(pixels=0.0), shared="pixels"), {**make_batch(), "pixels": torch.ones(7)}),
     ValueError, ("`pixels`", "alike", "views_per_forward=1")),
    ("shared but masked within", lambda: run(
        two(Fill(a={"b": 0.0}), shared="a"), {**make_batch(), "a": {"b": torch.ones(7)}}),
     ValueError, ("`a`", "alike", "views_per_forward=1")),
    ("unfitted", lambda: run(two(MeanFill("pixels"))), RuntimeError,
     ("MeanFill", "`pixels`", "fit")),
    ("fit of nothing", lambda: MeanFill("x").fit([]), ValueError, ("samples", "MeanFill", "none")),
    ("fit of no sample", lambda: MeanFill("x").fit([{"x": torch.ones(0, 2)}]), ValueError,
     ("samples", "MeanFill", "none")),
    ("fit of integers", lambda: MeanFill("tokens").fit([make_batch()]), TypeError,
     ("`tokens`", "floating point", "int64 (4, 5)")),
    ("fit of tensors", lambda: MeanFill("x").fit([torch.ones(2)]), TypeError,
     ("each batch", "mapping", "float32 (2,)")),
    ("fit of a number", lambda: MeanFill("x").fit(3), TypeError, ("iterable of batches", "int")),
    ("fit lacks", lambda: MeanFill("x").fit([{"y": torch.ones(2)}]), KeyError, ("`x`", "`y`")),
    ("lonely", lambda: run(two(Shuffle("pixels")), make_batch(1)), ValueError,
     ("two samples", "`pixels`", "got 1")),
    ("present lacks", lambda: masks(image=present(2)), KeyError,
     ("`present`", "`image`, `text`", "got `image`")),
    ("present unknown", lambda: masks(image=present(2), text=present(2), audio=present(2)),
     KeyError, ("`present`", "`image`, `text`, `audio`")),
    ("present a list", lambda: masks(text=present(2), image=[True, False]), TypeError,
     ("present['image']", "boolean", "list")),
    ("present a float", lambda: masks(image=present(2), text=torch.ones(2)), TypeError,
     ("present['text']", "boolean", "float32 (2,)")),
    ("present of other size", lambda: masks(image=present(2), text=present(3)), ValueError,
     ("present['text']", "(2,)", "(3,)")),
    ("present with positions", lambda: masks(image=present(2), text=torch.ones(2, 2).bool()),
     ValueError, ("present['text']", "(2,)", "(2, 2)")),
]  # fmt: skip


def ids(cases: Iterable[Case]) -> list[str]:
    return [case[0] for case in cases]


@pytest.mark.parametrize(
    ("_", "call", "kind", "fragments"), CONSTRUCTION + CALLS, ids=ids(CONSTRUCTION + CALLS)
)
def test_errors_name_the_argument_what_was_expected_and_what_came(
    _: str, call: Callable[[], Any], kind: type[Exception], fragments: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as error:
        call()
    message = error.value.args[0]
    assert message.startswith("Expected ")
    for fragment in fragments:
        assert fragment in message
