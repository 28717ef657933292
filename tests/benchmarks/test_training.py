"""Changes to the training data: missing labels and corrupted teachers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from benchmarks.datasets import load
from benchmarks.training import corrupt, partly_labeled


def test_labels_are_removed_and_items_are_not() -> None:
    split = load("emoji", 0).train
    partial = partly_labeled(split, 0.1)
    labeled = partial.target >= 0
    assert labeled.sum() == len(split) // 10
    assert torch.equal(partial.index, split.index)
    assert torch.equal(partial.target[labeled], split.target[labeled])


def test_corrupted_logits_are_permuted_between_classes() -> None:
    teacher = {view: torch.randn(50, 4) for view in ("full", "image")}

    class Cache:
        def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
            return {view: logits[index] for view, logits in teacher.items()}

    corrupted, wrong = corrupt(Cache(), 50, 4)
    for view, logits in teacher.items():
        changed = (corrupted[view] != logits).any(1)
        assert torch.equal(changed, wrong)
        assert_close(corrupted[view].sort(1).values, logits.sort(1).values)
