"""Random nested batches whose samples are known, to compare with what models and maskers see.

A batch is described by its leaves. Each leaf knows the values of every sample, as plain Python
objects, and how to read them from a batch. Nothing here uses the library's own traversal.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    from tensordict import TensorDict
    from transformers.modeling_outputs import BaseModelOutput
except ImportError:
    TensorDict = BaseModelOutput = None

FILL = 1
DTYPES = (torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64)
KEYS = ("a", "b", "keep", "self", "x.y", "n")
MODALITIES = ("image", "text")


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Record:
    left: Any
    right: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    left: Any
    right: Any


class Memory:
    """An object that models may change."""

    def __init__(self) -> None:
        self.seen = [0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memory) and self.seen == other.seen

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass
class Leaf:
    """An entry: its value in the batch, and what each sample holds."""

    value: Any
    samples: list[Any]
    masked: list[Any]
    read: Callable[[Any, int, int], Any]
    """Read sample n of the k-th stacked view from the entry."""
    modality: str | None = None
    path: tuple[Any, ...] = ()
    axis: int = 0
    counts: list[int] | None = None
    shared: bool = False

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))

    def expected(self, n: int, hidden: set[str]) -> Any:
        return (self.masked if self.modality in hidden else self.samples)[n]

    def mask_in_place(self, batch: Any) -> None:
        entry = get(batch, self.path)
        if isinstance(entry, Tensor):
            entry.fill_(FILL)
        else:
            entry[:] = self.masked


@dataclasses.dataclass
class Case:
    """A batch, its leaves, and the options of `ModalityViews` that describe it."""

    batch: Any
    leaves: list[Leaf]
    size: int

    @property
    def options(self) -> dict[str, Any]:
        ragged = {leaf.name: leaf.counts for leaf in self.leaves if leaf.counts is not None}
        return {
            "shared": [leaf.name for leaf in self.leaves if leaf.shared],
            "ragged": {name: (lambda _, c=c: torch.tensor(c).long()) for name, c in ragged.items()},
            # Two tensors of two rows, in a list, could also be one tensor per sample.
            "batch_axis": {
                leaf.name: leaf.axis
                for leaf in self.leaves
                if leaf.axis or type(get(self.batch, leaf.path[:-1])) in (list, tuple)
            },
        }

    def of(self, modality: str) -> list[Leaf]:
        return [leaf for leaf in self.leaves if leaf.modality == modality]

    def sample(self, batch: Any, n: int, view: int = 0) -> list[Any]:
        return [leaf.read(get(batch, leaf.path), view, n) for leaf in self.leaves]

    def expected(self, n: int, hidden: set[str]) -> list[Any]:
        return [leaf.expected(n, hidden) for leaf in self.leaves]


def make_case(seed: int) -> Case:
    """Make a batch with two modalities, one of which may be masked by `Fill`."""
    random = Random(seed)
    size = random.choice((1, 2, 2, 3, 4))
    leaves: list[Leaf] = []
    batch = {"pixels": _tensor(random, size), "tokens": _tensor(random, size)}
    for name, modality in zip(batch, MODALITIES, strict=True):
        batch[name].modality = modality
    for key in random.sample(KEYS, random.randint(0, 4)):
        batch[key] = _tree(random, size, random.choice((0, 0, 1, 2)))
    built = _build(batch, (), leaves)
    wrap = random.choice((dict, dict, OrderedDict, UserDict, lambda d: defaultdict(list, d)))
    return Case(wrap(built), leaves, size)


def get(tree: Any, path: tuple[Any, ...]) -> Any:
    """Look up a path of keys, indices, and fields."""
    for key in path:
        fields = dataclasses.is_dataclass(tree) and not hasattr(tree, "keys")
        tree = getattr(tree, key) if fields else tree[key]
    return tree


def containers(tree: Any, path: tuple[Any, ...]) -> Iterator[Any]:
    """Yield the containers that lead to an entry."""
    for end in range(len(path)):
        yield get(tree, path[:end])


def _tree(random: Random, size: int, depth: int) -> Any:
    if depth == 0:
        return _leaf(random, size)
    children = [_tree(random, size, depth - 1) for _ in range(2)]
    kinds = ["dict", "list", "tuple", "pair", "record", "frozen"]
    if TensorDict is not None:
        kinds += ["output", "tensordict"]
    kind = random.choice(kinds)
    if kind in ("output", "tensordict", "list", "tuple"):  # hold tensors only
        children = [_tensor(random, size) for _ in range(random.choice((1, 2)))]
    return kind, children


def _build(tree: Any, path: tuple[Any, ...], leaves: list[Leaf]) -> Any:
    if isinstance(tree, Leaf):
        tree.path = path
        leaves.append(tree)
        return tree.value
    if isinstance(tree, dict):
        return {key: _build(child, (*path, key), leaves) for key, child in tree.items()}
    kind, children = tree
    keys: Any = ("left", "right") if kind in ("dict", "record", "frozen", "tensordict") else (0, 1)
    if kind == "output":
        keys = ("last_hidden_state", "attentions")
    values = {
        key: _build(child, (*path, key), leaves) for key, child in zip(keys, children, strict=False)
    }
    makers: dict[str, Callable[[], Any]] = {
        "dict": lambda: values,
        "list": lambda: list(values.values()),
        "tuple": lambda: tuple(values.values()),
        "pair": lambda: Pair(*values.values()),
        "record": lambda: Record(**values),
        "frozen": lambda: Frozen(**values),
        "output": lambda: BaseModelOutput(**values),
        "tensordict": lambda: TensorDict(values, batch_size=[len(children[0].samples)]),
    }
    return makers[kind]()


def _leaf(random: Random, size: int) -> Leaf:
    make = random.choice((_tensor, _tensor, _on_axis, _ragged, _strings, _constant, _shared))
    return make(random, size)


def _values(random: Random, shape: tuple[int, ...]) -> Any:
    if not shape:
        return random.randint(2, 9)
    return [_values(random, shape[1:]) for _ in range(shape[0])]


def _tensor(random: Random, size: int) -> Leaf:
    return _on_axis(random, size, axes=(0,))


def _on_axis(random: Random, size: int, axes: tuple[int, ...] = (1, 2, -1)) -> Leaf:
    axis = random.choice(axes)
    shape = tuple(random.choice((1, 2, 3)) for _ in range(2 if axis else random.choice((0, 1, 2))))
    dtype = random.choice(DTYPES)
    rows = [torch.tensor(_values(random, shape)) for _ in range(size)]
    if dtype is torch.bool:
        rows = [row > 100 for row in rows]
    value = torch.stack(rows, axis).to(dtype)
    full = torch.full(shape, FILL)
    return Leaf(
        value,
        [row.to(dtype).tolist() for row in rows],
        [full.to(dtype).tolist()] * size,
        lambda entry, view, n: entry.select(axis, view * size + n).tolist(),
        modality=random.choice((None, *MODALITIES)),
        axis=axis,
    )


def _ragged(random: Random, size: int) -> Leaf:
    counts = [random.choice((0, 1, 2, 3)) for _ in range(size)]
    rows = [_values(random, (count, 2)) for count in counts]
    value = torch.tensor([row for part in rows for row in part]).float().reshape(-1, 2)
    starts = [sum(counts[:n]) for n in range(size)]
    total = sum(counts)
    return Leaf(
        value,
        rows,
        [[[FILL, FILL]] * count for count in counts],
        lambda entry, view, n: entry[view * total + starts[n] :][: counts[n]].tolist(),
        modality=random.choice((None, *MODALITIES)),
        counts=counts,
    )


def _strings(random: Random, size: int) -> Leaf:
    make = random.choice((str, float, lambda k: None, lambda k: ["turn", k], lambda k: {"id": k}))
    samples = [make(random.randint(2, 9)) for _ in range(size)]
    return Leaf(
        list(samples),
        samples,
        [""] * size,
        lambda entry, view, n: entry[view * size + n],
        modality=random.choice((None, "text")),
    )


def _constant(random: Random, size: int) -> Leaf:
    others = ("words", 2.5, None, torch.tensor(3.0), torch.Size([size] * size), ["x"] * (size + 1))
    value = random.choice((*others, torch.float16, _values, Memory()))
    return Leaf(value, [value] * size, [], lambda entry, view, n: entry)


def _shared(random: Random, size: int) -> Leaf:
    value = random.choice((torch.arange(7), {"table": torch.arange(5.0)}, Memory(), ["a"] * size))

    def read(entry: Any, view: int, n: int) -> Any:
        return entry is value

    return Leaf(value, [True] * size, [], read, shared=True)
