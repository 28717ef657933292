"""Runs the examples in docstrings and in the README, with the public names at hand."""

from __future__ import annotations

from doctest import ELLIPSIS
from typing import Any

import torch
from sybil import Sybil
from sybil.parsers.rest import DocTestParser

import msdlosses


def setup(namespace: dict[str, Any]) -> None:
    torch.manual_seed(0)
    namespace.update({name: getattr(msdlosses, name) for name in msdlosses.__all__})
    namespace.update(vars(msdlosses.functional), torch=torch, nn=torch.nn, SGD=torch.optim.SGD)


pytest_collect_file = Sybil(
    parsers=[DocTestParser(optionflags=ELLIPSIS)], patterns=["*.py"], setup=setup
).pytest()
