"""A lock that only one build holds, and that the system releases when its process ends."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

fcntl: Any = import_module("fcntl") if os.name == "posix" else None


class LockedFile:
    """A file that is locked while it is open, and that holds one line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("a+b")
        try:
            _lock(self.file.fileno(), path)
        except BaseException:
            self.file.close()
            raise

    def read(self) -> bytes:
        """Return the content."""
        self.file.seek(0)
        return self.file.read()

    def write(self, content: bytes) -> None:
        """Replace the content in place, because another file would not be locked."""
        self.file.truncate(0)
        self.file.write(content)
        self.file.flush()
        os.fsync(self.file.fileno())

    def remove(self) -> None:
        """Remove the file, locked until it is closed."""
        if fcntl is None:  # pragma: no cover - Windows cannot remove an open file
            self.file.close()
        self.path.unlink()

    def close(self) -> None:
        """Release the lock."""
        self.file.close()


def _lock(file: int, path: Path) -> None:
    if fcntl is None:  # pragma: no cover - Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path) from None
    except OSError:
        message = f"{path} is on a file system without locks. Do not start a second build there."
        warnings.warn(message, stacklevel=2)
    # A build that has just finished removed the file between opening and locking it.
    if not path.exists() or not os.path.samestat(os.fstat(file), path.stat()):
        raise _in_use(path)


def _in_use(path: Path) -> FileExistsError:
    return FileExistsError(
        f"Another process is building a cache in {path.parent}. Wait for it, or use another path."
    )
