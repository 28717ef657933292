"""The recipes for `MetaLearner` in `Trainer`, against loops in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import float64
from integration import trainers
from integration.launch import launch
from integration.trainers import (
    LR,
    MAX_NORM,
    make_arguments,
    make_held_out,
    make_samples,
    make_setting,
    make_weights,
)
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

every_recipe = pytest.mark.parametrize("name", trainers.LEARNED)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with float64():
        yield


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    launch("trainers.py", folder, "learned")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11)


def train_by_hand(weights_first: bool) -> dict[str, Tensor]:
    """Take the steps of `train_weights` with a step that autograd differentiates as it is."""
    setting = make_setting(make_weights())
    views, msd, student = setting["views"], setting["msd"], setting["student"]
    weights = list(msd.weighting.parameters())
    weighting_optimizer = torch.optim.Adam(weights, 1e-3)
    batch, held_out_batches = trainers.stack(make_samples(8)), make_held_out()
    labels = batch.pop("labels")
    count = (labels != -100).sum()
    parameters = {name: p.detach().clone() for name, p in student.named_parameters()}
    t = {view: logits.detach() for view, logits in views(setting["teacher"], batch).items()}

    def look_ahead() -> dict[str, Tensor]:
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        s = views(lambda **inputs: functional_call(student, leaves, kwargs=inputs), batch)
        task = F.cross_entropy(s["full"].flatten(0, 1), labels.flatten())
        loss = 0.5 * task + 0.5 * msd(s, t, labels) / count
        gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        assert norm > MAX_NORM  # so clipping changes the step
        clip = MAX_NORM / (norm + 1e-6)
        return {
            name: p - LR * clip * gradient
            for (name, p), gradient in zip(leaves.items(), gradients, strict=True)
        }

    for step in range(3):
        held_out = dict(held_out_batches[step % 2])
        held_out_labels = held_out.pop("labels")
        ahead = look_ahead()
        logits = functional_call(student, ahead, kwargs=held_out)
        outer = F.cross_entropy(logits.flatten(0, 1), held_out_labels.flatten())
        for parameter, gradient in zip(weights, torch.autograd.grad(outer, weights), strict=True):
            parameter.grad = gradient
        weighting_optimizer.step()
        parameters = look_ahead() if weights_first else ahead
    student.load_state_dict(parameters)
    return trainers.state(setting)


@every_recipe
def test_steps_equal_a_plain_loop(name: str, tmp_path: Path) -> None:
    actual = trainers.train_weights(tmp_path, name, 8)
    start = trainers.state(make_setting(make_weights()))
    assert all(not torch.equal(actual[key], start[key]) for key in actual)
    assert_close(actual, train_by_hand(name == "WeightsFirst"))


@every_recipe
def test_two_processes_equal_a_plain_loop(name: str, processes: list[Any]) -> None:
    for result in processes:
        assert_close(result[name], train_by_hand(name == "WeightsFirst"))


class Stop(transformers.TrainerCallback):  # type: ignore[misc]
    """Ends a run after its second checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = state.global_step == 4
        return control


def train_with_checkpoints(folder: Path, name: str, *, stop: bool, resume: bool = False) -> Any:
    setting = make_setting(make_weights(), dropout=0.5)
    args = make_arguments(
        folder, 2, max_steps=6, save_strategy="steps", save_steps=2, optim="adamw_torch",
        learning_rate=1e-2, lr_scheduler_type="linear", max_grad_norm=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = trainers.make_trainer(args, make_samples(8), setting, name)
    if stop:
        trainer.add_callback(Stop())
    trainer.train(resume_from_checkpoint=resume)
    learner = trainer.learner.state_dict()
    return trainers.state(setting), trainer.optimizer.state_dict()["state"], learner


@every_recipe
def test_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    expected = train_with_checkpoints(tmp_path / "uninterrupted", name, stop=False)
    train_with_checkpoints(tmp_path / "resumed", name, stop=True)
    assert sorted(path.name for path in (tmp_path / "resumed").glob("*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    actual = train_with_checkpoints(tmp_path / "resumed", name, stop=False, resume=True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert actual[-1]["steps_taken"] == (6 if name == "MetaDistiller" else 0)
    assert expected[-1]["weighting_optimizer"]["state"][0]["step"] == 6


def test_bfloat16_is_close_to_full_precision(tmp_path: Path) -> None:
    setting = make_setting(make_weights())
    args = make_arguments(tmp_path, 8, bf16=True)
    trainers.make_trainer(args, make_samples(8), setting, "MetaDistiller").train()
    full = make_setting(make_weights())
    trainers.make_trainer(
        make_arguments(tmp_path, 8), make_samples(8), full, "MetaDistiller"
    ).train()
    start = make_setting()["student"].state_dict()
    for key, value in full["student"].state_dict().items():
        change = (value - start[key]).norm()
        assert (setting["student"].state_dict()[key] - value).norm() < 0.05 * change
