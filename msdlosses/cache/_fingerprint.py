"""Fingerprints: any value that JSON can hold."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from msdlosses._checks import describe, expected


def canonical(fingerprint: Any) -> Any:
    """Return a fingerprint in JSON types, so that it equals what is read from disk."""
    return json.loads(json.dumps(fingerprint, default=_as_json, sort_keys=True))


def _as_json(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    what = "`fingerprint` of strings, numbers, paths, lists, and mappings"
    raise TypeError(expected(what, describe(value)))


def same_json(one: Any, other: Any) -> bool:
    """Return whether two values of JSON types are equal, unlike 1, 1.0, and True."""
    return json.dumps(one) == json.dumps(other)
