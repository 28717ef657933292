"""What "absent" looks like: callables `batch -> batch` that take one modality away."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from msdlosses._checks import batches_of, describe
from msdlosses._fitted import FittedBuffers
from msdlosses.functional import column
from msdlosses.masking._batches import Batch, leaves, lookup, replace

Keep = int | Sequence[int] | Tensor | Callable[[Batch], Tensor]


class EntryMasker(nn.Module, ABC):
    """Replaces named entries of a batch, except at the positions that `keep` spares."""

    def __init__(self, entries: Iterable[str], keep: Keep | None = None) -> None:
        super().__init__()
        self.entries = tuple(entries)
        if not self.entries:
            raise ValueError(f"Expected {type(self).__name__} to name an entry, got none.")
        keep = (keep,) if isinstance(keep, int) else keep
        _check_keep(keep)
        if isinstance(keep, Tensor):
            self.register_buffer("keep", keep)
        else:
            self.keep = keep

    @abstractmethod
    def absent(self, name: str, entry: Tensor) -> Tensor:
        """What `entry` looks like where its modality is absent, of the entry's shape."""

    def forward(self, batch: Batch) -> Batch:
        masked = batch
        for name, entry in self.targets(batch):
            masked = replace(masked, name, self._mask(batch, name, entry))
        return masked

    if TYPE_CHECKING:  # torch's own says that a call returns Any
        __call__ = forward

    def targets(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """The tensors that this masker names: entries, or all that a nested entry holds."""
        for name in self.entries:
            found = list(leaves(lookup(batch, name), name))
            if not found:
                raise TypeError(
                    f"Expected `{name}`, which a masker names, to be a batched tensor, "
                    f"got {describe(lookup(batch, name))}."
                )
            yield from found

    def entry_of(self, name: str) -> str:
        """The entry, among those named, that a tensor is or is nested in."""
        holding = [e for e in self.entries if f"{name}.".startswith(f"{e}.")]
        return sorted(holding, key=len)[-1]  # torch.compile knows no key of max

    def _mask(self, batch: Batch, name: str, entry: Tensor) -> Tensor:
        absent = self.absent(name, entry)
        if self.keep is None:
            return absent
        return torch.where(_kept(self.keep, batch, name, entry), entry, absent)

    def extra_repr(self) -> str:
        return ", ".join(self.entries)


class Fill(EntryMasker):
    """A constant stands where the modality is absent.

    Args:
        keep: positions that stay, such as those of [CLS] and [SEP]: one position or several
            along the second axis, a boolean mask of shape (L,) or (N, L), or a function
            ``batch -> mask``.
        values: entry -> its value, a number or a tensor that broadcasts over the entry. The value
            of a nested entry is that of all it holds. A part of it is named by a nested mapping,
            ``text={"tokens": 0}``, or with a dot, ``**{"text.tokens": 0}``; one of a list by its
            place, ``**{"frames.0": 0}``.

    Shape:
        A batch in, a batch of the same shapes out.

    Raises:
        TypeError: a value that is neither, or a fraction for an entry of integers; a ``keep`` of
            another kind.
        ValueError: no entry, a NaN, a value that the entry's type can't hold, a tensor that does
            not broadcast or is on another device; a ``keep`` mask of another shape.
        KeyError: the batch has no such entry.
        IndexError: a position to keep that the entry does not have.

    Example:
        >>> mask = Fill(tokens=0, keep=0)
        >>> mask({"tokens": torch.tensor([[7, 8, 9]])})
        {'tokens': tensor([[7, 0, 0]])}

    Source: [ours].
    """

    def __init__(self, keep: Keep | None = None, **values: Any) -> None:
        flat = dict(_flatten(values))
        super().__init__(flat, keep)
        self.numbers: dict[str, float] = {}
        for name, value in flat.items():
            _check_value(name, value)
            if isinstance(value, Tensor):
                self.register_buffer(_attribute(name), value)
            else:
                self.numbers[name] = value

    def absent(self, name: str, entry: Tensor) -> Tensor:
        named = self.entry_of(name)
        if named not in self.numbers:
            return _broadcast(name, self.get_buffer(_attribute(named)), entry)
        value = self.numbers[named]
        if isinstance(value, float) and not value.is_integer() and not entry.is_floating_point():
            raise TypeError(
                f"Expected a whole number to fill `{name}`, {describe(entry)}, got {value}."
            )
        try:
            return torch.full_like(entry, value)
        except RuntimeError:
            raise _unfit(name, value, entry) from None


class LearnedFill(EntryMasker):
    """A learned tensor stands where the modality is absent; give it to the optimiser.

    Args:
        keep: positions that stay, as in `Fill`.
        values: entry -> where learning starts: a number, a floating-point tensor that
            broadcasts over the entry, or a shape, which starts at 0.

    Shape:
        A batch in, a batch of the same shapes out.

    Raises:
        TypeError: a start of another kind, or an entry that is not of floating point.
        ValueError: no entry, a NaN, a tensor that does not broadcast or is on another device.
        KeyError: the batch has no such entry.

    Example:
        >>> mask = LearnedFill(pixels=(3, 8, 8))
        >>> [tuple(p.shape) for p in mask.parameters()]
        [(3, 8, 8)]

    Source: [ours].
    """

    def __init__(self, keep: Keep | None = None, **values: Any) -> None:
        flat = dict(_flatten(values))
        super().__init__(flat, keep)
        for name, value in flat.items():
            start = torch.zeros(value) if isinstance(value, tuple | list) else value
            _check_value(name, start)
            start = torch.as_tensor(start).clone()
            start = start if start.is_floating_point() else start.float()
            self.register_parameter(_attribute(name), nn.Parameter(start))

    def absent(self, name: str, entry: Tensor) -> Tensor:
        return _broadcast(name, self.get_parameter(_attribute(self.entry_of(name))), entry)


class MeanFill(EntryMasker, FittedBuffers):
    """The data's mean stands where the modality is absent: `fit` it once, before training.

    Args:
        entries: the modality's entries.
        keep: positions that stay, as in `Fill`.

    Shape:
        A batch in, a batch of the same shapes out.

    Raises:
        TypeError: an entry that is not of floating point.
        RuntimeError: used before `fit`.
        KeyError: the batch has no such entry.

    Example:
        >>> mask = MeanFill("pixels").fit([{"pixels": torch.tensor([[1.0], [3.0]])}])
        >>> mask({"pixels": torch.zeros(1, 1)})
        {'pixels': tensor([[2.]])}

    Source: [ours].
    """

    def __init__(self, *entries: str, keep: Keep | None = None) -> None:
        super().__init__(entries, keep)

    def fit(self, batches: object) -> MeanFill:
        """Take the mean over all samples of an iterable of batches, or of (batch, target)."""
        totals: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for batch in batches_of(batches):
            for name, entry in self.targets(batch):
                if not entry.is_floating_point():
                    raise TypeError(
                        f"Expected `{name}` of floating point to take its mean, "
                        f"got {describe(entry)}."
                    )
                totals[name] = totals.get(name, 0) + entry.detach().double().sum(0)
                counts[name] = counts.get(name, 0) + len(entry)
        if not counts or 0 in counts.values():
            raise ValueError("Expected samples to fit MeanFill to, got none.")
        self.set_fitted({name: (totals[name] / counts[name]).float() for name in totals})
        return self

    def absent(self, name: str, entry: Tensor) -> Tensor:
        return _broadcast(name, self.get_fitted(name), entry)


class Shuffle(EntryMasker):
    """Another sample's value stands where the modality is absent.

    Each sample gets that of the sample before it in the batch, so teacher and student see the
    same view when they are given the same batch. A cache of the teacher's logits can't know
    the student's batches: `TeacherCache.build` refuses it.

    Args:
        entries: the modality's entries, moved together.
        keep: positions that stay, as in `Fill`.

    Shape:
        A batch in, a batch of the same shapes out.

    Raises:
        ValueError: a batch of one sample, which has no other.
        KeyError: the batch has no such entry.

    Example:
        >>> Shuffle("pixels")({"pixels": torch.tensor([[1.0], [2.0], [3.0]])})["pixels"].tolist()
        [[3.0], [1.0], [2.0]]

    Source: [ours].
    """

    def __init__(self, *entries: str, keep: Keep | None = None) -> None:
        super().__init__(entries, keep)

    def absent(self, name: str, entry: Tensor) -> Tensor:
        if len(entry) == 1:
            raise ValueError(f"Expected at least two samples to shuffle `{name}`, got 1.")
        return entry.roll(1, 0)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _attribute(name: str) -> str:
    return "absent_" + name.replace(".", "/")  # a parameter's name must not hold a dot


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, Tensor | int | float):
        raise TypeError(f"Expected a number or a tensor to fill `{name}`, got {describe(value)}.")
    if bool(value.isnan().any()) if isinstance(value, Tensor) else math.isnan(value):
        raise ValueError(f"Expected a value to fill `{name}`, got NaN.")


def _broadcast(name: str, value: Tensor, entry: Tensor) -> Tensor:
    if value.is_floating_point() and not entry.is_floating_point():
        raise TypeError(
            f"Expected whole numbers to fill `{name}`, which is {describe(entry)}, "
            f"got {describe(value)}."
        )
    if value.device != entry.device:
        raise ValueError(
            f"Expected the value of `{name}` on {entry.device}, got {value.device}: move the "
            "views with .to(device)."
        )
    cast = value.to(entry.dtype)
    exact = value.dtype == entry.dtype or entry.is_floating_point()
    if not exact and bool((cast != value).any()):
        raise _unfit(name, describe(value), entry)
    try:
        # A copy, since models may want to take views of their inputs.
        return cast.expand_as(entry).contiguous()
    except RuntimeError:
        raise ValueError(
            f"Expected a value that broadcasts over `{name}` of shape {tuple(entry.shape)}, "
            f"got {tuple(value.shape)}."
        ) from None


def _unfit(name: str, value: object, entry: Tensor) -> ValueError:
    return ValueError(
        f"Expected a value that `{name}`, which is {describe(entry)}, can hold, got {value}."
    )


def _check_keep(keep: Any) -> None:
    if keep is None or callable(keep) or isinstance(keep, Tensor):
        return
    # A bool is an int too, but no position: a list of them would be a mask.
    whole = isinstance(keep, list | tuple) and all(type(position) is int for position in keep)
    if not whole:
        raise TypeError(
            "Expected `keep` to be positions, a boolean mask or a function that gives one, "
            f"got {keep!r}."
        )


def _kept(keep: Any, batch: Batch, name: str, entry: Tensor) -> Tensor:
    """Which positions of an entry stay, broadcastable over it."""
    mask = keep(batch) if callable(keep) else keep
    # A tuple of types: torch.compile of torch 2.6 can't read a union.
    if isinstance(mask, (list, tuple)) and not callable(keep):
        mask = _positions(mask, name, entry)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"Expected `keep` to be positions or a boolean mask, got {describe(mask)}.")
    rows = mask.unsqueeze(0) if mask.ndim == 1 else mask
    fits = 1 < rows.ndim <= entry.ndim and rows.shape[0] in (1, entry.shape[0])
    if not fits or rows.shape[1:] != entry.shape[1 : rows.ndim]:
        raise ValueError(
            f"Expected a `keep` mask of shape (L,) or (N, L) for `{name}` of shape "
            f"{tuple(entry.shape)}, got {tuple(mask.shape)}."
        )
    return column(rows, entry)


def _positions(positions: Sequence[int], name: str, entry: Tensor) -> Tensor:
    length = entry.shape[1] if entry.ndim > 1 else 0
    mask = torch.zeros(length, dtype=torch.bool, device=entry.device)
    for position in positions:
        if not -length <= position < length:
            raise IndexError(
                f"Expected `keep` to name one of {length} positions of `{name}`, got {position}."
            )
        mask[position] = True
    return mask
