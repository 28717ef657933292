"""Restoring what a look-ahead changed, even if the user interrupts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def restoring(restore: Callable[[], object]) -> Iterator[None]:
    """Call a function at the end, twice, so that an interrupt cannot prevent it."""
    try:
        try:
            yield
        finally:
            restore()
    finally:
        restore()
