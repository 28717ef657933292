"""Settings of the whole process, which several threads may need at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from threading import RLock
from typing import Any

from msdlosses.meta._interrupts import restoring


class SharedSetting:
    """A setting that the first of several users changes, and the last one restores.

    Otherwise, the second thread would save the changed setting, and restore it at its end.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[Any]]) -> None:
        self._change = change
        self._lock = RLock()
        self._users: set[object] = set()
        self._changed = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        user = object()
        with restoring(partial(self._leave, user)):
            self._enter(user)
            yield

    def _enter(self, user: object) -> None:
        with self._lock:
            if not self._users:
                self._changed.enter_context(self._change())
            self._users.add(user)

    def _leave(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if not self._users:
                self._changed.close()
