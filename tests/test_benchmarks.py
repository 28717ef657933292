"""The study: its splits keep apart what belongs together, and its report says what was run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.datasets import DATASETS, PARTS, load, split_groups
from benchmarks.runs import read

RESULTS = Path("benchmarks/results")


@pytest.mark.parametrize("name", DATASETS)
def test_parts_have_their_shares_and_no_group_in_common(name: str) -> None:
    groups = np.array(_items(name).groups)
    parts = split_groups(groups, seed=3)
    members = {part: set(groups[index.numpy()]) for part, index in parts.items()}
    for part, share in PARTS.items():
        assert len(parts[part]) / len(groups) == pytest.approx(share, abs=0.02)
        assert not any(members[part] & members[other] for other in PARTS if other != part)


def test_seeds_split_anew_and_a_seed_splits_alike() -> None:
    one, same, other = load("hanzi", 0), load("hanzi", 0), load("hanzi", 1)
    assert torch.equal(one.test.inputs["pixels"], same.test.inputs["pixels"])
    assert not torch.equal(one.test.inputs["pixels"][:100], other.test.inputs["pixels"][:100])


def test_an_item_keeps_its_index_when_some_are_taken() -> None:
    split = load("hanzi", 0).train
    some = split.items(torch.tensor([5, 3]))
    assert some.index.tolist() == [5, 3]
    assert torch.equal(some.inputs["tokens"], split.inputs["tokens"][[5, 3]])


def test_shuffled_batches_hold_every_item_once() -> None:
    split = load("hanzi", 0).validation
    seen = torch.cat([batch["index"] for batch, _ in split.batches(100, shuffle=True)])
    assert seen.sort().values.tolist() == list(range(len(split)))


def test_paired_differences_are_those_of_each_seed() -> None:
    report = _report()
    results = report.Results([*_runs("KD", [0.5, 0.7]), *_runs("MSD equal", [0.6, 0.9])])
    assert results.gain("MSD equal", "full") == pytest.approx([10, 20])
    # 15 +- t(.975, 1) * sd / sqrt 2, by hand
    low, high = report.interval(results.gain("MSD equal", "full"))
    assert (low, high) == pytest.approx((15 - 12.7062 * 5, 15 + 12.7062 * 5), rel=1e-4)


def test_the_footer_names_where_msd_is_behind() -> None:
    report = _report()
    runs = [*_runs("KD", [0.5, 0.7, 0.6]), *_runs("MSD equal", [0.4, 0.61, 0.5])]
    assert "MSD equal is behind KD on the whole input" in report.text(runs)


def test_the_front_page_shows_the_committed_results() -> None:
    report = _report()
    runs = read(RESULTS / "hanzi" / "runs.jsonl")
    assert report.text(runs) in Path("README.md").read_text()


def test_features_have_no_scale_of_their_own() -> None:
    """A modality that is absent is filled with 0, which is the mean of the training part."""
    _items("mfeat")
    for entry in load("mfeat", 0).train.inputs.values():
        assert torch.allclose(entry.mean(0), torch.zeros(()), atol=1e-4)
        assert torch.allclose(entry.std(0), torch.ones(()), atol=1e-3)


def test_every_item_of_the_keywords_has_one() -> None:
    task = load("emoji-keywords", 0)
    assert task.multilabel
    assert task.classes == task.train.target.shape[1] == 60
    assert all(part.target.any(1).all() for part in (task.train, task.validation, task.test))


def _items(name: str) -> Any:
    try:
        return DATASETS[name]()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))


def _report() -> Any:
    """The report draws and prints with packages of the extra `study`."""
    pytest.importorskip("rich", reason="needs the extra `study`")
    pytest.importorskip("matplotlib", reason="needs the extra `study`")
    from benchmarks import report

    return report


def _runs(method: str, accuracies: list[float]) -> list[dict[str, Any]]:
    job = {"dataset": "hanzi", "method": method, "epochs": 1}
    return [
        {
            "job": {**job, "seed": seed},
            "views": {v: {"accuracy": a, "nll": 1.0} for v in ("full", "image", "text")},
            "parameters": 10,
        }
        for seed, a in enumerate(accuracies)
    ]
