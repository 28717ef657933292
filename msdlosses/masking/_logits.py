"""The logits that a model returns for stacked views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from msdlosses._checks import describe, expected
from msdlosses._linear import LOGITS, LinearLogits, Logits

Output = Callable[[Any], Any]


def logits_of(returned: Any, output: Output | None) -> Logits:
    """Return the logits in what a model returns: a tensor, an attribute, or a key."""
    logits = _find_logits(returned) if output is None else output(returned)
    if not isinstance(logits, LOGITS):
        what = "the model to return a tensor, or an object or a mapping with `logits`"
        got = describe(returned if output is None else logits)
        raise TypeError(expected(what, got, "Pass a function as `output` to find them."))
    return logits


def split_views(logits: Logits, views: int, size: int) -> Sequence[Logits]:
    """Return the logits of each of the stacked views."""
    if logits.ndim == 0 or len(logits) != views * size:
        raise ValueError(expected(f"{views} x {size} rows from the model", tuple(logits.shape)))
    if isinstance(logits, LinearLogits):
        parts = logits.hidden.reshape(views, size, *logits.hidden.shape[1:]).unbind(0)
        return [logits.replace_hidden(hidden) for hidden in parts]
    return logits.reshape(views, size, *logits.shape[1:]).unbind(0)


def may_compare_samples(logits: Logits, views: int) -> bool:
    """Return whether stacked logits could be similarities between all stacked samples.

    These are (N, N), or wider where processes share their samples. Compiled code does not find out
    if they are, because that would break its graph.
    """
    if isinstance(logits, LinearLogits) or torch.compiler.is_compiling():
        return False  # a head has a number of classes of its own
    if views == 1 or logits.ndim == 1 or not logits.numel():
        return False
    rows, width = logits.shape[:2]
    return rows == width or (logits.ndim == 2 and width % rows == 0)


def check_width(width: int, other: int) -> None:
    """Check that the number of classes does not depend on how many views are stacked."""
    if width != other:
        what = f"logits whose second axis, {width}, does not grow with the stacked views"
        advice = "Set views_per_forward=1 for similarities between the samples of a batch."
        raise ValueError(expected(what, other, advice))


@contextmanager
def without_side_effects(model: Any, device: torch.device) -> Iterator[Any]:
    """Yield a model that neither learns, nor moves statistics or the random state."""
    # The wrapper would communicate, and other processes may not take part.
    model = model.module if isinstance(model, DistributedDataParallel) else model
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    devices = [device] if device.type == "cuda" else []
    try:
        for module in modules:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield model
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _find_logits(returned: Any) -> Any:
    if isinstance(returned, LOGITS):
        return returned
    logits = getattr(returned, "logits", None)
    if logits is None and isinstance(returned, Mapping):
        logits = returned.get("logits")
    return logits
