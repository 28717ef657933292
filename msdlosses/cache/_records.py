"""What is kept of a batch's logits: all of them in fp16, or the largest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdlosses._checks import describe
from msdlosses.cache._shards import Array


class Record:
    """What is kept of a batch, on its way from the device."""

    def __init__(
        self, rows: Array, missing: Array, logits: Mapping[str, Tensor], top_k: int | None
    ) -> None:
        self.rows = rows[missing]
        self.missing = missing
        self.shapes = {view: tuple(values.shape[1:]) for view, values in logits.items()}
        self.exact = {view: _compress(view, values, top_k) for view, values in logits.items()}
        self.host = {view: _to_host(fields) for view, fields in self.exact.items()}
        device = next(iter(logits.values())).device
        self.arrival = (
            torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        )

    def arrived(self, dtype: np.dtype[Any]) -> Array:
        """The records, once they have arrived."""
        if self.arrival is not None:
            self.arrival.synchronize()
        records = np.empty(len(self.rows), dtype)
        for view, fields in self.host.items():
            for field, values in fields.items():
                _check_half(view, values, self.exact[view][field])
                records[view][field] = values.numpy()[self.missing]
        return records


def _compress(view: str, logits: Tensor, top_k: int | None) -> dict[str, Tensor]:
    """What is kept of logits (N, ..., C), before it is rounded."""
    if top_k is None:
        return {"logits": logits}
    count = logits.shape[-1] - top_k if logits.ndim > 1 else 0
    if count < 1:
        raise ValueError(
            f"Expected more classes than `top_k` = {top_k} in `{view}`, got logits of shape "
            f"{tuple(logits.shape)}."
        )
    logits = logits.float()
    largest, classes = logits.topk(top_k)
    others = logits.scatter(-1, classes, -torch.inf).logsumexp(-1)
    return {"logits": largest, "classes": classes.int(), "rest": others - math.log(count)}


def expand(kept: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Logits (N, ..., C) in float32; those of the other classes are alike."""
    logits = kept["logits"].float()
    if "classes" not in kept:
        return logits
    others = kept["rest"].float().unsqueeze(-1).expand(-1, *shape)
    return others.scatter(-1, kept["classes"].long(), logits)


def _to_host(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rounded to fp16 where it floats; from a GPU into pinned memory, and not waited for."""
    halves = {f: v.half() if v.is_floating_point() else v for f, v in fields.items()}
    return {f: v.to("cpu", non_blocking=v.is_cuda) for f, v in halves.items()}


def to_device(records: Array, device: torch.device) -> dict[str, Tensor]:
    """The fields of one view's records, transferred in fp16."""
    fields = {f: torch.from_numpy(np.ascontiguousarray(records[f])) for f in records.dtype.names}
    if device.type != "cuda":
        return {f: v.to(device) for f, v in fields.items()}
    return {f: v.pin_memory().to(device, non_blocking=True) for f, v in fields.items()}


def _check_half(view: str, half: Tensor, exact: Tensor) -> None:
    if not half.is_floating_point():
        return
    if bool(half.isnan().any()):
        raise ValueError(f"Expected teacher logits that are numbers, got NaN in `{view}`.")
    infinite = half.isinf()
    if not bool(infinite.any()):
        return
    beyond = exact[infinite.to(exact.device) & (exact != -torch.inf)]
    if len(beyond):
        raise ValueError(
            "Expected teacher logits within 65504, the largest number of fp16, got "
            f"{beyond[0].item():g} in `{view}`."
        )


def check_rows(index: Any, size: int | None = None) -> Array:
    whole = isinstance(index, Tensor) and not (
        index.is_floating_point() or index.is_complex() or index.dtype == torch.bool
    )
    if not whole:
        raise TypeError(f"Expected `index` to be a tensor of integers, got {describe(index)}.")
    if index.ndim != 1 or (size is not None and len(index) != size):
        wanted = "N" if size is None else size
        raise ValueError(f"Expected `index` of shape ({wanted},), got {tuple(index.shape)}.")
    rows: Array = index.detach().cpu().long().numpy()
    return rows
