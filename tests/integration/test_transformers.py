"""Recipes for models of `transformers`, with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recipes import run
from torch import Tensor, nn

from msdlosses import Fill, KDLoss, ModalityViews, MSDLoss

transformers = pytest.importorskip("transformers")

PAD, CLS, SEP = 0, 1, 2
FAMILIES = {
    "VisualBERT": ("VisualBERT",),
    "ViLT": ("VisualBERT", "ViLT"),
    "CLIP": ("VisualBERT", "CLIP with a head"),
    "FLAVA": ("VisualBERT", "CLIP with a head", "FLAVA"),
}
IMAGE = ("visual_embeds", "pixel_values")


def randomize(batch: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """Replace images or words, but not special tokens."""
    new = dict(batch)
    for name in names:
        if name == "input_ids":
            words = (batch[name] > 3) & (batch[name] < 29)
            new[name] = torch.where(words, torch.randint_like(batch[name], 10, 29), batch[name])
        elif name in batch:
            new[name] = torch.randn_like(batch[name])
    return new


@pytest.mark.parametrize("family", FAMILIES)
def test_unimodal_view_ignores_the_other_modality(family: str) -> None:
    recipe = run("transformers", *FAMILIES[family])
    views, model, batch = recipe["views"], recipe["student"].eval(), recipe["batch"]
    logits = views(model, batch)
    other_words, other_image = (
        views(model, randomize(batch, *names)) for names in (["input_ids"], IMAGE)
    )
    assert all(torch.isfinite(v).all() for v in logits.values())
    torch.testing.assert_close(other_words["image"], logits["image"])
    torch.testing.assert_close(other_image["text"], logits["text"])
    for other, view in ((other_words, "text"), (other_image, "image")):
        assert not torch.allclose(other[view], logits[view])
        assert not torch.allclose(other["full"], logits["full"])


@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_views_equal_separate_views(family: str) -> None:
    recipe = run("transformers", *FAMILIES[family])
    views, model, batch = recipe["views"], recipe["student"].eval(), recipe["batch"]
    stacked = views(model, batch)
    views.views_per_forward = 1
    torch.testing.assert_close(views(model, batch), stacked)


@pytest.mark.parametrize("family", FAMILIES)
def test_student_learns_from_its_teacher(family: str) -> None:
    recipe = run("transformers", *FAMILIES[family])
    views, teacher, student = (recipe[name] for name in ("views", "teacher", "student"))
    # The logits of a new model are almost constant.
    for parameter in teacher.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    msd, optimizer = MSDLoss(KDLoss(2.0)), torch.optim.Adam(student.parameters(), 1e-2)
    with torch.no_grad():
        t = views(teacher.eval(), recipe["batch"])
    losses = []
    for _ in range(30):
        loss = msd(views(student, recipe["batch"]), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_late_fusion_of_clip_runs_each_tower_once() -> None:
    recipe = run("transformers", "VisualBERT", "CLIP with a head", ("CLIP with a head", 1))
    student = recipe["student"].eval()
    runs = [0, 0]
    for i, tower in enumerate((student.body.text_model, student.body.vision_model)):
        tower.register_forward_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
    views, batch = recipe["late_views"], recipe["batch"]
    once = views.late_fusion(recipe["towers"], recipe["head"], batch)
    assert runs == [1, 1]
    torch.testing.assert_close(once, views(student, batch))


# The token that a head reads


def positions(model: nn.Module, views: ModalityViews, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Map each view to the position, in each sample, of the state that VisualBERT's head reads."""
    states: dict[str, Tensor] = {}
    model.visual_bert.register_forward_hook(
        lambda module, args, output: states.update(all=output[0])
    )
    model.cls.register_forward_pre_hook(lambda module, args: states.update(read=args[0][:, 0]))
    views(model, batch)
    distance = (states["all"] - states["read"].unsqueeze(1)).abs().sum(-1)
    assert (distance.min(1).values == 0).all()
    by_view = distance.argmin(1).view(len(views.names), -1).tolist()
    return dict(zip(views.names, by_view, strict=True))


def run_visual_bert(*snippets: int) -> dict[str, Any]:
    """Run the first snippet about VisualBERT, and further ones."""
    recipe = run("transformers", "VisualBERT", *(("VisualBERT", number) for number in snippets))
    recipe["student"].eval()
    return recipe


def test_visual_bert_reads_the_last_word_if_words_are_masked() -> None:
    recipe = run_visual_bert()
    last_words = [2, 3]
    for read in positions(recipe["student"], recipe["views"], recipe["batch"]).values():
        assert read == last_words


def views_with_closed_mask(keep: Any) -> ModalityViews:
    """Views that hide the text by its attention mask, except tokens to keep."""
    text = Fill(attention_mask=0, keep=keep)
    return ModalityViews(image=Fill(visual_embeds=0.0), text=text)


def test_visual_bert_reads_cls_if_the_attention_mask_keeps_special_tokens() -> None:
    recipe = run_visual_bert()
    views = views_with_closed_mask(recipe["special"])
    assert positions(recipe["student"], views, recipe["batch"]) == {
        "full": [2, 3],
        "image": [0, 0],
        "text": [2, 3],
    }


@pytest.mark.parametrize("keep", [None, 0])
def test_visual_bert_fails_if_the_attention_mask_is_closed(keep: Any) -> None:
    recipe = run_visual_bert()
    with pytest.raises(RuntimeError, match="out of bounds"):
        views_with_closed_mask(keep)(recipe["student"], recipe["batch"])


def test_visual_bert_reads_cls_of_an_empty_question() -> None:
    recipe = run_visual_bert(1)
    views, batch = recipe["views_of_none"], recipe["batch"]
    assert positions(recipe["student"], views, batch)["image"] == [0, 0]
    empty = torch.tensor([[CLS, SEP, PAD, PAD, PAD]] * 2)
    inputs = {**batch, "input_ids": empty, "attention_mask": (empty != PAD).long()}
    expected = recipe["student"](**inputs).logits
    torch.testing.assert_close(views(recipe["student"], batch)["image"], expected)
    shorter = {**batch, "attention_mask": batch["attention_mask"].clone()}
    shorter["attention_mask"][1, 3:] = 0  # the number of words is hidden
    torch.testing.assert_close(views(recipe["student"], shorter)["image"], expected)


def test_visual_reasoning_works_with_a_closed_attention_mask() -> None:
    recipe = run_visual_bert(2)
    views, model, batch = (recipe[name] for name in ("reasoning_views", "reasoner", "batch"))
    image = views(model.eval(), batch)["image"]
    other = {**batch, "input_ids": batch["input_ids"].flip(0)}
    other["input_ids"][:, 0] = CLS
    torch.testing.assert_close(views(model, other)["image"], image)


def test_vilt_fails_if_the_pixel_mask_is_closed() -> None:
    recipe = run("transformers", "VisualBERT", "ViLT")
    views = ModalityViews(
        image=Fill(pixel_values=0.0, pixel_mask=0), text=recipe["views"].maskers["text"]
    )
    with pytest.raises(RuntimeError, match="greater than 0"):
        views(recipe["student"], recipe["batch"])
