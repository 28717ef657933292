"""Run scripts in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def launch(script: str, *arguments: object, processes: int = 2) -> None:
    """Run a script of this folder under `torchrun`."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
         "--standalone", str(TESTS / "integration" / script), *map(str, arguments)],
        env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def environment() -> dict[str, str]:
    """This environment with one thread, and with the helper modules of the tests."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
