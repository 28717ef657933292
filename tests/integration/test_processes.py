"""Recipes for several processes: each process ends like one process with the whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from groups import float64
from integration import processes
from integration.launch import launch
from recipes import headings, run, snippets
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, default_collate

from msdlosses import MetaLearner

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    launch("processes.py", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with float64():
        yield


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def assert_same(first: Any, second: Any, expected: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_close(first, expected)


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


@pytest.mark.parametrize("scheme", processes.ACCUMULATED)
def test_accumulated_steps_equal_a_plain_loop(scheme: str, results: list[Any]) -> None:
    expected = train_in_plain_loop(scheme)
    assert_same(*(result["accumulated"][scheme] for result in results), expected)
    assert_close(processes.train_accumulated(scheme, 1), expected)


def train_on_the_whole_batch(left_out: str, samples: Sequence[slice]) -> dict[str, Tensor]:
    """Take plain steps on the mean losses of some samples each."""
    setting = processes.make_incomplete(left_out)
    model = nn.ModuleDict({name: setting[name] for name in ("student", "views", "msd")})
    for rows in samples:
        batch, target = default_collate(setting["data"][rows])
        with torch.no_grad():
            t = setting["views"](setting["teacher"], batch)
        s = setting["views"](setting["student"], batch)
        task = F.cross_entropy(s["full"].flatten(0, -2), target.flatten())
        loss = 0.5 * task + 0.5 * setting["msd"](s, t, target, valid=batch.get("valid"))
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient
    return processes.state(setting, ("student", "views"))


def without_loss(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("msd.")}


@pytest.mark.parametrize("left_out", processes.LEFT_OUT)
def test_micro_batches_are_weighted_by_their_counts(left_out: str, results: list[Any]) -> None:
    """One process takes a step every two samples, and two processes every four."""
    first, second = (without_loss(result["incomplete"][left_out]) for result in results)
    steps = [slice(0, 4), slice(4, 8)]
    assert_same(first, second, train_on_the_whole_batch(left_out, steps))
    steps = [slice(i, i + 2) for i in range(0, 8, 2)]
    actual = without_loss(processes.train_incomplete(left_out))
    assert_close(actual, train_on_the_whole_batch(left_out, steps))


@pytest.mark.parametrize("left_out", processes.LEFT_OUT)
def test_last_step_of_an_epoch_may_have_fewer_or_smaller_micro_batches(left_out: str) -> None:
    """Epochs of micro-batches of 2, 2 and 1 samples; of 3, 3 and 1; of 5 and 3."""
    steps = [slice(0, 4), slice(4, 5)]
    actual = without_loss(processes.train_incomplete(left_out, samples=5, size=2))
    assert_close(actual, train_on_the_whole_batch(left_out, steps))
    steps = [slice(0, 6), slice(6, 7)]
    actual = without_loss(processes.train_incomplete(left_out, samples=7, size=3))
    assert_close(actual, train_on_the_whole_batch(left_out, steps))
    steps = [slice(0, 8)]
    actual = without_loss(processes.train_incomplete(left_out, samples=8, size=5))
    assert_close(actual, train_on_the_whole_batch(left_out, steps))


@pytest.mark.parametrize("left_out", processes.LEFT_OUT)
def test_losses_are_weighted_by_the_counts_of_the_processes(
    left_out: str, results: list[Any]
) -> None:
    expected = processes.train_masked(left_out, 0, 1)
    assert_same(results[0]["masked"][left_out], results[1]["masked"][left_out], expected)


def test_every_recipe_is_tested() -> None:
    with_code = {name for name in headings("distributed") if snippets("distributed", name)}
    tested = {"One module", *processes.WRAPPERS, "MetaLearner"}
    tested |= {processes.ACCUMULATION, processes.MASKED_LOSS}
    assert with_code == tested


@pytest.mark.usefixtures("single_process_group")
def test_meta_learner_rejects_sharded_student() -> None:
    student, weights = processes.Student(), processes.make_net()
    fully_shard(student)
    optimizers = SGD(student.parameters(), 0.1), SGD(weights.parameters(), 0.1)
    with pytest.raises(TypeError, match=r"plain tensors.*`text\.weight`"):
        MetaLearner(student, optimizers[0], weights, optimizers[1], engine="double-backward")


def test_meta_learner_takes_the_wrapped_optimizer_of_accelerate() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    student, weights = processes.Student(), processes.make_net()
    weighting_optimizer = SGD(weights.parameters(), 0.1)
    model, optimizer = accelerator.prepare(student, SGD(student.parameters(), 0.1))
    with pytest.raises(TypeError, match="got AcceleratedOptimizer"):
        MetaLearner(model, optimizer, weights, weighting_optimizer)
    MetaLearner(model, optimizer.optimizer, weights, weighting_optimizer)
