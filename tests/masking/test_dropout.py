"""`ModalityDropout`: how often it drops modalities, and what the batch looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from multimodal import PAD, Batch, ErrorCases, assert_raises, error_cases, make_batch, make_views
from torch import Tensor

from msdlosses import Fill, LearnedFill, ModalityDropout, ModalityViews


def draw_dropped(p: float, size: int, count: int) -> Tensor:
    """Whether each modality of each sample is dropped: (N, M)."""
    masked = ModalityDropout(make_views(count), p)(make_batch(size, count))
    return torch.stack([(value == 0).flatten(1).all(1) for value in masked.values()], dim=1)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_drops_each_modality_with_probability_p_but_never_all(p: float, count: int) -> None:
    dropped = draw_dropped(p, 20_000, count)
    assert not dropped.all(1).any()
    expected = p - p**count / count  # a sample that would lose all modalities keeps one
    torch.testing.assert_close(
        dropped.double().mean(0), torch.full((count,), expected).double(), rtol=0, atol=0.015
    )


def test_samples_are_independent() -> None:
    dropped = draw_dropped(0.5, 20_000, 3).double()
    correlation = torch.corrcoef(torch.cat([dropped[:-1], dropped[1:]], dim=1).T)[:3, 3:]
    assert correlation.abs().max() < 0.03


def test_p_zero_drops_nothing_and_p_one_keeps_one_modality() -> None:
    assert not draw_dropped(0.0, 100, 3).any()
    dropped = draw_dropped(1.0, 3_000, 3)
    assert (dropped.sum(1) == 2).all()
    assert (dropped.double().mean(0) - 2 / 3).abs().max() < 0.03


@pytest.mark.parametrize("size", [0, 1, 50])
def test_samples_are_masked_or_unchanged(size: int) -> None:
    views = ModalityViews(image=Fill(pixels=7.0, keep=0), text=Fill(tokens=PAD), shared=("table",))
    batch = {**make_batch(size), "table": torch.arange(3), "id": "a", "one": torch.tensor(1)}
    output = ModalityDropout(views, 0.5)(batch)
    assert set(output) == set(batch)
    for modality, entry in (("image", "pixels"), ("text", "tokens")):
        masked = views.maskers[modality](batch)[entry]
        for i in range(size):
            unchanged = torch.equal(output[entry][i], batch[entry][i])
            assert unchanged or torch.equal(output[entry][i], masked[i])
    assert torch.equal(output["table"], batch["table"])
    assert (output["id"], output["one"].item()) == ("a", 1)


def test_same_seed_drops_the_same_modalities() -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(draw_dropped(0.5, 50, 2))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_evaluation_mode_returns_the_batch() -> None:
    batch = make_batch()
    assert ModalityDropout(make_views(), 1.0).eval()(batch) is batch


def test_trains_a_learned_fill() -> None:
    views = ModalityViews(image=LearnedFill(pixels=0.0), text=Fill(tokens=PAD))
    dropout = ModalityDropout(views, 0.9)
    (parameter,) = dropout.parameters()
    dropout(make_batch(20))["pixels"].sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.abs() > 0


def test_repr_shows_options() -> None:
    views = make_views(views=("full", "text"), views_per_forward=1)
    text = repr(ModalityDropout(views, 0.25))
    for part in ("'full', 'text'", "views_per_forward=1", "p=0.25", "pixels", "tokens"):
        assert part in text


def add_entry(batch: Batch) -> Batch:
    return {**batch, "more": batch["pixels"]}


def drop_image(masker: Callable[[Batch], Any]) -> Any:
    views = ModalityViews(image=masker, text=Fill(tokens=PAD))
    return ModalityDropout(views, 0.5)(make_batch())


ERRORS: ErrorCases = {
    "views is a masker": (
        lambda: ModalityDropout(Fill(x=0), 0.5),
        TypeError,
        "`views` to be a ModalityViews, got Fill",
    ),
    "p above 1": (
        lambda: ModalityDropout(make_views(), 1.5),
        ValueError,
        r"`p` in \[0, 1\], got 1\.5",
    ),
    "negative p": (
        lambda: ModalityDropout(make_views(), -0.1),
        ValueError,
        r"`p` in \[0, 1\], got -0\.1",
    ),
    "p is NaN": (
        lambda: ModalityDropout(make_views(), float("nan")),
        ValueError,
        r"`p` in \[0, 1\], got nan",
    ),
    "p is a string": (
        lambda: ModalityDropout(make_views(), "half"),
        TypeError,
        "`p` to be a number, got str",
    ),
    "entries of different length": (
        lambda: ModalityDropout(make_views(), 0.5)(
            {"pixels": torch.ones(4, 6), "tokens": torch.ones(3, 5)}
        ),
        ValueError,
        "4 for `pixels` and 3 for `tokens`",
    ),
    "masker returns None": (
        lambda: drop_image(lambda batch: None),
        TypeError,
        "a mapping from the masker of `image`, got NoneType",
    ),
    "masker adds an entry": (
        lambda: drop_image(add_entry),
        ValueError,
        "entries `pixels`, `tokens`, got .*`more`.* all entries",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)
