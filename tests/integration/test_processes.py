"""Recipes for several processes: equal on all of them, and to one with the whole batch."""

from __future__ import annotations

from typing import Any

import processes
import pytest
import torch
from launch import launch
from recipes import headings, run, snippets
from torch import Tensor
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD
from torch.utils.data import DataLoader

from msdlosses import MetaLearner

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    launch("processes.py", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_alike(first: Any, second: Any, expected: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6)


def alone(scheme: str) -> dict[str, Tensor]:
    """The same in a plain loop."""
    setting = processes.given(processes.SCHEMES[scheme])
    model = run("distributed", "One module")["Distillation"](
        *(setting[name] for name in ("student", "views", "msd"))
    )
    optimizer = SGD(model.parameters(), 0.1)
    for batch, target in DataLoader(setting["data"], 4):
        optimizer.zero_grad()
        model(setting["teacher"], batch, target).backward()
        optimizer.step()
    return processes.state(setting)


@pytest.mark.parametrize("scheme", processes.SCHEMES)
@pytest.mark.parametrize("recipe", processes.WRAPPERS)
def test_what_is_wrapped_learns_as_in_one_process(
    recipe: str, scheme: str, found: list[Any]
) -> None:
    first, second = (of["wrapped"][recipe, scheme] for of in found)
    assert_alike(first, second, alone(scheme))


def test_a_learner_averages_by_itself(found: list[Any]) -> None:
    expected = processes.meta(0, 1)
    assert_alike(found[0]["meta"], found[1]["meta"], expected)


def test_losses_weigh_by_their_counts(found: list[Any]) -> None:
    assert_alike(found[0]["lacking"], found[1]["lacking"], processes.lacking(0, 1))


def test_every_recipe_is_run() -> None:
    with_code = {name for name in headings("distributed") if snippets("distributed", name)}
    run_here = {"One module", *processes.WRAPPERS, "MetaLearner", "Samples that lack something"}
    assert with_code == run_here


def test_a_learner_refuses_a_sharded_student_by_name(tmp_path: Any) -> None:
    init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        student, weights = processes.Student(), processes.net()
        fully_shard(student)
        with pytest.raises(TypeError, match=r"not sharded, got DTensor at `words\.weight`"):
            MetaLearner(
                student, SGD(student.parameters(), 0.1), weights, SGD(weights.parameters(), 0.1)
            )
    finally:
        destroy_process_group()


def test_a_learner_takes_the_optimizer_under_that_of_accelerate() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    student, weights = processes.Student(), processes.net()
    steps = SGD(weights.parameters(), 0.1)
    model, optimizer = accelerator.prepare(student, SGD(student.parameters(), 0.1))
    with pytest.raises(TypeError, match="got AcceleratedOptimizer"):
        MetaLearner(model, optimizer, weights, steps)
    MetaLearner(model, optimizer.optimizer, weights, steps)
