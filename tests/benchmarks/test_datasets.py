"""Data sets: splits keep groups together, and indices identify items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.datasets import DATASETS, PARTS, load, split_groups


@pytest.mark.parametrize("name", DATASETS)
def test_parts_have_their_shares_and_share_no_group(name: str) -> None:
    groups = np.array(load_items(name).groups)
    parts = split_groups(groups, seed=3)
    members = {part: set(groups[rows.numpy()]) for part, rows in parts.items()}
    for part, share in PARTS.items():
        assert len(parts[part]) / len(groups) == pytest.approx(share, abs=0.02)
        assert not any(members[part] & members[other] for other in PARTS if other != part)


def test_split_depends_only_on_the_seed() -> None:
    first, same, other = load("hanzi", 0), load("hanzi", 0), load("hanzi", 1)
    assert torch.equal(first.test.inputs["pixels"], same.test.inputs["pixels"])
    assert not torch.equal(first.test.inputs["pixels"][:100], other.test.inputs["pixels"][:100])


def test_selected_items_keep_their_index() -> None:
    split = load("hanzi", 0).train
    selected = split.items(torch.tensor([5, 3]))
    assert selected.index.tolist() == [5, 3]
    assert torch.equal(selected.inputs["tokens"], split.inputs["tokens"][[5, 3]])


def test_shuffled_batches_hold_each_item_once() -> None:
    split = load("hanzi", 0).validation
    index = torch.cat([batch["index"] for batch, _ in split.batches(100, shuffle=True)])
    assert index.sort().values.tolist() == list(range(len(split)))


def test_features_are_standardized() -> None:
    """So the value of a masked modality, 0, is the mean of the training part."""
    load_items("mfeat")
    for entry in load("mfeat", 0).train.inputs.values():
        assert torch.allclose(entry.mean(0), torch.zeros(()), atol=1e-4)
        assert torch.allclose(entry.std(0), torch.ones(()), atol=1e-3)


def test_items_of_emoji_keywords_have_at_least_one_label() -> None:
    task = load("emoji-keywords", 0)
    assert task.multilabel
    assert task.classes == task.train.target.shape[1] == 60
    assert all(part.target.any(1).all() for part in (task.train, task.validation, task.test))


def load_items(name: str) -> Any:
    try:
        return DATASETS[name]()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
