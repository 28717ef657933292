"""Under DistributedDataParallel: two processes equal one on the whole batch."""

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
from lookahead import CLASSES, LR, VIEWS, Free, Student, Task, mlp
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

from msdlosses import Fill, LearnedFill, ModalityViews, WeightNet

STEPS = 3
CASES: dict[str, dict[str, Any]] = {
    "double-backward": {"engine": "double-backward"},
    "forward": {"engine": "forward"},
    "lookahead": {"mode": "lookahead"},
    "clipped": {"max_norm": 0.05},
    "AdamW": {"optimizer": AdamW, "eps": 1e-2},
    "every second": {"every": 2},
    "compiled": {"compile": True},
    "unused": {"spare": True},
    "weight net": {"weighting": "net"},
    "weight net, forward": {"weighting": "net", "engine": "forward"},
    "learned fill": {"fill": True},
}


def train(rank: int | None, case: dict[str, Any]) -> dict[str, Tensor]:
    """Some steps on the rows of one process, or on all of them; the parameters at the end."""
    options = dict(case)
    torch.manual_seed(0)
    net = WeightNet(VIEWS, num_classes=CLASSES, hidden=4, synchronize=True)
    student, task = Student(mlp()), Task(net if options.pop("weighting", "") else Free(3))
    if options.pop("spare", False):
        student.spare = nn.Linear(1, 1)
    kind = options.pop("optimizer", SGD)
    steps = {"lr": LR / 5, **({"eps": options.pop("eps")} if "eps" in options else {})}
    if options.pop("fill", False):
        task.views = ModalityViews(image=LearnedFill(pixels=0.5), text=Fill(tokens=0.0))
    optimizer = kind([*student.parameters(), *task.views.parameters()], **steps)
    if rank is not None:
        with torch.no_grad():  # the learner gives all those of the first
            for parameter in (*task.views.parameters(), *task.weighting.parameters()):
                parameter.add_(rank)
    model: nn.Module = student if rank is None else DistributedDataParallel(student)
    if options.pop("compile", False) and rank is not None:
        model = torch.compile(model, backend="eager")
    learner = task.learner(model, optimizer, **options)
    rows = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)

    def outer(model: nn.Module) -> Tensor:
        held_out = {name: entry[:4][rows] for name, entry in task.held_out.items()}
        logits = task.views(model, held_out)["full"]
        return nn.functional.cross_entropy(logits, task.held_out_target[:4][rows])

    for _ in range(STEPS):
        learner.step(lambda model: task.part(model, rows), outer)
    modules = (student, task.views, task.weighting)
    return copy.deepcopy({k: v for module in modules for k, v in module.state_dict().items()})


def all_cases(rank: int) -> dict[str, dict[str, Tensor]]:
    return {name: train(rank, case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    return in_two(all_cases, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name: str, processes: list[Any]) -> None:
    with float64():
        expected = train(None, CASES[name])
    first, second = (found[name] for found in processes)
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-9, atol=1e-12)


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
state = [*student.module.parameters(), *weight.parameters()]
everyone = [None, None]
torch.distributed.all_gather_object(everyone, [p.detach() for p in state])
assert all(torch.equal(a, b) for a, b in zip(*everyone))
with open(f"{sys.argv[1]}/{rank}", "w") as file:
    file.write("equal")
torch.distributed.destroy_process_group()
os._exit(0)  # as `leave` does
"""


def test_it_works_under_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["equal", "equal"]


def test_a_part_in_a_wrapper_of_its_own_is_refused(tmp_path: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        student, task = Student(mlp()), Task(Free(3))
        optimizer = SGD(student.parameters(), LR)
        student.body = DistributedDataParallel(student.body)
        with pytest.raises(TypeError, match=r"wrapped as a whole.* got Distrib.* at `body`"):
            task.learner(student, optimizer)
        whole = DistributedDataParallel(Student(mlp()))
        optimizer = SGD(whole.parameters(), LR)
        with pytest.raises(TypeError, match="neither compiled nor wrapped"):
            task.learner(whole, optimizer, engine="higher")
    finally:
        distributed.destroy_process_group()
