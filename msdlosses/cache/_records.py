"""The records of a batch: all of its logits or the largest, rounded."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from msdlosses._checks import check_floating, check_that
from msdlosses.cache._layout import Array, Layout
from msdlosses.cache._rounding import Fields, check_rounded, exclude_masked, expand_shift, shift_of
from msdlosses.cache._selection import Selection


class Record:
    """The logits of a batch, on their way from the device to disk."""

    def __init__(self, selection: Selection, logits: Mapping[str, Tensor], layout: Layout) -> None:
        self.selection = selection
        self.layout = layout
        self.exact = {view: compress(view, values, layout) for view, values in logits.items()}
        self.host = {view: self._to_host(fields) for view, fields in self.exact.items()}
        device = next(iter(logits.values())).device
        self.copied = (
            torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        )

    def _to_host(self, fields: Fields) -> Fields:
        """Round, and copy to the host: from a GPU into pinned memory, without waiting."""
        number = getattr(torch, self.layout.dtype)
        rounded = {f: v.to(number) if f in ("values", "rest") else v for f, v in fields.items()}
        return {f: v.to("cpu", non_blocking=v.is_cuda) for f, v in rounded.items()}

    def wait(self) -> Array:
        """Return the records once they are on the host, without checksums."""
        if self.copied is not None:  # pragma: no cover - needs a GPU
            self.copied.synchronize()
        filled = self.selection.filled
        records = np.zeros(len(filled), self.layout.record)
        for name, counter in self.selection.counters.items():
            records[name] = counter
        for view, fields in self.host.items():
            kind = "hidden states" if view in self.layout.heads else "logits"
            for field, values in fields.items():
                if values.is_floating_point():
                    check_rounded(f"{kind} of `{view}`", values, self.exact[view][field])
                records["views"][view][field][filled] = _as_array(values)
        return records


def compress(view: str, logits: Tensor, layout: Layout) -> Fields:
    """Return the fields to keep of logits (N, ..., C) or hidden states, before rounding."""
    check_floating(f"logits of the teacher in `{view}`", logits)
    if view in layout.heads:
        return {"values": logits}
    logits = exclude_masked(logits)
    fields = {"values": logits} if layout.top_k is None else _largest(view, logits, layout.top_k)
    if layout.dtype == "float32":
        return fields
    shift = shift_of(logits)
    moved = {f: v - expand_shift(shift, v) for f, v in fields.items() if f != "classes"}
    return {**fields, **moved, "shift": shift}


def _largest(view: str, logits: Tensor, top_k: int) -> Fields:
    count = logits.shape[-1] - top_k if logits.ndim > 1 else 0
    check_that(f"more than `top_k` = {top_k} classes in `{view}`", count > 0, tuple(logits.shape))
    largest, classes = logits.topk(top_k)
    others = logits.scatter(-1, classes, -torch.inf).logsumexp(-1)
    return {"values": largest, "classes": classes.int(), "rest": others - math.log(count)}


def decode(layout: Layout, view: str, records: Array, device: torch.device) -> Fields:
    """Return the fields of a view's records on a device, in float32."""
    stored = records["views"][view]
    names = [f for f in stored.dtype.names or () if f != "shift" or stored[f].any()]
    fields = _to_device({f: _as_tensor(stored[f]) for f in names}, device)
    shift = fields.pop("shift", None)
    numbers = {f: v.float() for f, v in fields.items() if f != "classes"}
    if shift is not None:
        numbers = {f: v + expand_shift(shift, v) for f, v in numbers.items()}
    return {**fields, **numbers}


def expand(fields: Fields, shape: tuple[int, ...]) -> Tensor:
    """Return logits (N, ..., C), with one value for all classes that were not kept."""
    if "classes" not in fields:
        return fields["values"]
    others = fields["rest"].unsqueeze(-1).expand(-1, *shape)
    return others.scatter(-1, fields["classes"].long(), fields["values"])


def _to_device(fields: Fields, device: torch.device) -> Fields:
    if device.type == "cpu":
        return fields
    cuda = device.type == "cuda"  # pragma: no cover - needs a GPU, as the next lines
    pinned = {f: v.pin_memory() if cuda else v for f, v in fields.items()}  # pragma: no cover
    return {f: v.to(device, non_blocking=cuda) for f, v in pinned.items()}  # pragma: no cover


def _as_array(values: Tensor) -> Array:
    bits = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
    array: Array = bits.numpy()
    return array


def _as_tensor(stored: Array) -> Tensor:
    values = torch.from_numpy(np.ascontiguousarray(stored))
    return values.view(torch.bfloat16) if values.dtype == torch.int16 else values
