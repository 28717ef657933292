"""How the micro-benchmarks measure: times as ratios, kernels and bytes exactly.

Times of a machine that others use say little; the ratio of two variants that take turns in one
process does. The same code runs on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import platform
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.jobs import cores, save
from benchmarks.runs import RESULTS
from benchmarks.tables import plain

Variant = Callable[[], object]
Times = dict[str, list[float]]

SHORTEST = 1e-3  # seconds that a measurement lasts at least, by calling more than once
FLUSH = 256 * 2**20  # bytes: more than a GPU's cache holds
WIDTH = 100  # of the tables in a page
PACKAGES = ("torch", "numpy", "higher", "triton", "torchdistill", "liger-kernel")


def interleaved(
    variants: Mapping[str, Variant], *, rounds: int = 30, warmup: int = 3, device: str = "cpu"
) -> Times:
    """Seconds per call, one value a round: in each round every variant once, in random order."""
    clock = _cuda_clock(device) if device.startswith("cuda") else _cpu_clock
    order, shuffle = list(variants), random.Random(0).shuffle
    times: Times = {name: [] for name in variants}
    with _quiet():
        calls = {name: _calls(variant, clock, warmup) for name, variant in variants.items()}
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                times[name].append(clock(variants[name], calls[name]))
    return times


def summary(times: Times, baseline: str) -> dict[str, dict[str, list[float]]]:
    """Of each variant, seconds and ratio to the baseline: lower quartile, median, upper.

    A ratio is that of one round: what slows the machine down slows both down.
    """
    base = np.array(times[baseline])
    return {
        name: {"seconds": _quartiles(np.array(t)), "ratio": _quartiles(np.array(t) / base)}
        for name, t in times.items()
    }


def peak_memory(function: Variant, *, device: str = "cpu") -> int:
    """The bytes of tensors that a call holds at once, over what was there before it.

    The call must not free what it finds, such as the gradients of the call before.
    """
    function()  # what is made once, such as a library's workspace, is not counted
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = np.cumsum([0, *(size for _, size in sorted(changes, key=lambda change: change[0]))])
    return int(held.max())


def counts(function: Variant) -> dict[str, int]:
    """The kernels that a call runs, and the bytes of what it makes and saves for backward."""
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) in ops.made:
            saved[_storage(tensor)] = tensor
        return tensor

    with _Ops() as ops, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    size = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    return {"kernels": ops.kernels, "saved_bytes": size}


class _Ops(TorchDispatchMode):
    """Counts the operators that compute; a view is none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.made: dict[int, Tensor] = {}  # kept, so that no storage's address is used again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        returned = func(*args, **(kwargs or {}))
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        new = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
        self.made |= {_storage(leaf): leaf for leaf in new if _storage(leaf) not in given}
        self.kernels += not _is_view(func)
        return returned


def _is_view(func: Any) -> bool:
    aliases = [returned.alias_info for returned in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a result was measured on and with; nothing that names the machine itself."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


def compare(
    title: str,
    variants: Mapping[str, Variant],
    *,
    baseline: str,
    second: str | None = None,
    device: str = "cpu",
    rounds: int = 30,
    uncounted: Sequence[str] = (),
) -> dict[str, Any]:
    """A group of results: times, peak and, but for some, the exact counts.

    Ratios are to the baseline; where a second one is named, to that one too.
    """
    times = interleaved(variants, rounds=rounds, device=device)
    rows: dict[str, Any] = dict(summary(times, baseline))
    if second is not None:
        for name, row in summary(times, second).items():
            rows[name]["second_ratio"] = row["ratio"]
    for name, variant in variants.items():
        rows[name]["peak_bytes"] = peak_memory(variant, device=device)
        if name not in uncounted:
            rows[name] |= counts(variant)
    return {"title": title, "baseline": baseline, "second": second, "rows": rows}


def publish(
    name: str,
    groups: Sequence[Mapping[str, Any]],
    args: argparse.Namespace,
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Print the tables, and write the JSON: NAME.json, or NAME-cuda.json on a GPU."""
    console = Console(width=WIDTH, highlight=False)
    content = {"machine": machine(args.device), "groups": list(groups), "notes": notes or {}}
    console.print(text(content))
    suffix = "" if args.device == "cpu" else "-cuda"
    path = args.out / f"{name}{suffix}.json"
    save(path, content)
    console.print(f"results: {path}")


def text(content: Mapping[str, Any]) -> str:
    """What a run printed, from its JSON."""
    notes = (f"{name}: {value}" for name, value in content["notes"].items())
    return plain([*map(_table, content["groups"]), *notes], WIDTH)


def _table(group: Mapping[str, Any]) -> Table:
    """One group: the ratio to its baseline with quartiles, and what was counted."""
    columns = {
        "second_ratio": ("2nd ratio", lambda ratio: _digits(ratio[1])),
        "kernels": ("kernels", str),
        "saved_bytes": ("saved MB", lambda size: _digits(size / 1e6)),
        "peak_bytes": ("peak MB", lambda size: _digits(size / 1e6)),
    }
    rows = group["rows"]
    shown = [key for key in columns if any(key in row for row in rows.values())]
    drawn = Table(
        box=SIMPLE_HEAD, title=group["title"], caption=_caption(group), collapse_padding=True
    )
    drawn.add_column(no_wrap=True)
    for title in ("ratio", "quartiles", "ms", *(columns[key][0] for key in shown)):
        drawn.add_column(title, justify="right", no_wrap=True)
    for name, row in rows.items():
        low, middle, high = map(_digits, row["ratio"])
        cells = [columns[key][1](row[key]) if key in row else "" for key in shown]
        drawn.add_row(name, middle, f"{low} - {high}", _digits(1e3 * row["seconds"][1]), *cells)
    return drawn


def _caption(group: Mapping[str, Any]) -> str:
    second = group["second"] and f"; 2nd ratio: to {group['second']}"
    skipped = [f"; {name}: {reason}" for name, reason in group.get("skipped", {}).items()]
    return f"ratio: to {group['baseline']}{second or ''}{''.join(skipped)}"


def _digits(value: float) -> str:
    """Three digits."""
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def arguments(description: str | None) -> argparse.Namespace:
    """The options that every micro-benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu or cuda (default: cuda where there is one)",
    )
    parser.add_argument("--rounds", type=int, default=30, help="measurements of each (default 30)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    return parser.parse_args()


@contextmanager
def _quiet() -> Iterator[None]:
    """One thread, and no garbage collector in between."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_num_threads(threads)


def _calls(variant: Variant, clock: Callable[[Variant, int], float], warmup: int) -> int:
    """Warm up; how many calls of a variant last long enough to be measured."""
    fastest = min(clock(variant, 1) for _ in range(max(warmup, 1)))
    return max(1, round(SHORTEST / fastest))


def _cpu_clock(variant: Variant, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        variant()
    return (time.perf_counter() - start) / calls


def _cuda_clock(device: str) -> Callable[[Variant, int], float]:
    flush = torch.empty(FLUSH, dtype=torch.int8, device=device)

    def once(variant: Variant) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        torch.cuda.synchronize(device)  # an idle device: what the launches cost is counted
        start.record()
        variant()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3

    return lambda variant, calls: float(np.median([once(variant) for _ in range(calls)]))


def _quartiles(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in np.quantile(values, (0.25, 0.5, 0.75))]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with a plus where files differ from it; None outside a repository."""
    git = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True)
    try:
        head, changes = git(["git", "rev-parse", "HEAD"]), git(["git", "status", "--porcelain"])
    except OSError:
        return None
    return head.stdout.strip() + "+" * bool(changes.stdout) or None
