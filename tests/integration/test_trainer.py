"""`Trainer` with a `compute_loss` of its own: a step is that of the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import leave
from launch import launch
from recipes import run
from torch import Tensor, distributed, nn

from msdlosses import Fill, KDLoss, LearnedFill, ModalityViews, MSDLoss, UncertaintyWeighting

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

LR = 0.5


class Student(nn.Module):
    """A small one without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(9, 4), nn.Linear(8, 3)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.last(torch.cat([pixels, self.words(tokens).mean(1)], -1).tanh())


def recipe() -> dict[str, Any]:
    torch.manual_seed(0)
    views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0))
    return run("transformers", "Trainer", teacher=Student(), views=views, torch=torch)


def samples(count: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [
        {
            "pixels": torch.randn(4),
            "tokens": torch.randint(1, 9, (5,)),
            "labels": torch.randint(3, ()),
        }
        for _ in range(count)
    ]


def trained(folder: Path, count: int, batch: int, parts: int, counts: bool) -> list[Tensor]:
    """A student after one step."""
    distiller = recipe()["Distiller"]
    torch.manual_seed(2)
    student = Student()
    student.accepts_loss_kwargs = counts
    args = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=parts,
        max_steps=1, optim="sgd", learning_rate=LR, lr_scheduler_type="constant",
        max_grad_norm=0.0, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = distiller(student, args, train_dataset=samples(count))
    trainer.train()
    return [p.detach() for p in student.parameters()]


@pytest.mark.parametrize(("count", "counts"), [(4, True), (4, False), (6, True), (7, True)])
def test_accumulated_parts_are_the_whole_batch(tmp_path: Path, count: int, counts: bool) -> None:
    """Parts of one size, and of several where the labels are counted."""
    parts = trained(tmp_path, count, 4 if count > 4 else 2, 2, counts)
    whole = trained(tmp_path, count, count, 1, counts)
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other)


def test_the_step_is_that_of_the_loss(tmp_path: Path) -> None:
    """As a loop by hand takes it."""
    data = samples(4)
    batch = {name: torch.stack([s[name] for s in data]) for name in data[0]}
    distiller, views = recipe(), recipe()["views"]
    torch.manual_seed(2)
    student = Student()
    target = batch.pop("labels")
    with torch.no_grad():
        t = views(distiller["teacher"], batch)
    s = views(student, batch)
    task = nn.functional.cross_entropy(s["full"], target)
    (0.5 * task + 0.5 * distiller["msd"](s, t, target)).backward()
    found = trained(tmp_path, 4, 2, 2, True)
    for one, p in zip(found, student.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(one, p - LR * p.grad)


def test_one_module_of_all_that_learns_is_a_model(tmp_path: Path) -> None:
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
    Distiller(module, args, train_dataset=samples(4)).train()
    assert len(before) == 5
    assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_evaluation_gives_the_loss_and_the_whole_inputs_logits(tmp_path: Path) -> None:
    distiller = recipe()["Distiller"]
    args = transformers.TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=2, report_to="none", use_cpu=True,
        remove_unused_columns=False, disable_tqdm=True, label_names=["labels"],
    )  # fmt: skip
    found = distiller(Student(), args).predict(samples(5))
    assert found.predictions.shape == (5, 3)
    assert found.metrics["test_loss"] > 0


def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    launch("test_trainer.py", tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = trained(tmp_path, 8, 8, 1, True)
    for one, other, expected in zip(first, second, whole, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected)


def main(folder: Path) -> None:
    """One of two processes, each with two parts of two."""
    found = trained(folder, 8, 2, 2, True)
    torch.save(found, folder / f"{distributed.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
