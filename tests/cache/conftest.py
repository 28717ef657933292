"""Fixtures: a teacher, a finished cache, and a build that was killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from cache_helpers import Teacher, make_data, make_views, run_script

from msdlosses import TeacherCache

KILLED_BUILD = """
def loader():
    for rows in ([5, 1], [0, 3], [2, 7]):
        pixels = torch.tensor([[float(row), -1.0] for row in rows])
        yield {"index": torch.tensor(rows), "pixels": pixels, "tokens": torch.zeros(2, 1)}
    os.kill(os.getpid(), signal.SIGKILL)
views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
TeacherCache.build(
    lambda pixels, tokens: pixels, views, loader(), sys.argv[1], fingerprint="v1"
)
"""


@pytest.fixture
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture
def cache(tmp_path: Path, teacher: Teacher) -> TeacherCache:
    """A finished cache of ten samples."""
    data = make_data(10)
    return TeacherCache.build(teacher, make_views(), [data], tmp_path / "c", fingerprint="v1")


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The folder of a build of six samples that was killed before it wrote the last two."""
    assert run_script(KILLED_BUILD, tmp_path).returncode == -signal.SIGKILL
    return tmp_path
