"""Several processes build one cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cache_helpers import PREAMBLE, Teacher, assert_numbered, make_data, make_views
from torch import distributed

from msdlosses import TeacherCache

BUILD = """
from torch import distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

class Samples(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, i):
        return {"index": i, "pixels": torch.tensor([float(i), -1.0]), "tokens": torch.zeros(1)}

def teacher(pixels, tokens):
    return pixels

distributed.init_process_group("gloo")
views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
loader = DataLoader(Samples(), batch_size=2, sampler=DistributedSampler(Samples()))
cache = TeacherCache.build(teacher, views, loader, sys.argv[1], fingerprint="v1")
assert cache[torch.arange(9)]["full"][:, 0].tolist() == [*range(9)]
errors = 0
try:
    TeacherCache.build(teacher, views, loader, sys.argv[1])
except FileExistsError:
    errors += 1
batch = {"pixels": torch.ones(2, 2), "tokens": torch.zeros(2, 1)}
try:
    TeacherCache.build(teacher, views, [batch], sys.argv[1] + "-unordered")
except KeyError as error:
    errors += "Expected `batch` to hold `index`" in str(error)
assert errors == 2
distributed.destroy_process_group()
"""


def torchrun(script: str, folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "script.py"
    file.write_text(PREAMBLE + script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(file), str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_two_processes_resume_the_build_of_one(killed: Path, tmp_path: Path) -> None:
    """The sampler pads nine samples to ten, so that both processes get one of them."""
    done = torchrun(BUILD, tmp_path, killed)
    assert done.returncode == 0, done.stderr
    cache = TeacherCache.open(killed, fingerprint="v1")
    assert_numbered(cache, [*range(9)])
    assert {path.name[:4] for path in killed.glob("*.records")} == {"0000", "0001"}


@pytest.mark.usefixtures("single_process_group")
def test_builds_in_a_group_of_the_user(teacher: Teacher, tmp_path: Path) -> None:
    data, group = make_data(4), distributed.group.WORLD
    cache = TeacherCache.build(teacher, make_views(), [data], tmp_path / "cache", group=group)
    assert len(cache) == 4
    distributed.barrier(group=group)  # the group still works
