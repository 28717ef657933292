"""Which samples have which modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msdlosses._checks import check_mask, check_same_names, check_type


def stack_present(present: Any, modalities: Sequence[str], size: int | None = None) -> Tensor:
    """Return a boolean mask (N,) per modality as one mask (N, M)."""
    check_type("present", present, Mapping, "a mapping of modalities to masks")
    check_same_names("a mask in `present`", present.keys(), modalities)
    first = next(iter(present.values()))
    if isinstance(first, Tensor):
        first = first.new_empty(*(first.shape[:1] if size is None else (size,)), 1)
    for modality, mask in present.items():
        check_mask(f"present[{modality!r}]", mask, first)
    return torch.stack([present[modality] for modality in modalities], 1)
