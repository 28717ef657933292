"""Putting back what a look-ahead changed, even if the user interrupts it."""

from __future__ import annotations

from collections.abc import Callable


def surely(restore: Callable[[], None]) -> None:
    """Call a function again if an interrupt reaches it halfway."""
    try:
        restore()
    except BaseException:
        restore()
        raise
