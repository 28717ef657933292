"""Under DistributedDataParallel, two processes learn what one learns from the whole batch."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import float64, in_two
from lookahead import CLASSES, EXACT, LR, VIEWS, FreeWeights, Student, Task, mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

from msdlosses import Fill, LearnedFill, ModalityViews, WeightNet

STEPS = 3
CASES: dict[str, dict[str, Any]] = {
    "double-backward": {"engine": "double-backward"},
    "forward": {"engine": "forward"},
    "lookahead": {"mode": "lookahead"},
    "max_norm": {"max_norm": 0.05},
    "AdamW": {"adamw": True},
    "update_every": {"update_every": 2},
    "compiled": {"compiled": True},
    "unused parameters": {"unused": True},
    "weight net": {"weight_net": True},
    "weight net, forward": {"weight_net": True, "engine": "forward"},
    "learned fill": {"learned_fill": True},
}


def train(
    rank: int | None,
    *,
    weight_net: bool = False,
    unused: bool = False,
    learned_fill: bool = False,
    adamw: bool = False,
    compiled: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    """Train on the samples of one process, or on all of them if `rank` is None.

    Return the parameters and buffers at the end.
    """
    torch.manual_seed(0)
    net = WeightNet(VIEWS, num_classes=CLASSES, hidden=4, synchronize=True)
    student, task = Student(mlp()), Task(net if weight_net else FreeWeights(3))
    if unused:
        student.unused = nn.Linear(1, 1)
    if learned_fill:
        task.views = ModalityViews(image=LearnedFill(pixels=0.5), text=Fill(tokens=0.0))
    parameters = [*student.parameters(), *task.views.parameters()]
    optimizer = AdamW(parameters, LR / 5, eps=1e-2) if adamw else SGD(parameters, LR / 5)
    model: nn.Module = student
    if rank is not None:
        with torch.no_grad():  # the learner must copy these from the first process
            for parameter in (*task.views.parameters(), *task.weighting.parameters()):
                parameter.add_(rank)
        model = DistributedDataParallel(student)
        if compiled:
            model = torch.compile(model, backend="eager")
    learner = task.learner(model, optimizer, **options)
    samples = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)

    def inner(model: nn.Module) -> Tensor:
        return task.inner_on(model, samples)

    def outer(model: nn.Module) -> Tensor:
        held_out = {name: entry[:4][samples] for name, entry in task.held_out.items()}
        logits = task.views(model, held_out)["full"]
        return F.cross_entropy(logits, task.held_out_target[:4][samples])

    for _ in range(STEPS):
        learner.step(inner, outer)
    modules = (student, task.views, task.weighting)
    return copy.deepcopy({k: v for module in modules for k, v in module.state_dict().items()})


def train_all_cases(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {name: train(rank, **options) for name, options in CASES.items()}
    for engine in EXACT:
        results[f"NaN, {engine}"] = step_on_nan(rank, engine)
        results[f"hook, {engine}"] = step_with_hook(rank, engine)
    return results


def step_on_nan(rank: int, engine: str) -> list[Tensor]:
    """Take a step whose loss is NaN in the second process; return the parameters after it."""
    student, task = Student(mlp()), Task(FreeWeights(3))
    model = DistributedDataParallel(student)
    learner = task.learner(model, SGD(student.parameters(), LR), engine=engine)
    factor = float("nan") if rank else 1.0
    learner.step(lambda model: factor * task.inner(model), task.outer)
    return [p.detach() for p in (*student.parameters(), *task.weighting.parameters())]


def step_with_hook(rank: int, engine: str) -> str:
    """Take a step with a wrong gradient in the second process; return the error."""
    student, task = Student(mlp()), Task(FreeWeights(3))
    model = DistributedDataParallel(student)
    learner = task.learner(model, SGD(student.parameters(), LR), engine=engine)

    def inner(model: nn.Module) -> Tensor:
        loss = task.inner(model)
        if rank and loss.requires_grad:
            loss.register_hook(lambda g: -g)
        return loss

    try:
        learner.step(inner, task.outer)
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """The results of two processes."""
    return in_two(train_all_cases, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name: str, results: list[Any]) -> None:
    with float64():
        expected = train(None, **CASES[name])
    first, second = (result[name] for result in results)
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", EXACT)
def test_nan_in_one_process_reaches_all(engine: str, results: list[Any]) -> None:
    for result in results:
        assert all(p.isnan().all() for p in result[f"NaN, {engine}"][2:])


@pytest.mark.parametrize("engine", EXACT)
def test_wrong_gradient_in_one_process_raises_in_all(engine: str, results: list[Any]) -> None:
    for result in results:
        assert "a gradient that is its derivative" in result[f"hook, {engine}"]


SCRIPT = """
import os
import sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from msdlosses import MetaLearner

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(rank)
student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
weight = nn.Linear(1, 1)
student = DistributedDataParallel(student)
optimizer = torch.optim.AdamW(student.parameters(), 0.01)
learner = MetaLearner(student, optimizer, weight, torch.optim.SGD(weight.parameters(), 0.1))
for _ in range(3):
    x = torch.randn(5, 3)
    learner.step(
        lambda model: weight(model(x)).square().mean(), lambda model: (model(x) - 1).square().mean()
    )
parameters = [*student.module.parameters(), *weight.parameters()]
of_all = [None, None]
torch.distributed.all_gather_object(of_all, [p.detach() for p in parameters])
assert all(torch.equal(a, b) for a, b in zip(*of_all))
with open(f"{sys.argv[1]}/{rank}", "w") as file:
    file.write("equal")
torch.distributed.destroy_process_group()
os._exit(0)  # a thread of Gloo may still run and would abort a normal exit
"""


def test_processes_of_torchrun_stay_equal(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["equal", "equal"]


@pytest.mark.usefixtures("single_process_group")
def test_rejects_a_student_that_is_wrapped_in_part() -> None:
    student, task = Student(mlp()), Task(FreeWeights(3))
    optimizer = SGD(student.parameters(), LR)
    student.body = DistributedDataParallel(student.body)
    with pytest.raises(TypeError, match=r"around the whole student, got some at `body`"):
        task.learner(student, optimizer)


@pytest.mark.usefixtures("single_process_group")
def test_higher_rejects_a_wrapped_student() -> None:
    student, task = DistributedDataParallel(Student(mlp())), Task(FreeWeights(3))
    optimizer = SGD(student.parameters(), LR)
    with pytest.raises(TypeError, match=r"neither compiled nor wrapped, for `higher`"):
        task.learner(student, optimizer, engine="higher")
