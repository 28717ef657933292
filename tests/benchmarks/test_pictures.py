"""The pictures of the full study."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import pictures
from benchmarks.datasets import DATASETS


@pytest.mark.parametrize("name", DATASETS)
def test_both_pictures_of_a_data_set_are_drawn(name: str, tmp_path: Path) -> None:
    pictures.draw(name, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"full.png", "questions.png"}
