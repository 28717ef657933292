"""Shared by the two build scripts: text as bytes, command line, writing, and comparing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pack = Mapping[str, Array]


def encode(lines: Sequence[str]) -> Array:
    """Return lines as one array of UTF-8 bytes, which needs no pickle and little space."""
    return np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)


def decode(text: Array) -> list[str]:
    """Invert `encode`."""
    return text.tobytes().decode().split("\n")


def parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """Return a parser with the options of both scripts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group()
    task.add_argument(
        "--out", type=Path, default=Path(output), help=f"file to write (default: {output})"
    )
    task.add_argument(
        "--check", type=Path, metavar="PACK", help="compare with this pack, and write nothing"
    )
    return parser


def finish(built: Pack, options: argparse.Namespace) -> int:
    """Write the pack, or compare it. Return the exit status: 1 if there are differences."""
    if options.check is not None:
        with np.load(options.check) as shipped:
            return compare(built, dict(shipped))
    # Any, because a type checker assumes that a field could be named `allow_pickle`, a bool.
    fields: Any = dict(built)
    np.savez_compressed(options.out, **fields)
    print(f"wrote {options.out}")
    return 0


def compare(built: Pack, shipped: Pack) -> int:
    """Print the differences by field. Return 0 if all fields are equal bit for bit, else 1."""
    if list(built) != list(shipped):
        print(f"fields: built {list(built)}, shipped {list(shipped)}")
    shared = [name for name in shipped if name in built]
    results = {name: difference(built[name], shipped[name]) for name in shared}
    for name, result in results.items():
        print(f"{name}: {result or f'equal {shipped[name].dtype}{list(shipped[name].shape)}'}")
    return int(any(results.values()) or set(built) != set(shipped))


def difference(built: Array, shipped: Array) -> str:
    """Describe the differences between two fields; empty if there are none."""
    if built.dtype == shipped.dtype and np.array_equal(built, shipped):
        return ""
    if is_text(shipped):
        return text_difference(decode(built), decode(shipped))
    if built.dtype != shipped.dtype or built.shape != shipped.shape:
        return (
            f"built {built.dtype}{list(built.shape)}, shipped {shipped.dtype}{list(shipped.shape)}"
        )
    unequal = built != shipped
    items = int(unequal.reshape(len(unequal), -1).any(axis=1).sum())
    largest = int(np.abs(built.astype(int) - shipped.astype(int)).max())
    return (
        f"{items} of {len(unequal)} items differ, "
        f"{unequal.mean():.4%} of the values, by at most {largest}"
    )


def is_text(field: Array) -> bool:
    """Whether a field is encoded lines, whose smallest byte is a newline."""
    return field.ndim == 1 and field.dtype == np.uint8 and field.size > 0 and field.min() == 10


def text_difference(built: Sequence[str], shipped: Sequence[str], show: int = 5) -> str:
    """Return how many lines differ, and the first few of them."""
    pairs = [(new, old) for new, old in zip(built, shipped, strict=False) if new != old]
    head = f"built {len(built)} lines, shipped {len(shipped)}, {len(pairs)} differ"
    return "\n  ".join([head, *(f"{new!r} != {old!r}" for new, old in pairs[:show])])
