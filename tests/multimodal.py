"""Multimodal batches, views, and a model, for tests of masking and of batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msdlosses import Fill, ModalityViews

Batch = dict[str, Any]

ENTRIES = {"image": "pixels", "text": "tokens", "audio": "wave", "video": "frames"}
SHAPES = {"pixels": (2, 3), "tokens": (5,), "wave": (4,), "frames": (2, 2)}
PAD = 0


def make_batch(size: int = 4, count: int = 2) -> Batch:
    """A batch of the first `count` modalities, without zeros, which stand for absent ones."""
    batch = {}
    for name in list(ENTRIES.values())[:count]:
        shape = (size, *SHAPES[name])
        batch[name] = torch.randint(1, 9, shape) if name == "tokens" else torch.rand(shape) + 1.0
    return batch


def make_views(count: int = 2, **options: Any) -> ModalityViews:
    """Views of the first `count` modalities, which are filled with zeros."""
    maskers = {modality: Fill(**{ENTRIES[modality]: 0}) for modality in list(ENTRIES)[:count]}
    return ModalityViews(**maskers, **options)


def all_views(count: int) -> tuple[str, ...]:
    """The names of all possible views of the first `count` modalities."""
    modalities = list(ENTRIES)[:count]
    return ("full", *modalities, *(f"~{modality}" for modality in modalities))


class Classifier(nn.Module):
    """Logits of shape (N, 3) from any of the entries."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {name: torch.Size(shape).numel() for name, shape in SHAPES.items()}
        self.layers = nn.ModuleDict({name: nn.Linear(size, 3) for name, size in sizes.items()})

    def forward(self, **batch: Tensor) -> Tensor:
        parts = [self.layers[name](entry.flatten(1).float() / 9) for name, entry in batch.items()]
        return torch.stack(parts).sum(0).tanh()


def assert_close_logits(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for view in expected:
        torch.testing.assert_close(actual[view], expected[view], rtol=0, atol=1e-6)


def to_lists(tree: Any) -> Any:
    """A copy of a nested batch with lists instead of tensors, to compare with `==`."""
    if isinstance(tree, Tensor):
        return tree.tolist()
    if isinstance(tree, Mapping):
        return {key: to_lists(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(to_lists(value) for value in tree)
    return tree


ErrorCases = Mapping[str, tuple[Callable[[], Any], type[Exception], str]]
"""Id -> a call, the type of its error, and a pattern in the error's message."""


def error_cases(cases: ErrorCases) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("call", "kind", "pattern"), cases.values(), ids=cases.keys())


def assert_raises(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    message = caught.value.args[0]  # the text of a KeyError adds quotes
    assert re.match(f"Expected .*{pattern}", message), message
