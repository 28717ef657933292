"""Recipes for several processes: each process ends like one process with the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integration import processes
from integration.launch import launch
from recipes import headings, run, snippets
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD
from torch.utils.data import DataLoader

from msdlosses import MetaLearner

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    launch("processes.py", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same(first: Any, second: Any, expected: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6)


def train_in_plain_loop(scheme: str) -> dict[str, Tensor]:
    setting = processes.make_setting(processes.SCHEMES[scheme])
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
def test_wrapped_module_trains_as_in_one_process(
    recipe: str, scheme: str, results: list[Any]
) -> None:
    first, second = (result["wrapped"][recipe, scheme] for result in results)
    assert_same(first, second, train_in_plain_loop(scheme))


def test_meta_learner_averages_over_processes(results: list[Any]) -> None:
    assert_same(results[0]["meta"], results[1]["meta"], processes.train_meta(0, 1))


def test_losses_are_weighted_by_the_counts_of_the_processes(results: list[Any]) -> None:
    expected = processes.masked_gradients(0, 1)
    assert_same(results[0]["masked"], results[1]["masked"], expected)


def test_every_recipe_is_tested() -> None:
    with_code = {name for name in headings("distributed") if snippets("distributed", name)}
    tested = {"One module", *processes.WRAPPERS, "MetaLearner", processes.MASKED_LOSS}
    assert with_code == tested


@pytest.mark.usefixtures("single_process_group")
def test_meta_learner_rejects_sharded_student() -> None:
    student, weights = processes.Student(), processes.make_net()
    fully_shard(student)
    with pytest.raises(TypeError, match=r"not sharded.*`text\.weight`"):
        MetaLearner(
            student, SGD(student.parameters(), 0.1), weights, SGD(weights.parameters(), 0.1)
        )


def test_meta_learner_takes_the_wrapped_optimizer_of_accelerate() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    student, weights = processes.Student(), processes.make_net()
    weighting_optimizer = SGD(weights.parameters(), 0.1)
    model, optimizer = accelerator.prepare(student, SGD(student.parameters(), 0.1))
    with pytest.raises(TypeError, match="got AcceleratedOptimizer"):
        MetaLearner(model, optimizer, weights, weighting_optimizer)
    MetaLearner(model, optimizer.optimizer, weights, weighting_optimizer)
