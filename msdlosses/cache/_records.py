"""The records of a batch: logits in fp16, all of them or the largest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdlosses._checks import check_that, check_type, describe, expected
from msdlosses.cache._shards import Array


class Record:
    """The logits of a batch, on their way from the device to disk."""

    def __init__(
        self, rows: Array, missing: Array, logits: Mapping[str, Tensor], top_k: int | None
    ) -> None:
        self.rows = rows[missing]
        self.missing = missing
        self.shapes = {view: tuple(values.shape[1:]) for view, values in logits.items()}
        self.exact = {view: _compress(view, values, top_k) for view, values in logits.items()}
        self.host = {view: _to_host(fields) for view, fields in self.exact.items()}
        device = next(iter(logits.values())).device
        self.copied = (
            torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        )

    def wait(self, dtype: np.dtype[Any]) -> Array:
        """Return the records once they are on the host."""
        if self.copied is not None:  # pragma: no cover - needs a GPU
            self.copied.synchronize()
        records = np.empty(len(self.rows), dtype)
        for view, fields in self.host.items():
            for field, values in fields.items():
                if values.is_floating_point():
                    _check_half(view, values, self.exact[view][field])
                records[view][field] = values.numpy()[self.missing]
        return records


def _compress(view: str, logits: Tensor, top_k: int | None) -> dict[str, Tensor]:
    """Return the fields to keep of logits (N, ..., C), before rounding."""
    if top_k is None:
        return {"logits": logits}
    count = logits.shape[-1] - top_k if logits.ndim > 1 else 0
    check_that(f"more than `top_k` = {top_k} classes in `{view}`", count > 0, tuple(logits.shape))
    logits = logits.float()
    largest, classes = logits.topk(top_k)
    others = logits.scatter(-1, classes, -torch.inf).logsumexp(-1)
    return {"logits": largest, "classes": classes.int(), "rest": others - math.log(count)}


def expand(fields: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return logits (N, ..., C) in float32, with one value for all classes that were not kept."""
    logits = fields["logits"].float()
    if "classes" not in fields:
        return logits
    others = fields["rest"].float().unsqueeze(-1).expand(-1, *shape)
    return others.scatter(-1, fields["classes"].long(), logits)


def _to_host(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round to fp16 and copy to the host: from a GPU into pinned memory, without waiting."""
    halves = {f: v.half() if v.is_floating_point() else v for f, v in fields.items()}
    return {f: v.to("cpu", non_blocking=v.is_cuda) for f, v in halves.items()}


def to_device(records: Array, device: torch.device) -> dict[str, Tensor]:
    """Copy the fields of one view's records to a device, still in fp16."""
    fields = {f: torch.from_numpy(np.ascontiguousarray(records[f])) for f in records.dtype.names}
    if device.type != "cuda":
        return {f: v.to(device) for f, v in fields.items()}
    pinned = {f: v.pin_memory() for f, v in fields.items()}  # pragma: no cover - needs a GPU
    return {f: v.to(device, non_blocking=True) for f, v in pinned.items()}  # pragma: no cover


def _check_half(view: str, half: Tensor, exact: Tensor) -> None:
    """Check that no value is NaN, or has become infinite by rounding."""
    check_that(f"no NaN in the teacher's logits of `{view}`", not half.isnan().any(), "some")
    infinite = half.isinf()
    if bool(infinite.any()):
        overflow = exact[infinite.to(exact.device) & (exact != -torch.inf)][:1].tolist()
        got = "".join(f"{value:g}" for value in overflow)
        check_that(f"teacher logits in `{view}` of at most 65504, for fp16", not overflow, got)


def as_rows(index: Any, size: int | None = None) -> Array:
    """Return a tensor of integers (N,) as an array."""
    check_type("index", index, Tensor, "a tensor of integers")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(expected("`index` to be a tensor of integers", describe(index)))
    if index.ndim != 1 or (size is not None and len(index) != size):
        shape = f"({'N' if size is None else size},)"
        raise ValueError(expected(f"`index` of shape {shape}", tuple(index.shape)))
    rows: Array = index.detach().cpu().long().numpy()
    return rows
