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


# Incomplete samples


def test_absent_modalities_stay_and_no_sample_loses_its_last_modality() -> None:
    size = 30_000
    rows = torch.randint(1, 8, (size,))
    present = {name: (rows & 2**k) > 0 for k, name in enumerate(("image", "text", "audio"))}
    masked = ModalityDropout(make_views(3), 0.4)(make_batch(size, 3), present=present)
    has = torch.stack(list(present.values()), 1)
    dropped = torch.stack([(value == 0).flatten(1).all(1) for value in masked.values()], 1)
    assert not (dropped & ~has).any()
    assert (has & ~dropped).any(1).all()
    for count in (1, 2, 3):  # modalities that a sample has
        some = has.sum(1) == count
        rate = dropped[some].double().sum() / has[some].sum()
        assert abs(rate - (0.4 - 0.4**count / count)) < 0.01


def test_sample_without_any_modality_stays() -> None:
    batch, nothing = make_batch(50), torch.zeros(50, dtype=torch.bool)
    masked = ModalityDropout(make_views(), 1.0)(batch, present={"image": nothing, "text": nothing})
    assert torch.equal(masked["pixels"], batch["pixels"])


# What is chosen per sample


def test_lists_are_chosen_per_sample() -> None:
    batch = {"pixels": torch.ones(40, 1), "prompt": ["what?"] * 40, "tags": ("a",) * 40}
    views = ModalityViews(
        image=Fill(pixels=0.0),
        text=lambda b: {**b, "prompt": [""] * len(b["prompt"]), "tags": ("",) * 40},
    )
    kept = ModalityDropout(views, p=0.0)(batch)
    assert (kept["prompt"], kept["tags"]) == (batch["prompt"], batch["tags"])
    masked = ModalityDropout(views, p=1.0)(batch)
    shown = [bool(prompt) for prompt in masked["prompt"]]
    assert shown == [bool(tag) for tag in masked["tags"]]
    assert shown == (masked["pixels"][:, 0] == 0).tolist()
    assert {type(masked["prompt"]), type(masked["tags"])} == {list, tuple}
    assert 5 < sum(shown) < 35


def test_list_of_as_many_tensors_as_samples_is_batched_if_it_says_so() -> None:
    frames = [torch.ones(3, 2) for _ in range(3)]
    views = ModalityViews(image=Fill(frames=0.0), text=Fill(tokens=0), batch_axis={"frames": 0})
    masked = ModalityDropout(views, 0.5)({"frames": frames, "tokens": torch.ones(3)})
    for frame in masked["frames"]:
        assert torch.equal(frame, masked["frames"][0])


def test_batches_of_one_sample_are_never_ambiguous() -> None:
    drop = ModalityDropout(ModalityViews(image=Fill(x=0.0), text=Fill(y=0.0)), 0.5)
    assert drop({"x": [torch.ones(1, 2)], "y": torch.ones(1)})["x"][0].shape == (1, 2)


def test_ignored_entries_of_another_length_stay() -> None:
    views = ModalityViews(
        image=lambda b: {**b, "pixels": b["pixels"] * 0}, text=Fill(tokens=PAD), ignore="anchors"
    )
    batch = {**make_batch(), "anchors": torch.arange(7)}
    assert ModalityDropout(views, 0.5)(batch)["anchors"].tolist() == list(range(7))


def add_entry(batch: Batch) -> Batch:
    return {**batch, "more": batch["pixels"]}


def drop_image(masker: Callable[[Batch], Any], **entries: Any) -> Any:
    views = ModalityViews(image=masker, text=Fill(tokens=PAD))
    return ModalityDropout(views, 0.5)({**make_batch(), **entries})


def drop_present(**present: Tensor) -> Any:
    return ModalityDropout(make_views(), 0.5)(make_batch(), present=present)


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
    "present lacks a modality": (
        lambda: drop_present(image=torch.ones(4, dtype=torch.bool)),
        KeyError,
        "`present` for each of `image`, `text`, got `image`",
    ),
    "present of another length": (
        lambda: drop_present(**dict.fromkeys(("image", "text"), torch.ones(3, dtype=torch.bool))),
        ValueError,
        r"`present\['image'\]` of shape \(4,\), got \(3,\)",
    ),
    "masker changes a constant": (
        lambda: drop_image(lambda batch: {**batch, "task": "b"}, task="a"),
        ValueError,
        "`task` to be per sample, .* got str and str",
    ),
    "masker changes a shape": (
        lambda: drop_image(lambda batch: {**batch, "pixels": batch["pixels"][:, :1]}),
        ValueError,
        r"`pixels` .* got float32 \(4, 2, 3\) and float32 \(4, 1, 3\)",
    ),
    "masker changes a dtype": (
        lambda: drop_image(lambda batch: {**batch, "pixels": batch["pixels"].double()}),
        ValueError,
        r"`pixels` .* got float32 .* and float64",
    ),
    "masker removes a tensor": (
        lambda: drop_image(lambda batch: {**batch, "pixels": None}),
        ValueError,
        r"`pixels` .* and NoneType",
    ),
    "masker shortens a list": (
        lambda: drop_image(lambda batch: {**batch, "ids": ["a"]}, ids=["a"] * 4),
        ValueError,
        "`ids` .* got list and list",
    ),
    "list of N tensors with N rows": (
        lambda: drop_image(Fill(images=0.0), images=[torch.ones(4, 2, 2)] * 4),
        ValueError,
        "one reading of `images`, got a list of 4 tensors with 4 rows for 4 samples.* `batch_axis`",
    ),
    "list of N images of another size": (
        lambda: drop_image(Fill(images=0.0), images=[torch.ones(3, 2, 2)] * 4),
        ValueError,
        r"equal length, got 4 for `pixels` and 3 for `images\.0`.* `ragged`",
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
