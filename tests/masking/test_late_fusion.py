"""`ModalityViews.late_fusion`: each encoder runs once, and absent features are replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multimodal import (
    ENTRIES,
    SHAPES,
    Batch,
    ErrorCases,
    all_views,
    assert_close_logits,
    assert_raises,
    error_cases,
    make_batch,
    make_views,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from msdlosses import (
    Fill,
    KDLoss,
    LearnedFill,
    MetaLearner,
    ModalityViews,
    MSDLoss,
    Shuffle,
    WeightNet,
)


class LateFusion(nn.Module):
    """An encoder per modality and a fusion head, in float64 to compare gradients."""

    def __init__(self, count: int, *, nested: bool = False) -> None:
        super().__init__()
        self.entries = {modality: ENTRIES[modality] for modality in list(ENTRIES)[:count]}
        sizes = {m: torch.Size(SHAPES[entry]).numel() for m, entry in self.entries.items()}
        self.encoders = nn.ModuleDict({m: nn.Linear(size, 4) for m, size in sizes.items()})
        self.fusion = nn.Linear(4 * count, 3)
        self.nested = nested
        self.double()

    def towers(self, **batch: Tensor) -> Batch:
        inputs = {m: batch[entry].flatten(1).double() for m, entry in self.entries.items()}
        features = {m: self.encoders[m](values).tanh() for m, values in inputs.items()}
        return {m: {"last": [f]} for m, f in features.items()} if self.nested else features

    def head(self, **features: Any) -> Tensor:
        parts = [features[m]["last"][0] if self.nested else features[m] for m in self.entries]
        logits: Tensor = self.fusion(torch.cat(parts, -1)).tanh()
        return logits

    def forward(self, **batch: Tensor) -> Tensor:
        return self.head(**self.towers(**batch))


def mask_inputs(views: ModalityViews, model: LateFusion, batch: Batch) -> dict[str, Tensor]:
    return views(model, batch)


def replace_features(views: ModalityViews, model: LateFusion, batch: Batch) -> dict[str, Tensor]:
    return views.late_fusion(model.towers, model.head, batch)


LogitsOfViews = Callable[[ModalityViews, LateFusion, Batch], dict[str, Tensor]]


@given(data=st.data())
def test_logits_and_gradients_equal_those_of_masked_inputs(data: st.DataObject) -> None:
    count, size = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 4))
    names = data.draw(st.lists(st.sampled_from(all_views(count)), min_size=1, unique=True))
    views_per_forward = data.draw(st.sampled_from([None, 1, 2]))
    learned = LearnedFill(pixels=torch.rand(2, 3, dtype=torch.double))
    others = {m: Fill(**{ENTRIES[m]: 0}) for m in list(ENTRIES)[1:count]}
    views = ModalityViews(image=learned, **others, views=names, views_per_forward=views_per_forward)
    model, batch = LateFusion(count, nested=data.draw(st.booleans())), make_batch(size, count)
    batch["pixels"] = batch["pixels"].double().requires_grad_()
    inputs = [batch["pixels"], *learned.parameters(), *model.parameters()]

    def logits_and_gradients(logits_of_views: LogitsOfViews) -> tuple[Any, tuple[Tensor, ...]]:
        logits = logits_of_views(views, model, batch)
        total = sum((values**2).sum() for values in logits.values())
        return logits, torch.autograd.grad(total, inputs, materialize_grads=True)

    expected, expected_gradients = logits_and_gradients(mask_inputs)
    actual, gradients = logits_and_gradients(replace_features)
    assert list(expected) == list(actual) == names
    for view in names:
        torch.testing.assert_close(actual[view], expected[view], rtol=0, atol=1e-12)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_towers_run_once_on_the_batch_and_one_blank_sample(views_per_forward: int | None) -> None:
    model, calls = LateFusion(3), []

    def towers(**batch: Tensor) -> Batch:
        calls.append({name: len(entry) for name, entry in batch.items()})
        return model.towers(**batch)

    views = make_views(3, views_per_forward=views_per_forward)
    views.late_fusion(towers, model.head, make_batch(5, 3))
    assert calls == [{"pixels": 6, "tokens": 6, "wave": 6}]


def test_towers_get_shared_entries_and_no_ignored_ones() -> None:
    views = make_views(ignore=("index",), shared=("scale",), unpack=False)
    batch = {**make_batch(), "index": torch.arange(4), "scale": torch.ones(3)}
    calls: list[set[str]] = []

    def towers(entries: Batch) -> Batch:
        calls.append(set(entries))
        assert entries["scale"] is batch["scale"]
        return {"image": entries["pixels"].flatten(1)[:, :3], "text": entries["tokens"][:, :3]}

    def head(features: Batch) -> Tensor:
        total: Tensor = features["image"] + features["text"]
        return total

    logits = views.late_fusion(towers, head, batch)
    assert calls == [{"pixels", "tokens", "scale"}]
    assert torch.equal(logits["image"], batch["pixels"].flatten(1)[:, :3])


def test_empty_batch_has_empty_logits() -> None:
    model = LateFusion(2)
    logits = make_views().late_fusion(model.towers, model.head, make_batch(0))
    assert {name: tuple(value.shape) for name, value in logits.items()} == dict.fromkeys(
        ("full", "image", "text"), (0, 3)
    )


@pytest.mark.parametrize("logits_of_views", [mask_inputs, replace_features])
def test_compiles_to_one_graph_and_recompiles_once_for_other_batch_sizes(
    logits_of_views: LogitsOfViews,
) -> None:
    views = ModalityViews(image=LearnedFill(pixels=(2, 3)), text=Fill(tokens=0), ignore="index")
    model, counter = LateFusion(2), CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(
        lambda batch: logits_of_views(views, model, batch), backend=counter, fullgraph=True
    )
    for size in (8, 8, 5, 8, 3):
        batch = {**make_batch(size), "index": torch.arange(size)}
        assert_close_logits(compiled(batch), logits_of_views(views, model, batch))
    assert counter.frame_count <= 2


def test_meta_gradient_equals_that_of_masked_inputs() -> None:
    model, batch, views = LateFusion(2), make_batch(), make_views()
    target = torch.randint(3, (4,))
    teacher = {name: torch.randn(4, 3, dtype=torch.double) for name in views.names}
    weights = WeightNet(views.names, num_classes=3).double()
    msd = MSDLoss(KDLoss(), weights)
    learner = MetaLearner(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        weights,
        torch.optim.SGD(weights.parameters(), 0.1),
    )

    def gradient(logits_of_views: LogitsOfViews) -> tuple[Tensor, ...]:
        return learner.gradient(
            lambda student: msd(logits_of_views(views, student, batch), teacher, target),
            lambda student: nn.functional.cross_entropy(student(**batch), target),
        )

    for actual, expected in zip(gradient(replace_features), gradient(mask_inputs), strict=True):
        torch.testing.assert_close(actual, expected)


MODEL = LateFusion(2)


def fuse(
    towers: Any = MODEL.towers, head: Any = MODEL.head, image: Any = None
) -> dict[str, Tensor]:
    views = ModalityViews(image=image or Fill(pixels=0), text=Fill(tokens=0))
    return views.late_fusion(towers, head, make_batch())


def first_row(**batch: Tensor) -> Batch:
    return {modality: features[:1] for modality, features in MODEL.towers(**batch).items()}


ERRORS: ErrorCases = {
    "towers is None": (
        lambda: fuse(towers=None),
        TypeError,
        "`towers` to be callable, got NoneType",
    ),
    "head is a number": (lambda: fuse(head=3), TypeError, "`head` to be callable, got int"),
    "features are a tensor": (
        lambda: fuse(lambda **batch: batch["pixels"]),
        TypeError,
        r"`towers\(batch\)` to be a mapping of modalities.* got float32 \(5, 2, 3\)",
    ),
    "features named after entries": (
        lambda: fuse(lambda **batch: batch),
        ValueError,
        "features of `image`, `text`, got `pixels`, `tokens`",
    ),
    "features of one sample": (lambda: fuse(first_row), ValueError, "5 rows of `image`,.* got 1"),
    "Shuffle": (
        lambda: fuse(image=Shuffle("pixels")),
        ValueError,
        "all samples, got Shuffle for `image`",
    ),
    "Fill with keep": (
        lambda: fuse(image=Fill(pixels=0.0, keep=0)),
        ValueError,
        "all samples, got Fill with `keep` for `image`",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)
