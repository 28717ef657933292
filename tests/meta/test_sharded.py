"""Students sharded by `fully_shard` over two processes learn as one process does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import in_two
from lookahead import CLASSES, LR, VIEWS, FreeWeights, Student, Task, mlp, use_single_precision
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from msdlosses import WeightNet

STEPS = 4
CASES: dict[str, dict[str, Any]] = {
    "SGD": {},
    "auto": {"engine": "auto"},
    "AdamW": {"adamw": True},
    "lookahead": {"mode": "lookahead"},
    "max_norm": {"max_norm": 0.05, "adamw": True},
    "weight net": {"weight_net": True},
    "update_every": {"update_every": 2},
    "mixed precision": {"mixed": True, "adamw": True},
}


def train(
    rank: int | None,
    *,
    adamw: bool = False,
    weight_net: bool = False,
    mixed: bool = False,
    engine: str = "difference",
    **options: Any,
) -> dict[str, Tensor]:
    """Train on the samples of one process, or on all of them if `rank` is None."""
    torch.manual_seed(0)
    net = WeightNet(VIEWS, num_classes=CLASSES, hidden=4, synchronize=True)
    student, task = Student(mlp()), Task(net if weight_net else FreeWeights(3))
    use_single_precision(student, task)
    if rank is not None:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else None
        shard = {} if policy is None else {"mp_policy": policy}
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
        for layer in (student.body[1], student.body[3], student):
            fully_shard(layer, mesh=mesh, **shard)
    parameters = student.parameters()
    optimizer = AdamW(parameters, 0.01, eps=1e-2) if adamw else SGD(parameters, LR / 5, 0.9)
    learner = task.learner(student, optimizer, engine=engine, **options)
    samples = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)

    def inner(model: nn.Module) -> Tensor:
        return task.inner_on(model, samples)

    def outer(model: nn.Module) -> Tensor:
        held_out = {name: entry[:4][samples] for name, entry in task.held_out.items()}
        logits = task.views(model, held_out)["full"]
        return F.cross_entropy(logits, task.held_out_target[:4][samples])

    for _ in range(STEPS):
        learner.step(inner, outer)
    state = {**student.state_dict(), **task.weighting.state_dict()}
    return {
        k: v.full_tensor().detach() if isinstance(v, DTensor) else v.detach().clone()
        for k, v in state.items()
    }


def train_all_cases(rank: int) -> dict[str, Any]:
    torch.set_default_dtype(torch.float32)
    return {name: train(rank, **options) for name, options in CASES.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The results of two processes."""
    return in_two(train_all_cases, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name: str, results: list[Any]) -> None:
    options = {key: value for key, value in CASES[name].items() if key != "mixed"}
    expected = train(None, **options)
    first, second = (result[name] for result in results)
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        # The gradient of the weighting is off by about 1e-3, and by more in bfloat16.
        tolerance = 1e-4 if key.startswith("body") else 5e-3
        tolerance = 0.05 if name == "mixed precision" else tolerance
        torch.testing.assert_close(first[key], value, rtol=tolerance, atol=tolerance)


RESUME = """
from torch.distributed.checkpoint.state_dict import set_state_dict
before = train(batches[2]).inner
parameters = [*student.parameters(), *weight.parameters()]
expected = [local(p).clone() for p in parameters]
model_state, optimizer_state = get_state_dict(student, optimizer)
saved = {"model": model_state, "optimizer": optimizer_state, "learner": learner.state_dict()}
dcp.load(saved, checkpoint_id="checkpoint")
set_state_dict(
    student, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"]
)
learner.load_state_dict(saved["learner"])
assert torch.equal(train(batches[2]).inner, before)
assert all(torch.equal(local(p), e) for p, e in zip(parameters, expected))
with open(f"done{distributed.get_rank()}", "w") as file:
    file.write("equal")
distributed.destroy_process_group()
os._exit(0)  # a thread of Gloo may still run and would abort a normal exit
"""


def test_recipe_resumes_bit_by_bit(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "learned-weights.md"
    (recipe,) = re.findall(r"^```py\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    helper = "import os\ndef local(p):\n    p = p.detach()\n    "
    helper += "return p.to_local() if hasattr(p, 'to_local') else p\n"
    script = tmp_path / "train.py"
    script.write_text(recipe + helper + RESUME)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / f"done{rank}").read_text() for rank in "01"] == ["equal", "equal"]
