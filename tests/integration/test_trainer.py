"""The recipe for `Trainer`: a step equals one on the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import leave
from integration.launch import launch
from recipes import run
from torch import Tensor, distributed, nn

from msdlosses import Fill, KDLoss, LearnedFill, ModalityViews, MSDLoss, UncertaintyWeighting

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

LR = 0.5


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.last = nn.Embedding(9, 4), nn.Linear(8, 3)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.last(torch.cat([pixels, self.text(tokens).mean(1)], -1).tanh())


def make_recipe() -> dict[str, Any]:
    torch.manual_seed(0)
    views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0))
    return run("transformers", "Trainer", teacher=Student(), views=views, torch=torch)


def make_samples(count: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [
        {
            "pixels": torch.randn(4),
            "tokens": torch.randint(1, 9, (5,)),
            "labels": torch.randint(3, ()),
        }
        for _ in range(count)
    ]


def train(folder: Path, samples: int, batch: int, parts: int, counts: bool) -> list[Tensor]:
    """Take one step, and return the student's parameters.

    Args:
        folder: the output folder.
        samples: the number of samples.
        batch: the batch size per device.
        parts: the number of batches to accumulate.
        counts: whether the Trainer counts labels.
    """
    distiller_class = make_recipe()["Distiller"]
    torch.manual_seed(2)
    student = Student()
    student.accepts_loss_kwargs = counts
    args = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=parts,
        max_steps=1, optim="sgd", learning_rate=LR, lr_scheduler_type="constant",
        max_grad_norm=0.0, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = distiller_class(student, args, train_dataset=make_samples(samples))
    trainer.train()
    return [p.detach() for p in student.parameters()]


@pytest.mark.parametrize(("samples", "counts"), [(4, True), (4, False), (6, True), (7, True)])
def test_gradient_accumulation_equals_the_whole_batch(
    tmp_path: Path, samples: int, counts: bool
) -> None:
    """Batches may differ in size only if the Trainer counts labels."""
    parts = train(tmp_path, samples, 4 if samples > 4 else 2, 2, counts)
    whole = train(tmp_path, samples, samples, 1, counts)
    for actual, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(actual, expected)


def test_step_equals_a_plain_loop(tmp_path: Path) -> None:
    data = make_samples(4)
    batch = {name: torch.stack([s[name] for s in data]) for name in data[0]}
    recipe, views = make_recipe(), make_recipe()["views"]
    torch.manual_seed(2)
    student = Student()
    target = batch.pop("labels")
    with torch.no_grad():
        t = views(recipe["teacher"], batch)
    s = views(student, batch)
    task = nn.functional.cross_entropy(s["full"], target)
    (0.5 * task + 0.5 * recipe["msd"](s, t, target)).backward()
    trained = train(tmp_path, 4, 2, 2, True)
    for actual, p in zip(trained, student.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(actual, p - LR * p.grad)


def test_trainer_trains_everything_in_the_distillation_module(tmp_path: Path) -> None:
    views = ModalityViews(image=LearnedFill(pixels=(4,)), text=Fill(tokens=0))
    msd = MSDLoss(KDLoss(2.0), UncertaintyWeighting(views.names))
    module = run("distributed", "One module")["Distillation"](Student(), views, msd)
    teacher = Student()

    class Distiller(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            return model(teacher, inputs, inputs.pop("labels"))

    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, save_strategy="no", learning_rate=0.1,
    )  # fmt: skip
    Distiller(module, args, train_dataset=make_samples(4)).train()
    assert len(before) == 5
    assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_evaluation_returns_the_loss_and_the_logits_on_the_full_view(tmp_path: Path) -> None:
    distiller_class = make_recipe()["Distiller"]
    args = transformers.TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=2, report_to="none", use_cpu=True,
        remove_unused_columns=False, disable_tqdm=True, label_names=["labels"],
    )  # fmt: skip
    output = distiller_class(Student(), args).predict(make_samples(5))
    assert output.predictions.shape == (5, 3)
    assert output.metrics["test_loss"] > 0


def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    launch("test_trainer.py", tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = train(tmp_path, 8, 8, 1, True)
    for actual, other, expected in zip(first, second, whole, strict=True):
        assert torch.equal(actual, other)
        torch.testing.assert_close(actual, expected)


def main(folder: Path) -> None:
    """Train as one of two processes, each of which accumulates two batches of two samples."""
    torch.save(train(folder, 8, 2, 2, True), folder / f"{distributed.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
