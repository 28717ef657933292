"""The processes that build a cache together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from msdlosses._checks import expected

T = TypeVar("T")

MEETING = timedelta(minutes=1)
"""How long the processes wait for each other at the start, where none has work to do."""
WORK = timedelta(days=365)
"""How long they wait for each other's part of the work."""


@dataclass(frozen=True)
class Processes:
    """The processes that build a cache together."""

    rank: int = 0
    size: int = 1
    group: Any = None

    def wait(self, timeout: timedelta = WORK) -> None:
        """Wait for all processes."""
        if self.size == 1:
            return
        if distributed.get_backend(self.group) != "gloo":  # pragma: no cover - needs GPUs
            distributed.barrier(self.group)
            return
        try:
            distributed.monitored_barrier(self.group, timeout)
        except RuntimeError as error:
            what, got = "all processes of the group to build", "one that does not, or has failed"
            advice = "If only some of them build, pass their `group`."
            raise RuntimeError(expected(what, got, advice)) from error

    def gather(self, value: T) -> list[T]:
        """Wait for all processes, and return the values of all."""
        if self.size == 1:
            return [value]
        self.wait()
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, self.group)
        return values

    def first(self, function: Callable[[], T]) -> T:
        """Run a function in the first process; return its result, or raise its error, in all."""
        if self.size == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = function()
            except Exception as raised:
                outcome[1] = raised
        self.wait()
        source = distributed.get_global_rank(self.group, 0)
        distributed.broadcast_object_list(outcome, source, self.group)
        result, error = outcome
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]


@contextmanager
def all_processes(group: Any) -> Iterator[Processes]:
    """Join the processes of a group, by default all of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        yield Processes()
        return
    own = group or _new_group()
    processes = Processes(distributed.get_rank(own), distributed.get_world_size(own), own)
    processes.wait(MEETING)
    try:
        yield processes
    finally:
        if own is not group:
            distributed.destroy_process_group(own)


def _new_group() -> Any:
    # Gloo, because the first process to finish may wait for longer than NCCL allows.
    try:
        return distributed.new_group(timeout=MEETING, backend="gloo")
    except RuntimeError as error:
        what, got = "all processes to call `build`", f"some that did not within {MEETING}"
        advice = "If only some of them build, pass their `group`."
        raise RuntimeError(expected(what, got, advice)) from error
