"""`Shuffle`: entries of another sample as the value of absent modalities."""

from __future__ import annotations

import pytest
import torch
from multimodal import assert_raises, make_batch

from msdlosses import ModalityViews, Shuffle


@pytest.mark.parametrize("size", range(2, 7))
def test_each_sample_gets_the_entries_of_another(size: int) -> None:
    masked = Shuffle("x", "y")({"x": torch.arange(size), "y": torch.arange(size) * 10})
    assert sorted(masked["x"].tolist()) == list(range(size))
    assert (masked["x"] != torch.arange(size)).all()
    assert torch.equal(masked["y"], masked["x"] * 10)


@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_teacher_and_student_get_the_same_shuffle(views_per_forward: int | None) -> None:
    batch = make_batch()
    teacher_tokens, student_tokens = (
        ModalityViews(image=Shuffle("pixels"), text=Shuffle("tokens"), views_per_forward=views)(
            lambda pixels, tokens: tokens, batch
        )["image"]
        for views in (views_per_forward, None)
    )
    assert torch.equal(teacher_tokens, student_tokens)
    assert not torch.equal(teacher_tokens, batch["tokens"])


def test_shuffles_all_tensors_of_a_nested_entry() -> None:
    text = {"tokens": torch.tensor([[1.0], [3.0]]), "more": [torch.tensor([[5.0], [9.0]])]}
    masked = Shuffle("text")({"text": text})["text"]
    assert masked["tokens"].tolist() == [[3.0], [1.0]]
    assert masked["more"][0].tolist() == [[9.0], [5.0]]


def test_rejects_a_single_sample() -> None:
    pattern = "two samples to shuffle `pixels`, got 1"
    assert_raises(lambda: Shuffle("pixels")(make_batch(1)), ValueError, pattern)
