"""Laws that every masker obeys. Add a new masker to `BLANKS`, or to `DEGRADED`."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES
from torch import Tensor

import msdlosses
from msdlosses import (
    Downsample,
    Fill,
    LearnedFill,
    MeanFill,
    ModalityDropout,
    ModalityViews,
    Shuffle,
)
from msdlosses.masking._masker import EntryMasker

Batch = dict[str, Any]
LENGTH, WIDTH = 4, 3


def make_batch(size: int, dtype: torch.dtype = torch.float32) -> Batch:
    pixels = torch.rand(size, LENGTH, WIDTH) + 1.0
    return {"pixels": pixels.to(dtype), "tokens": torch.randint(9, (size, LENGTH)), "scale": 2.0}


BLANKS: dict[str, Callable[..., EntryMasker]] = {
    "fill with a number": lambda **options: Fill(pixels=0.0, **options),
    "fill with a tensor": lambda **options: Fill(pixels=torch.rand(WIDTH), **options),
    "learned fill": lambda **options: LearnedFill(pixels=(LENGTH, WIDTH), **options),
    "mean fill": lambda **options: MeanFill("pixels", **options).fit([make_batch(8)]),
    "shuffle": lambda **options: Shuffle("pixels", **options),
}
# Maskers whose result depends on the input, and that keep no positions.
DEGRADED: dict[str, Callable[..., EntryMasker]] = {
    "downsample": lambda **_: Downsample("pixels", factor=2),
}
MASKERS = BLANKS | DEGRADED
every_masker = pytest.mark.parametrize("name", MASKERS)
every_blank = pytest.mark.parametrize("name", BLANKS)

EVEN = torch.tensor([True, False, True, False])
KEEPS: dict[str, tuple[Any, Tensor]] = {
    "position": (1, torch.tensor([False, True, False, False])),
    "positions": ((0, -1), torch.tensor([True, False, False, True])),
    "mask": (EVEN, EVEN),
    "function": (lambda batch: EVEN.expand(len(batch["pixels"]), LENGTH), EVEN),
}


def test_all_public_maskers_are_listed() -> None:
    public = {getattr(msdlosses, name) for name in msdlosses.__all__}
    maskers = {kind for kind in public if inspect.isclass(kind) and issubclass(kind, EntryMasker)}
    assert maskers <= {type(make()) for make in MASKERS.values()}


@every_masker
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_replaces_only_its_entry_and_keeps_shape_and_dtype(name: str, dtype: torch.dtype) -> None:
    batch = make_batch(3, dtype)
    before = batch["pixels"].clone()
    masked = MASKERS[name]()(batch)
    assert list(masked) == list(batch)
    assert masked["pixels"].shape == before.shape
    assert masked["pixels"].dtype == dtype
    assert all(masked[other] is batch[other] for other in ("tokens", "scale"))
    assert torch.equal(batch["pixels"], before)


@every_blank
@given(size=st.integers(2, 5), index=st.integers(0, 4))
def test_masked_sample_does_not_depend_on_its_input(name: str, size: int, index: int) -> None:
    """A NaN in the input is gone after masking, and the input gets no gradient."""
    n = index % size
    batch = make_batch(size)
    batch["pixels"][n] = float("nan")
    batch["pixels"].requires_grad_()
    masked = MASKERS[name]()(batch)["pixels"][n]
    assert masked.isfinite().all()
    if masked.requires_grad:
        (gradient,) = torch.autograd.grad(masked.sum(), batch["pixels"], materialize_grads=True)
        assert not gradient[n].any()


@every_blank
@pytest.mark.parametrize("keep", KEEPS)
def test_keep_preserves_positions(name: str, keep: str) -> None:
    option, kept = KEEPS[keep]
    batch = make_batch(3)
    masked = MASKERS[name](keep=option)(batch)["pixels"]
    assert torch.equal(masked[:, kept], batch["pixels"][:, kept])
    assert not torch.isclose(masked[:, ~kept], batch["pixels"][:, ~kept]).any()


@every_masker
def test_empty_batch_stays_empty(name: str) -> None:
    assert MASKERS[name]()(make_batch(0))["pixels"].shape == (0, LENGTH, WIDTH)


def model(pixels: Tensor, tokens: Tensor, scale: float) -> Tensor:
    return scale * torch.cat([pixels.flatten(1), tokens.float()], 1)


@every_masker
def test_stacked_views_equal_separate_views(name: str) -> None:
    masker, batch = MASKERS[name](), make_batch(3)
    stacked, separate = (
        ModalityViews(image=masker, text=Fill(tokens=0), views_per_forward=step)(model, batch)
        for step in (None, 1)
    )
    for view, logits in stacked.items():
        assert torch.equal(logits, separate[view])


@every_masker
def test_compiled_equals_eager(name: str) -> None:
    masker, batch = MASKERS[name](keep=1), make_batch(3)
    torch.compiler.reset()
    compiled = torch.compile(masker, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(batch)["pixels"], masker(batch)["pixels"])


@every_masker
def test_views_and_dropout_never_read_a_value(name: str) -> None:
    """The meta device has no values, so nothing can wait for those of a GPU either."""
    batch = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in make_batch(3).items()}
    batch["patches"], present = batch["pixels"][:2], torch.ones(3, device="meta").bool()
    for text in (Fill(tokens=0), lambda b: {**b, "tokens": b["tokens"] * 0}):
        views = ModalityViews(
            image=MASKERS[name](), text=text, ragged={"patches": lambda b: b["tokens"][:, 0]}
        ).to("meta")
        logits = views(lambda pixels, **others: pixels, batch)
        assert logits["text"].device.type == "meta"
        drop = ModalityDropout(views, 0.5)
        for options in ({}, {"present": {"image": present, "text": present}}):
            assert drop(batch, **options)["pixels"].device.type == "meta"


@every_masker
def test_dropout_compiles_to_one_graph(name: str) -> None:
    views = ModalityViews(image=MASKERS[name](), text=Fill(tokens=0))
    torch.compiler.reset()
    drop = torch.compile(ModalityDropout(views, 1.0), fullgraph=True, backend="aot_eager")
    batch = make_batch(20)
    masked, image = drop(batch), views.maskers["image"](batch)
    for n in range(20):
        hidden = bool((masked["tokens"][n] == 0).all())
        expected = (batch if hidden else image)["pixels"][n]
        assert torch.equal(masked["pixels"][n], expected)


@every_masker
def test_copy_pickle_and_checkpoint_give_the_same_masker(name: str) -> None:
    masker, batch = MASKERS[name](), make_batch(3)
    file = io.BytesIO()
    torch.save(masker.state_dict(), file)
    file.seek(0)
    loaded = MASKERS[name]()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for duplicate in (loaded, copy.deepcopy(masker), pickle.loads(pickle.dumps(masker))):
        assert torch.equal(duplicate(batch)["pixels"], masker(batch)["pixels"])
