"""Real data in memory: a picture and words for each item, split by groups that belong together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.data._pack import decode

DATA = Path(__file__).parent / "data"
PAD, UNKNOWN = 0, 1
LENGTH = 12  # words; longer texts are cut
PARTS = {"train": 0.60, "validation": 0.15, "test": 0.25}

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Split:
    """Items of one part of the data; `index` is an item's row in a cache of that part."""

    index: Tensor
    pixels: Tensor
    tokens: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def batches(self, size: int, *, shuffle: bool = False) -> Iterator[tuple[Batch, Tensor]]:
        """One pass over the items."""
        order = torch.randperm(len(self)) if shuffle else torch.arange(len(self))
        for chosen in order.split(size):
            items = self.items(chosen)
            yield {k: getattr(items, k) for k in ("index", "pixels", "tokens")}, items.target

    def items(self, chosen: Tensor) -> Split:
        """Some of the items, which keep their index."""
        return Split(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def to(self, device: str) -> Split:
        """The items on another device."""
        return Split(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Task:
    """A data set, split for one seed."""

    train: Split
    validation: Split
    test: Split
    classes: int
    words: int


@dataclass(frozen=True)
class _Items:
    pixels: np.ndarray
    texts: Sequence[str]
    labels: np.ndarray
    groups: Sequence[str]  # items of one group stay in one part


@lru_cache(maxsize=2)  # jobs of one seed come one after the other
def load(name: str, seed: int) -> Task:
    """The data set `name`, split by `seed`; the vocabulary is that of the training part."""
    items = DATASETS[name]()
    parts = split_groups(items.groups, seed)
    counts = Counter(w for i in parts["train"].tolist() for w in set(_words(items.texts[i])))
    known = sorted(word for word, count in counts.items() if count > 1)
    vocabulary = {word: number for number, word in enumerate(known, start=UNKNOWN + 1)}
    names, target = np.unique(items.labels, return_inverse=True)
    whole = Split(
        torch.zeros(len(target), dtype=torch.long),
        torch.from_numpy(items.pixels),
        torch.tensor([_encode(text, vocabulary) for text in items.texts]),
        torch.from_numpy(target),
    )
    splits = {part: _numbered(whole.items(chosen)) for part, chosen in parts.items()}
    return Task(**splits, classes=len(names), words=UNKNOWN + 1 + len(vocabulary))


def _hanzi() -> _Items:
    pack = np.load(DATA / "hanzi12.npz")
    glosses = decode(pack["gloss"])
    pixels = pack["glyph"][:, None].astype(np.float32) / 7
    return _Items(pixels, glosses, pack["radical"], glosses)


def _emoji() -> _Items:
    pack = np.load(DATA / "emoji24_nf.npz")
    lines = [line.split("|") for line in decode(pack["text"])]
    texts = [f"{label} {tags}" for label, tags, _ in lines]
    pixels = pack["image"].transpose(0, 3, 1, 2).astype(np.float32) / 31
    return _Items(pixels, texts, pack["y"], [concept for *_, concept in lines])


DATASETS = {"hanzi": _hanzi, "emoji": _emoji}


def split_groups(groups: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Whole groups, drawn at random, until each part has its share of the items."""
    _, group = np.unique(np.array(groups), return_inverse=True)
    place = np.random.default_rng(seed).permutation(group.max() + 1)[group]
    order = np.argsort(place, kind="stable")
    shares = np.cumsum(list(PARTS.values()))[:-1] * len(order)
    borders = [int(np.searchsorted(place[order], place[order][int(share)])) for share in shares]
    return {
        part: torch.from_numpy(np.sort(index))
        for part, index in zip(PARTS, np.split(order, borders), strict=True)
    }


def _numbered(split: Split) -> Split:
    return replace(split, index=torch.arange(len(split)))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _encode(text: str, vocabulary: dict[str, int]) -> list[int]:
    numbers = [vocabulary.get(word, UNKNOWN) for word in _words(text)][:LENGTH]
    return numbers + [PAD] * (LENGTH - len(numbers))
