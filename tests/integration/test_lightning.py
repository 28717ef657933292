"""Lightning recipes: both modes of optimization, resuming after a kill, and two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import leave
from integration.launch import environment, launch
from recipes import run
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from msdlosses import DynamicWeightAverage, KDLoss, MetaLearner, MSDLoss, WeightNet

pytest.importorskip("lightning")
import lightning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

EPOCHS, BATCHES, CLASSES, VIEWS = 4, 3, 3, ("full", "image", "text")


class Student(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.text, self.last = nn.Embedding(9, 4), nn.Linear(8, CLASSES)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        features = torch.cat([pixels, self.text(tokens).mean(1)], -1)
        return self.last(self.dropout(features.tanh()))


def make_samples(count: int) -> list[Any]:
    return [
        (
            {"pixels": torch.randn(4), "tokens": torch.randint(1, 9, (5,))},
            torch.randint(CLASSES, ()),
        )
        for _ in range(count)
    ]


def make_recipe(learned: bool, dropout: float = 0.0) -> dict[str, Any]:
    """Return the names of the page, with a module with or without learned weights, and data."""
    torch.manual_seed(0)
    models = {"student": Student(dropout), "teacher": Student(0.0)}
    recipe = run("lightning", "A module", "Learned weights", "Resuming", PAD=0, **models)
    weighting = DynamicWeightAverage(VIEWS)
    if learned:
        weighting = WeightNet(VIEWS, num_classes=CLASSES, hidden=4, synchronize=True)
    module_class = recipe["Resumable" if learned else "Distiller"]
    module = module_class(*models.values(), recipe["views"], MSDLoss(KDLoss(2.0), weighting))
    return {
        **recipe,
        "module": module,
        "data": make_samples(4 * BATCHES),
        "held_out": make_samples(8),
    }


def make_loaders(recipe: dict[str, Any], size: int, shuffle: bool = False) -> Any:
    train, held_out = (
        DataLoader(recipe[name], size, shuffle=shuffle) for name in ("data", "held_out")
    )
    automatic = recipe["module"].automatic_optimization
    return train if automatic else {"train": train, "held_out": held_out}


def make_trainer(epochs: int = EPOCHS, **options: Any) -> Any:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def copy_state(module: Any) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def assert_equal(
    actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float
) -> None:
    torch.testing.assert_close(actual, expected, **({"rtol": 0.0, "atol": 0.0} | tolerance))


# Training and logging


class Log(Callback):
    """Records the metrics of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.steps.append(dict(trainer.callback_metrics))


def test_module_trains_as_a_plain_loop_and_logs_the_terms() -> None:
    recipe, plain = make_recipe(False), make_recipe(False)["module"]
    log = Log()
    trainer = make_trainer(1, enable_checkpointing=False, callbacks=[log])
    trainer.fit(recipe["module"], make_loaders(recipe, 4))
    optimizer = plain.configure_optimizers()
    for (batch, target), metrics in zip(DataLoader(recipe["data"], 4), log.steps, strict=True):
        with torch.no_grad():
            t = plain.views(plain.teacher, batch)
        s = plain.views(plain.student, batch)
        parts = plain.msd.parts(s, t, target)
        optimizer.zero_grad()
        (0.5 * F.cross_entropy(s["full"], target) + 0.5 * parts.loss).backward()
        optimizer.step()
        for view, term in zip(VIEWS, parts.terms.mean(0), strict=True):
            torch.testing.assert_close(metrics[f"term of {view}"], term)
    assert_equal(copy_state(recipe["module"]), copy_state(plain))


def test_meta_learner_in_a_module_takes_the_same_steps() -> None:
    recipe, plain = make_recipe(True), make_recipe(True)["module"]
    log = Log()
    trainer = make_trainer(1, enable_checkpointing=False, callbacks=[log])
    trainer.fit(recipe["module"], make_loaders(recipe, 4))
    assert trainer.global_step == BATCHES
    student_optimizer, weighting_optimizer = plain.configure_optimizers()
    learner = MetaLearner(
        plain.student, student_optimizer, plain.msd.weighting, weighting_optimizer
    )
    held_out_batches = cycle(DataLoader(recipe["held_out"], 4))
    for batch, target in DataLoader(recipe["data"], 4):
        held_out, held_out_target = next(held_out_batches)

        def inner(model: nn.Module, batch: Any = batch, target: Tensor = target) -> Tensor:
            with torch.no_grad():
                t = plain.views(plain.teacher, batch)
            s = plain.views(model, batch)
            return 0.5 * F.cross_entropy(s["full"], target) + 0.5 * plain.msd(s, t, target)

        def outer(
            model: nn.Module, batch: Any = held_out, target: Tensor = held_out_target
        ) -> Tensor:
            return F.cross_entropy(plain.views(model, batch)["full"], target)

        learner.step(inner, outer)
    assert_equal(copy_state(recipe["module"]), copy_state(plain), rtol=1e-5, atol=1e-7)
    assert set(log.steps[-1]) == {*(f"term of {v}" for v in VIEWS), "loss", "held-out loss"}


# Resuming a killed run


class Kill(Callback):
    """Kills the process in the middle of an epoch."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 2 and trainer.fit_loop.epoch_loop.batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, learned: bool, kill: bool = False) -> Any:
    """Train all epochs, from the last checkpoint if there is one."""
    recipe = make_recipe(learned, dropout=0.5)
    last = folder / "last.ckpt"
    saves = ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    trainer = make_trainer(callbacks=[saves, recipe["RandomState"](), *([Kill()] if kill else [])])
    checkpoint = str(last) if last.exists() else None
    trainer.fit(recipe["module"], make_loaders(recipe, 4, shuffle=True), ckpt_path=checkpoint)
    steps_taken = recipe["module"].learner.state_dict()["steps_taken"] if learned else 0
    optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
    return copy_state(recipe["module"]), optimizers, steps_taken


def train_until_killed(folder: Path, learned: bool) -> None:
    done = subprocess.run(
        [sys.executable, __file__, "kill", str(folder), str(int(learned))],
        env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(folder / "last.ckpt", weights_only=False)["epoch"] == 1


@pytest.mark.parametrize("learned", [False, True], ids=["fixed weights", "learned weights"])
def test_resumed_run_equals_an_uninterrupted_one(learned: bool, tmp_path: Path) -> None:
    train_until_killed(tmp_path / "resumed", learned)
    actual = train(tmp_path / "resumed", learned)
    expected = train(tmp_path / "uninterrupted", learned)
    assert expected[-1] == (EPOCHS * BATCHES if learned else 0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# Two processes


def train_in_two(folder: Path) -> None:
    """Train as one of two processes."""
    for learned in (False, True):
        recipe = make_recipe(learned)
        for name in ("data", "held_out"):  # Lightning's own sampler would shuffle
            recipe[name] = recipe[name][int(os.environ["RANK"]) :: 2]
        parallel = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
        trainer = make_trainer(2, enable_checkpointing=False, **parallel)
        trainer.fit(recipe["module"], make_loaders(recipe, 2))
        torch.save(copy_state(recipe["module"]), folder / f"{learned}{trainer.global_rank}.pt")
    leave()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    launch("test_lightning.py", "in two", folder)
    return folder


@pytest.mark.parametrize("learned", [False, True], ids=["fixed weights", "learned weights"])
def test_two_processes_equal_one_with_the_whole_batch(learned: bool, processes: Path) -> None:
    recipe = make_recipe(learned)
    trainer = make_trainer(2, enable_checkpointing=False)
    trainer.fit(recipe["module"], make_loaders(recipe, 4))
    first, second = (
        torch.load(processes / f"{learned}{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert_equal(first, second)
    assert_equal(first, copy_state(recipe["module"]), rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, folder, *options = sys.argv[1:]
    if command == "kill":
        train(Path(folder), learned=options == ["1"], kill=True)
    else:
        train_in_two(Path(folder))
