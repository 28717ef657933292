"""What the two builder scripts share: text as bytes, the command line, writing, comparing."""

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
    """Lines as one array of UTF-8 bytes, so that a pack needs no pickle and little room."""
    return np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)


def decode(text: Array) -> list[str]:
    """The lines of `encode`."""
    return text.tobytes().decode().split("\n")


def parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """The options that both scripts have."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = found.add_mutually_exclusive_group()
    task.add_argument(
        "--out", type=Path, default=Path(output), help=f"file to write (default: {output})"
    )
    task.add_argument(
        "--check", type=Path, metavar="PACK", help="write nothing, compare with this pack"
    )
    return found


def finish(built: Pack, options: argparse.Namespace) -> int:
    """Write the pack or compare it; the exit status is 1 where the comparison fails."""
    if options.check is not None:
        with np.load(options.check) as shipped:
            return compare(built, dict(shipped))
    # Any: to a type checker the fields' names might be `allow_pickle`, which is a bool.
    fields: Any = dict(built)
    np.savez_compressed(options.out, **fields)
    print(f"wrote {options.out}")
    return 0


def compare(built: Pack, shipped: Pack) -> int:
    """Print each field's differences; 0 where every field is equal bit for bit."""
    if list(built) != list(shipped):
        print(f"fields: built {list(built)}, shipped {list(shipped)}")
    shared = [name for name in shipped if name in built]
    results = {name: difference(built[name], shipped[name]) for name in shared}
    for name, result in results.items():
        print(f"{name}: {result or f'equal {shipped[name].dtype}{list(shipped[name].shape)}'}")
    return int(any(results.values()) or set(built) != set(shipped))


def difference(built: Array, shipped: Array) -> str:
    """What differs between two fields, in words; empty where nothing does."""
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
    """Whether a field is encoded lines: only they hold a newline and nothing below it."""
    return field.ndim == 1 and field.dtype == np.uint8 and field.size > 0 and field.min() == 10


def text_difference(built: Sequence[str], shipped: Sequence[str], show: int = 5) -> str:
    """How many lines differ and the first few of them."""
    pairs = [(ours, theirs) for ours, theirs in zip(built, shipped, strict=False) if ours != theirs]
    head = f"built {len(built)} lines, shipped {len(shipped)}, {len(pairs)} differ"
    return "\n  ".join([head, *(f"{ours!r} != {theirs!r}" for ours, theirs in pairs[:show])])
