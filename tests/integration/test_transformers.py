"""Real multimodal models from `transformers`, with random weights, as teachers and students."""

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


def changed(batch: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """Other pictures or other words, but for the special tokens."""
    new = dict(batch)
    for name in names:
        if name == "input_ids":
            words = (batch[name] > 3) & (batch[name] < 29)
            new[name] = torch.where(words, torch.randint_like(batch[name], 10, 29), batch[name])
        elif name in batch:
            new[name] = torch.randn_like(batch[name])
    return new


@pytest.mark.parametrize("family", FAMILIES)
def test_a_view_depends_on_what_it_shows_alone(family: str) -> None:
    recipe = run("transformers", *FAMILIES[family])
    views, model, batch = recipe["views"], recipe["student"].eval(), recipe["batch"]
    logits = views(model, batch)
    other_words, other_image = (
        views(model, changed(batch, *names)) for names in (["input_ids"], IMAGE)
    )
    assert all(torch.isfinite(v).all() for v in logits.values())
    torch.testing.assert_close(other_words["image"], logits["image"])
    torch.testing.assert_close(other_image["text"], logits["text"])
    for other, view in ((other_words, "text"), (other_image, "image")):
        assert not torch.allclose(other[view], logits[view])
        assert not torch.allclose(other["full"], logits["full"])


@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_views_are_separate_ones(family: str) -> None:
    recipe = run("transformers", *FAMILIES[family])
    views, model, batch = recipe["views"], recipe["student"].eval(), recipe["batch"]
    stacked = views(model, batch)
    views.views_per_forward = 1
    torch.testing.assert_close(views(model, batch), stacked)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_learns_of_its_teacher(family: str) -> None:
    recipe = run("transformers", *FAMILIES[family])
    views, teacher, student = (recipe[name] for name in ("views", "teacher", "student"))
    for parameter in teacher.parameters():  # new models say nothing
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


def test_towers_of_clip_that_run_once_give_the_same_logits() -> None:
    found = run("transformers", "VisualBERT", "CLIP with a head", ("CLIP with a head", 1))
    student = found["student"].eval()
    runs = [0, 0]
    for i, tower in enumerate((student.body.text_model, student.body.vision_model)):
        tower.register_forward_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
    views, batch = found["late_views"], found["batch"]
    once = views.late_fusion(found["towers"], found["head"], batch)
    assert runs == [1, 1]
    torch.testing.assert_close(once, views(student, batch))


# --- where a head reads


def places(model: nn.Module, views: ModalityViews, batch: dict[str, Tensor]) -> dict[str, Any]:
    """View -> the place, in each sample, whose state VisualBERT's head is given."""
    seen: dict[str, Tensor] = {}
    model.visual_bert.register_forward_hook(
        lambda module, args, output: seen.update(states=output[0])
    )
    model.cls.register_forward_pre_hook(lambda module, args: seen.update(read=args[0][:, 0]))
    views(model, batch)
    apart = (seen["states"] - seen["read"].unsqueeze(1)).abs().sum(-1)
    assert (apart.min(1).values == 0).all()
    return dict(zip(views.names, apart.argmin(1).view(len(views.names), -1).tolist(), strict=True))


def visual_bert(*further: int) -> dict[str, Any]:
    recipe = run("transformers", "VisualBERT", *(("VisualBERT", number) for number in further))
    recipe["student"].eval()
    return recipe


def test_masked_words_leave_the_head_of_visual_bert_where_it_reads() -> None:
    recipe = visual_bert()
    last_words = [2, 3]
    for read in places(recipe["student"], recipe["views"], recipe["batch"]).values():
        assert read == last_words


def closed(keep: Any) -> ModalityViews:
    text = Fill(attention_mask=0, keep=keep)
    return ModalityViews(image=Fill(visual_embeds=0.0), text=text)


def test_a_closed_mask_shifts_it_without_an_error() -> None:
    recipe = visual_bert()
    read = places(recipe["student"], closed(recipe["special"]), recipe["batch"])
    assert read == {"full": [2, 3], "image": [0, 0], "text": [2, 3]}


@pytest.mark.parametrize("keep", [None, 0])
def test_a_mask_that_is_closed_to_the_end_is_an_error(keep: Any) -> None:
    recipe = visual_bert()
    with pytest.raises(RuntimeError, match="out of bounds"):
        closed(keep)(recipe["student"], recipe["batch"])


def test_an_empty_question_is_read_as_the_model_reads_one() -> None:
    recipe = visual_bert(1)
    views, batch = recipe["views_of_none"], recipe["batch"]
    assert places(recipe["student"], views, batch)["image"] == [0, 0]
    none = torch.tensor([[CLS, SEP, PAD, PAD, PAD]] * 2)
    asked = {**batch, "input_ids": none, "attention_mask": (none != PAD).long()}
    expected = recipe["student"](**asked).logits
    torch.testing.assert_close(views(recipe["student"], batch)["image"], expected)
    shorter = {**batch, "attention_mask": batch["attention_mask"].clone()}
    shorter["attention_mask"][1, 3:] = 0  # the number of words does not show
    torch.testing.assert_close(views(recipe["student"], shorter)["image"], expected)


def test_the_head_for_reasoning_takes_a_closed_mask() -> None:
    recipe = visual_bert(2)
    views, model, batch = (recipe[name] for name in ("reasoning_views", "reasoner", "batch"))
    image = views(model.eval(), batch)["image"]
    other = {**batch, "input_ids": batch["input_ids"].flip(0)}
    other["input_ids"][:, 0] = CLS
    torch.testing.assert_close(views(model, other)["image"], image)


def test_a_closed_pixel_mask_is_an_error_in_vilt() -> None:
    recipe = run("transformers", "VisualBERT", "ViLT")
    views = ModalityViews(
        image=Fill(pixel_values=0.0, pixel_mask=0), text=recipe["views"].maskers["text"]
    )
    with pytest.raises(RuntimeError, match="greater than 0"):
        views(recipe["student"], recipe["batch"])
