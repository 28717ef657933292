"""Lightning: automatic and manual optimisation, a killed run that goes on, two processes."""

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
from launch import environment, launch
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
        self.words, self.last = nn.Embedding(9, 4), nn.Linear(8, CLASSES)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        features = torch.cat([pixels, self.words(tokens).mean(1)], -1)
        return self.last(self.dropout(features.tanh()))


def samples(count: int) -> list[Any]:
    return [
        (
            {"pixels": torch.randn(4), "tokens": torch.randint(1, 9, (5,))},
            torch.randint(CLASSES, ()),
        )
        for _ in range(count)
    ]


def recipe(learned: bool, dropout: float = 0.0) -> dict[str, Any]:
    """The page's classes, and one of its modules."""
    torch.manual_seed(0)
    models = {"student": Student(dropout), "teacher": Student(0.0)}
    found = run("lightning", "A module", "Learned weights", "Resuming", PAD=0, **models)
    weighting = DynamicWeightAverage(VIEWS)
    if learned:
        weighting = WeightNet(VIEWS, num_classes=CLASSES, hidden=4, synchronize=True)
    kind = found["Resumable" if learned else "Distiller"]
    module = kind(*models.values(), found["views"], MSDLoss(KDLoss(2.0), weighting))
    return {**found, "module": module, "data": samples(4 * BATCHES), "held_out": samples(8)}


def loaders(found: dict[str, Any], size: int, shuffle: bool = False) -> Any:
    train, held_out = (
        DataLoader(found[name], size, shuffle=shuffle) for name in ("data", "held_out")
    )
    automatic = found["module"].automatic_optimization
    return train if automatic else {"train": train, "held_out": held_out}


def trainer(epochs: int = EPOCHS, **options: Any) -> Any:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def moved(module: Any) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    torch.testing.assert_close(found, expected, **({"rtol": 0.0, "atol": 0.0} | tolerance))


# --- what is trained, and logged


class Log(Callback):
    """What a logger would be given."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.steps.append(dict(trainer.callback_metrics))


def test_a_module_trains_as_a_plain_loop_and_logs_the_terms() -> None:
    found, by_hand = recipe(False), recipe(False)["module"]
    log = Log()
    trainer(1, enable_checkpointing=False, callbacks=[log]).fit(found["module"], loaders(found, 4))
    optimizer = by_hand.configure_optimizers()
    for (batch, target), told in zip(DataLoader(found["data"], 4), log.steps, strict=True):
        with torch.no_grad():
            t = by_hand.views(by_hand.teacher, batch)
        s = by_hand.views(by_hand.student, batch)
        parts = by_hand.msd.parts(s, t, target)
        optimizer.zero_grad()
        (0.5 * F.cross_entropy(s["full"], target) + 0.5 * parts.loss).backward()
        optimizer.step()
        for view, term in zip(VIEWS, parts.terms.mean(0), strict=True):
            torch.testing.assert_close(told[f"term of {view}"], term)
    assert_equal(moved(found["module"]), moved(by_hand))


def test_a_learner_in_a_module_takes_the_same_steps() -> None:
    found, by_hand = recipe(True), recipe(True)["module"]
    log = Log()
    run_of = trainer(1, enable_checkpointing=False, callbacks=[log])
    run_of.fit(found["module"], loaders(found, 4))
    assert run_of.global_step == BATCHES
    student, weights = by_hand.configure_optimizers()
    learner = MetaLearner(by_hand.student, student, by_hand.msd.weighting, weights)
    held_out = cycle(DataLoader(found["held_out"], 4))
    for batch, target in DataLoader(found["data"], 4):
        other, label = next(held_out)

        def inner(model: nn.Module, batch: Any = batch, target: Tensor = target) -> Tensor:
            with torch.no_grad():
                t = by_hand.views(by_hand.teacher, batch)
            s = by_hand.views(model, batch)
            return 0.5 * F.cross_entropy(s["full"], target) + 0.5 * by_hand.msd(s, t, target)

        def outer(model: nn.Module, batch: Any = other, target: Tensor = label) -> Tensor:
            return F.cross_entropy(by_hand.views(model, batch)["full"], target)

        learner.step(inner, outer)
    assert_equal(moved(found["module"]), moved(by_hand), rtol=1e-5, atol=1e-7)
    assert set(log.steps[-1]) == {f"{what} of {v}" for what in ("term", "weight") for v in VIEWS}


# --- a run that is killed


class Kill(Callback):
    """The end, in the middle of an epoch."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 2 and trainer.fit_loop.epoch_loop.batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, learned: bool, kill: bool = False) -> Any:
    """All epochs, from the last checkpoint if there is one."""
    found = recipe(learned, dropout=0.5)
    last = folder / "last.ckpt"
    saves = ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    run_of = trainer(callbacks=[saves, found["RandomState"](), *([Kill()] if kill else [])])
    checkpoint = str(last) if last.exists() else None
    run_of.fit(found["module"], loaders(found, 4, shuffle=True), ckpt_path=checkpoint)
    taken = found["module"].learner.state_dict()["steps_taken"] if learned else 0
    return moved(found["module"]), [o.state_dict() for o in run_of.optimizers], taken


def killed(folder: Path, learned: bool) -> None:
    done = subprocess.run(
        [sys.executable, __file__, "kill", str(folder), str(int(learned))],
        env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(folder / "last.ckpt", weights_only=False)["epoch"] == 1


@pytest.mark.parametrize("learned", [False, True])
def test_a_killed_run_that_goes_on_equals_an_unbroken_one(learned: bool, tmp_path: Path) -> None:
    killed(tmp_path / "broken", learned)
    found = train(tmp_path / "broken", learned)
    expected = train(tmp_path / "whole", learned)
    assert expected[-1] == (EPOCHS * BATCHES if learned else 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# --- two processes


def together(folder: Path) -> None:
    """One of them."""
    for learned in (False, True):
        found = recipe(learned)
        for name in ("data", "held_out"):  # Lightning's own sampler would shuffle
            found[name] = found[name][int(os.environ["RANK"]) :: 2]
        parallel = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
        run_of = trainer(2, enable_checkpointing=False, **parallel)
        run_of.fit(found["module"], loaders(found, 2))
        torch.save(moved(found["module"]), folder / f"{learned}{run_of.global_rank}.pt")
    leave()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    launch("test_lightning.py", "together", folder)
    return folder


@pytest.mark.parametrize("learned", [False, True])
def test_two_processes_are_one_with_the_whole_batch(learned: bool, processes: Path) -> None:
    found = recipe(learned)
    trainer(2, enable_checkpointing=False).fit(found["module"], loaders(found, 4))
    first, second = (
        torch.load(processes / f"{learned}{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert_equal(first, second)
    assert_equal(first, moved(found["module"]), rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder, *more = sys.argv[1:]
    if what == "kill":
        train(Path(folder), learned=more == ["1"], kill=True)
    else:
        together(Path(folder))
