"""Counters of operators, saved bytes, and peak memory are exact."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.counters import count_operators, largest_tensor, peak_bytes, saved_bytes


def test_peak_is_what_is_held_at_once() -> None:
    def call() -> Tensor:
        kept = torch.zeros(1000)
        freed = torch.zeros(5000)
        del freed
        return kept + torch.zeros(2000)[:1000]

    assert peak_bytes(call) == 4 * (1000 + 5000)


def test_operators_are_counted_without_views() -> None:
    a, b = torch.rand(2, 4, 5)
    assert count_operators(lambda: (a.T @ b).unsqueeze(0).exp()) == 2


def test_largest_tensor_is_a_new_one() -> None:
    x = torch.rand(100)
    assert largest_tensor(lambda: torch.cat([x[:20].exp(), x[:30]]).sum()) == 50


def test_saved_bytes_count_new_tensors_once() -> None:
    x = torch.rand(100, requires_grad=True)

    def call() -> Tensor:
        y = x.exp()  # saved by `exp`, and again by the product
        return (y * y.view(100)).sum()

    assert saved_bytes(call) == 400
