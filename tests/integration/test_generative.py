"""Generative models of `transformers`: dropout, cache, and loss, from end to end."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from generative import FAMILIES, Batch, Family, answers, make_samples, not_image, not_prompt, spec
from torch import Tensor, nn

from msdlosses import Fill, KDLoss, ModalityDropout, ModalityViews, MSDLoss, TeacherCache

transformers = pytest.importorskip("transformers")

TAU = 2.0


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def by_hand(family: Family, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """KL of each view, summed over answer tokens, with masks and logits written out."""
    hidden = {"full": None, "image": not_prompt, "text": not_image}
    inputs = {k: v for k, v in batch.items() if k not in ("index", "labels")}
    total: Any = 0.0
    for keep in hidden.values():
        mask = batch["attention_mask"] * (1 if keep is None else keep(batch))
        logits = []
        for model in (student, teacher):
            out = model(**{**inputs, "attention_mask": mask})
            logits.append(out.logits[:, :-1][answers(batch)] / TAU)
        s, t = logits[0].log_softmax(-1), logits[1].detach().log_softmax(-1)
        total = total + TAU**2 * (t.exp() * (t - s)).sum()
    return total


def loss_of(
    family: Family, student: Any, cache: TeacherCache, batch: Batch, criterion: MSDLoss
) -> Tensor:
    views = ModalityViews(output=family.output(student), **spec(family))
    target = batch["labels"][:, 1:]
    s = views(family.body(student), batch)
    t = cache.read(batch["index"], target != -100)
    return criterion(s, t, target)


def sum_of_answers() -> MSDLoss:
    criterion = KDLoss(TAU, ignore_index=-100, chunk_size=8)
    return MSDLoss(criterion, average="batch", reduction="sum")


def make_cache(family: Family, teacher: Any, loader: Any, path: Path) -> TeacherCache:
    views = ModalityViews(output=family.output(teacher), **spec(family))
    return TeacherCache.build(
        family.body(teacher), views, loader, path, positions=answers, dtype="float32"
    )


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_cached_distillation_equals_a_loop_by_hand(family: Family, tmp_path: Path) -> None:
    teacher, student = family.make(32, 0).eval(), family.make(32, 1).eval()
    samples = make_samples(several=family.several)
    whole, left = family.collate(samples), family.collate(samples, "left")
    parts = [family.collate(samples[:3]), family.collate(samples[3:], "left")]
    cache = make_cache(family, teacher, parts, tmp_path)
    total = int(answers(whole).sum())
    expected = gradients(by_hand(family, student, teacher, whole) / total, student)
    for loader in ([whole], [left], parts):  # padded on both sides, and accumulated
        student.zero_grad()
        for batch in loader:
            (loss_of(family, student, cache, batch, sum_of_answers()) / total).backward()
        for name, parameter in student.named_parameters():
            if name in expected:
                torch.testing.assert_close(
                    parameter.grad, expected[name], rtol=1e-3, atol=2e-5, msg=name
                )


def test_teacher_with_dropout_teaches_a_student(family: Family, tmp_path: Path) -> None:
    teacher, student = family.make(32, 0), family.make(32, 1)
    samples = make_samples(several=family.several)
    loader = [family.collate(samples[:3]), family.collate(samples[3:], "left")]
    drop = ModalityDropout(ModalityViews(**spec(family)), p=0.3)
    optimizer = torch.optim.Adam(teacher.parameters(), 1e-3)
    for _ in range(3):
        for batch in loader:
            dropped = drop(batch)
            dropped.pop("index")
            teacher(**dropped).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    cache = make_cache(family, teacher, loader, tmp_path)
    optimizer, losses = torch.optim.Adam(student.parameters(), 3e-3), []
    for _ in range(12):
        loss = sum(loss_of(family, student, cache, b, sum_of_answers()) for b in loader)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_hidden_modality_does_not_leak(family: Family) -> None:
    model, samples = family.make(32, 0).eval(), make_samples(several=family.several)
    batch = family.collate(samples)
    views = ModalityViews(output=family.output(model), **spec(family))
    before = views(family.body(model), batch)
    images = {**batch, "pixel_values": 1.5 * batch["pixel_values"].flip(-1)}
    ids = batch["input_ids"]
    words = {**batch, "input_ids": torch.where(not_prompt(batch) | (ids == 0), ids, ids % 40 + 5)}
    kept = answers(batch)
    for other, view in ((images, "text"), (words, "image")):
        after = views(family.body(model), other)
        hidden = [logits.hidden[kept] for logits in (after[view], before[view])]
        torch.testing.assert_close(*hidden, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after["full"].hidden[kept], before["full"].hidden[kept], 1e-3)


def test_vision_tower_runs_once_for_all_views() -> None:
    family = FAMILIES["Qwen2.5-VL"]
    model, batch = family.make(32, 0).eval(), family.collate(make_samples(several=True))
    separate = ModalityViews(output=family.output(model), **spec(family))(model.model, batch)
    runs: list[int] = []
    model.model.visual.register_forward_hook(lambda *_: runs.append(1))
    pixels = batch.pop("pixel_values")
    image = model.model.get_image_features(pixels, batch["image_grid_thw"])
    options = spec(family)
    options["ragged"] = {"image_grid_thw": options["ragged"]["image_grid_thw"]}
    options |= {"views_per_forward": 1, "shared": ("mm_encoder_outputs",)}
    views = ModalityViews(output=family.output(model), **options)
    once = views(model.model, {**batch, "mm_encoder_outputs": {"image": image}})
    assert len(runs) == 1
    for view, logits in separate.items():
        torch.testing.assert_close(once[view].hidden, logits.hidden, rtol=1e-4, atol=1e-5)


def test_smolvlm_drops_images_of_zeros() -> None:
    family = FAMILIES["SmolVLM"]
    model, batch = family.make(32, 0), family.collate(make_samples(several=True))
    views = ModalityViews(**{**spec(family), "image": Fill(pixel_values=0.0)})
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        views(model, batch)


# The Trainer, and adapters


class Distiller(transformers.Trainer):
    """What a user writes."""

    family: Family
    cache: TeacherCache

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, num_items_in_batch: Any) -> Tensor:
        return (
            loss_of(self.family, model, self.cache, inputs, sum_of_answers()) / num_items_in_batch
        )


def test_trainer_takes_the_same_step_as_a_loop(tmp_path: Path) -> None:
    family = FAMILIES["LLaVA"]
    teacher, student = family.make(32, 0).eval(), family.make(32, 1).eval()
    samples = make_samples(several=True)
    whole = family.collate(samples)
    loop, total = deepcopy(student), int(answers(whole).sum())
    by_hand(family, loop, teacher, whole).div(total).backward()
    torch.optim.SGD(loop.parameters(), 0.1).step()
    args = transformers.TrainingArguments(
        str(tmp_path / "out"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Distiller(student, args, data_collator=family.collate, train_dataset=samples)
    trainer.family, trainer.model_accepts_loss_kwargs = family, True
    trainer.cache = make_cache(family, teacher, [whole], tmp_path / "cache")
    trainer.train()
    for (name, parameter), expected in zip(
        student.named_parameters(), loop.parameters(), strict=True
    ):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=2e-5, msg=name)


def test_adapters_learn_and_the_student_under_them_stays(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    family = FAMILIES["Qwen2.5-VL"]
    teacher, student = family.make(64, 0), family.make(32, 1)
    batch = family.collate(make_samples(several=True))
    cache = make_cache(family, teacher, [batch], tmp_path)
    before = deepcopy(student.state_dict())
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    adapted = peft.get_peft_model(student, config)
    student = adapted.get_base_model()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, 3e-2), []
    for _ in range(15):
        loss = loss_of(family, student, cache, batch, sum_of_answers())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all("lora" in n for n, p in adapted.named_parameters() if p.requires_grad)
    for name, value in adapted.unload().state_dict().items():
        assert torch.equal(value, before[name]), name
