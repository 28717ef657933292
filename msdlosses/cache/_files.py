"""What the files of a cache start with, so that they are told apart from any other file.

Each file starts with a line of JSON that holds the format and a checksum. A build only overwrites
and removes files that start like this.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Container, Mapping
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

FORMAT = "msdlosses teacher cache 4"
START = b'{"format": "msdlosses teacher cache'
MANIFEST = "manifest.json"
BUILD = "msdlosses-build.json"
RECORDS, HEAD, ROWS, PART = ".records", ".head", ".rows", ".part"


def seal(content: Mapping[str, Any]) -> bytes:
    """Return a line of JSON with the format and a checksum."""
    sealed = {"format": FORMAT, **content}
    return json.dumps({**sealed, "crc32": crc32(json.dumps(sealed).encode())}).encode() + b"\n"


def unseal(line: bytes) -> dict[str, Any] | None:
    """Return the content of a sealed line; None if it is damaged or something else."""
    try:
        content = json.loads(line)
        checksum = content.pop("crc32")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    intact = checksum == crc32(json.dumps(content).encode()) and content.pop("format") == FORMAT
    return content if intact else None


def is_ours(path: Path) -> bool:
    """Return whether a file was written by a cache."""
    try:
        with path.open("rb") as file:
            return file.read(len(START)) == START
    except OSError:
        return False


def write_new(path: Path, *parts: Any) -> None:
    """Write a file that must not exist yet, to disk, or remove it again."""
    with path.open("xb") as file:
        try:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink()
            raise


def write_atomically(path: Path, *content: Any) -> None:
    """Write a file completely or not at all."""
    part = path.with_name(uuid.uuid4().hex + PART)
    write_new(part, *content)
    part.replace(path)


def unused_path(folder: Path, name: str, used: Container[str] = ()) -> Path:
    """Return the first path of a numbered name that does not exist, nor was used before."""
    paths = (folder / name.format(number) for number in count())
    return next(path for path in paths if path.name not in used and not path.exists())
