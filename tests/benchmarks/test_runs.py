"""The file of results."""

from __future__ import annotations

from pathlib import Path

from benchmarks.runs import Runs, read


def test_incomplete_last_line_is_dropped(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "a" / "runs.jsonl")
    jobs = [{"seed": seed, "cache": "anywhere"} for seed in range(2)]
    runs.extend({"job": {"seed": job["seed"]}, "value": 1} for job in jobs)
    with runs.path.open("a") as file:
        file.write('{"job": {"se')
    reopened = Runs(runs.path)
    assert all(reopened.has(job) for job in jobs)
    reopened.extend([{"job": {"seed": 2}}])
    assert [run["job"]["seed"] for run in read(runs.path)] == [0, 1, 2]
