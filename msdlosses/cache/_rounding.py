"""Rounding logits to two bytes: large ones relative to the largest of their row."""

from __future__ import annotations

import torch
from torch import Tensor

from msdlosses._checks import check_that

Fields = dict[str, Tensor]

LARGE = 64.0
"""Above this, numbers in float16 are 1/16 apart or more."""
LOWEST = 0.9
"""Logits below this part of the lowest number of their dtype are masks."""


def exclude_masked(logits: Tensor) -> Tensor:
    """Return logits in float32 or wider, with -inf for classes that a model has masked.

    Models mask by the lowest number of a dtype, and may have added a finite logit to it.
    """
    lowest = LOWEST * max(torch.finfo(logits.dtype).min, torch.finfo(torch.float32).min)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.masked_fill(logits <= lowest, -torch.inf)


def shift_of(logits: Tensor) -> Tensor:
    """Return what to subtract from each row (..., C): the maximum of large logits, or 0.

    Large logits on both sides of 0 stay as they are, because their differences are larger still.
    """
    rows = logits if logits.ndim > 1 else logits.unsqueeze(-1)
    high = rows.amax(-1)
    low = rows.masked_fill(rows == -torch.inf, torch.inf).amin(-1)
    largest = torch.maximum(high.abs(), low.abs())
    shift = (largest > LARGE) & (high - low <= 1.5 * largest) & high.isfinite()
    return torch.where(shift, high, 0.0).float()


def expand_shift(shift: Tensor, values: Tensor) -> Tensor:
    """Return the shift of each row in a shape that broadcasts over values."""
    return shift if values.ndim == shift.ndim else shift.unsqueeze(-1)


def check_rounded(what: str, rounded: Tensor, exact: Tensor) -> None:
    """Check that no value is NaN, infinite, or has become infinite by rounding."""
    if bool(rounded.isfinite().all()):
        return
    check_that(f"no NaN in the teacher's {what}", not rounded.isnan().any(), "some")
    overflow = exact[rounded.isinf().to(exact.device) & (exact != -torch.inf)][:1].tolist()
    got = "".join(f"{value:g}" for value in overflow)
    name, limit = str(rounded.dtype).removeprefix("torch."), torch.finfo(rounded.dtype).max
    what = f"teacher {what} of at most {limit:.8g}, for {name}"
    advice = "Mask classes by -inf, or pass a `dtype` with a wider range."
    check_that(what, not overflow, got, advice)
