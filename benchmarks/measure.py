"""Measure and report the micro-benchmarks: ratios of times, and exact counts of kernels and bytes.

Absolute times on a shared machine mean little. The ratio of two variants that take turns in one
process is reliable. On a CPU the time is that of the processor, which other programs on the machine
do not add to. The same code runs on a GPU.
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

from benchmarks.counters import count_operators, peak_bytes, saved_bytes
from benchmarks.jobs import cores, save
from benchmarks.runs import RESULTS
from benchmarks.tables import plain

Variant = Callable[[], object]
Times = dict[str, list[float]]

SHORTEST = 1e-3  # seconds per measurement, at least: a fast call is repeated
FLUSH = 256 * 2**20  # bytes to overwrite a GPU's cache
WIDTH = 100  # of the tables
PACKAGES = ("torch", "numpy", "higher", "triton", "torchdistill", "liger-kernel")


def interleaved(
    variants: Mapping[str, Variant], *, rounds: int = 30, warmup: int = 3, device: str = "cpu"
) -> Times:
    """Return the seconds per call: one value per round, in which variants run in random order."""
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
    """Return the quartiles of each variant's seconds, and of its ratio to the baseline.

    A ratio compares two times of one round, because a slow phase of the machine affects both.
    """
    base = np.array(times[baseline])
    return {
        name: {"seconds": _quartiles(np.array(t)), "ratio": _quartiles(np.array(t) / base)}
        for name, t in times.items()
    }


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describe the machine and the software of a measurement, without the machine's name."""
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
    """Measure variants, and return their times, peak memory, and counts.

    Ratios refer to the baseline, and to the second baseline if there is one. The operators of
    ``uncounted`` variants are not counted.
    """
    times = interleaved(variants, rounds=rounds, device=device)
    rows: dict[str, Any] = dict(summary(times, baseline))
    if second is not None:
        for name, row in summary(times, second).items():
            rows[name]["second_ratio"] = row["ratio"]
    for name, variant in variants.items():
        rows[name]["peak_bytes"] = peak_bytes(variant, device=device)
        if name not in uncounted:
            rows[name]["kernels"] = count_operators(variant)
            rows[name]["saved_bytes"] = saved_bytes(variant)
    return {"title": title, "baseline": baseline, "second": second, "rows": rows}


def publish(
    name: str,
    groups: Sequence[Mapping[str, Any]],
    args: argparse.Namespace,
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Print the tables and write the JSON: NAME.json, or NAME-cuda.json on a GPU."""
    console = Console(width=WIDTH, highlight=False)
    content = {"machine": machine(args.device), "groups": list(groups), "notes": notes or {}}
    console.print(text(content))
    suffix = "" if args.device == "cpu" else "-cuda"
    path = args.out / f"{name}{suffix}.json"
    save(path, content)
    console.print(f"results: {path}")


def text(content: Mapping[str, Any]) -> str:
    """Return the tables of a benchmark, from its JSON."""
    notes = (f"{name}: {value}" for name, value in content["notes"].items())
    return plain([*map(_table, content["groups"]), *notes], WIDTH)


def _table(group: Mapping[str, Any]) -> Table:
    """Return the table of a group: ratios to the baseline with quartiles, and counts."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "second_ratio": ("2nd ratio", lambda ratio: _digits(ratio[1])),
        "kernels": ("kernels", str),
        "saved_bytes": ("saved MB", lambda size: _digits(size / 1e6)),
        "peak_bytes": ("peak MB", lambda size: _digits(size / 1e6)),
    }
    rows = group["rows"]
    shown = [key for key in columns if any(key in row for row in rows.values())]
    table = Table(
        box=SIMPLE_HEAD, title=group["title"], caption=_caption(group), collapse_padding=True
    )
    table.add_column(no_wrap=True)
    for title in ("ratio", "quartiles", "ms", *(columns[key][0] for key in shown)):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in rows.items():
        low, median, high = map(_digits, row["ratio"])
        cells = [columns[key][1](row[key]) if key in row else "" for key in shown]
        table.add_row(name, median, f"{low} - {high}", _digits(1e3 * row["seconds"][1]), *cells)
    return table


def _caption(group: Mapping[str, Any]) -> str:
    second = group["second"] and f"; 2nd ratio: to {group['second']}"
    skipped = [f"; {name}: {reason}" for name, reason in group.get("skipped", {}).items()]
    return f"ratio: to {group['baseline']}{second or ''}{''.join(skipped)}"


def _digits(value: float) -> str:
    """Format a number with three significant digits."""
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the options that all micro-benchmarks have in common."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu or cuda (default: cuda if available)",
    )
    parser.add_argument(
        "--rounds", type=int, default=30, help="measurements per variant (default 30)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    return parser.parse_args()


@contextmanager
def _quiet() -> Iterator[None]:
    """Use one thread, and disable the garbage collector."""
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
    """Warm up, and return how many calls of a variant last long enough to be measured."""
    fastest = min(clock(variant, 1) for _ in range(max(warmup, 1)))
    return max(1, round(SHORTEST / fastest))


def _cpu_clock(variant: Variant, calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        variant()
    return (time.process_time() - start) / calls


def _cuda_clock(device: str) -> Callable[[Variant, int], float]:
    flush = torch.empty(FLUSH, dtype=torch.int8, device=device)

    def once(variant: Variant) -> float:
        new_event: Callable[..., torch.cuda.Event] = torch.cuda.Event  # torch does not type it
        start, end = (new_event(enable_timing=True) for _ in range(2))
        flush.zero_()
        torch.cuda.synchronize(device)  # the device is idle, so the cost of launches counts
        start.record()
        variant()
        end.record()
        torch.cuda.synchronize(device)
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1e3

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
    """Return the commit, with a plus if files differ from it, or None outside a repository."""
    git = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True)
    try:
        head, changes = git(["git", "rev-parse", "HEAD"]), git(["git", "status", "--porcelain"])
    except OSError:
        return None
    return head.stdout.strip() + "+" * bool(changes.stdout) or None
