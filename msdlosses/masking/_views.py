"""A model's logits for each view of a batch, and training with modalities missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from msdlosses._checks import check_callable, check_mask, check_number, describe, listing
from msdlosses.functional import FULL
from msdlosses.masking._batches import (
    Batch,
    copy,
    drop,
    expand,
    leaves,
    narrow,
    stack,
    where,
)
from msdlosses.masking._maskers import EntryMasker, Shuffle

Masker = Callable[[Batch], Batch]


class _Function(nn.Module):
    """A masker that is a plain function."""

    def __init__(self, function: Masker) -> None:
        super().__init__()
        self.function = function

    def forward(self, batch: Batch) -> Batch:
        return self.function(batch)


class ModalityViews(nn.Module):
    """A model's logits for each view of a batch.

    A batch is a mapping. Every tensor of one dimension or more in it, also in nested mappings
    and lists, is batched along its first axis, unless `shared` or `ignore` names it; all other
    values are handed on. A batch is never changed in place.

    Args:
        views: the views, in their order: ``full`` is the whole input, a modality's name that
            modality alone, ``~image`` everything but the image. Default: ``full`` and each
            modality.
        views_per_forward: how many views are stacked along the batch axis in one forward; None
            for all of them, 1 for separate forwards, which need less memory at once and which a
            model with batch statistics may want. A model with a tower for each modality needs
            neither: see `late_fusion`.
        ignore: entries that the model is not given, such as a sample's index.
        shared: entries that are not batched and handed on as they are.
        output: takes the logits out of what the model returns. By default a tensor, an object
            with ``.logits`` and a mapping with ``"logits"`` are understood.
        unpack: give the model the batch as keywords; False hands it the mapping whole.
        maskers: modality -> masker, any callable ``batch -> batch``.

    Shape:
        Each view: (N, ...), as the model returns it.

    Raises:
        TypeError: a masker, option, model, batch or output of the wrong kind.
        ValueError: fewer than two modalities, a name that clashes with an option or with an
            attribute of a torch module, an unknown or repeated view, entries of different length,
            views that can't be stacked, logits that are not one per sample; a model in
            `DistributedDataParallel` where a `LearnedFill` is outside of it.
        KeyError: a masker names an entry that the batch lacks.

    Example:
        >>> views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0))
        >>> views.names
        ('full', 'image', 'text')
        >>> batch = {"pixels": torch.ones(1, 1), "tokens": torch.ones(1, 1)}
        >>> model = lambda pixels, tokens: torch.cat([pixels, tokens], 1)
        >>> {view: logits.tolist() for view, logits in views(model, batch).items()}
        {'full': [[1.0, 1.0]], 'image': [[1.0, 0.0]], 'text': [[0.0, 1.0]]}

    Source: [paper] for one view per modality; that the student is masked as well: [ours].
    """

    def __init__(
        self,
        *,
        views: Sequence[str] | None = None,
        views_per_forward: int | None = None,
        ignore: Sequence[str] = (),
        shared: Sequence[str] = (),
        output: Callable[[Any], Tensor] | None = None,
        unpack: bool = True,
        **maskers: Masker,
    ) -> None:
        super().__init__()
        _check_options(
            views=views,
            views_per_forward=views_per_forward,
            ignore=ignore,
            shared=shared,
            output=output,
            unpack=unpack,
        )
        _check_maskers(maskers)
        self.maskers = nn.ModuleDict(
            {m: f if isinstance(f, nn.Module) else _Function(f) for m, f in maskers.items()}
        )
        self.names = (FULL, *maskers) if views is None else _check_names(views, maskers)
        self.views_per_forward = views_per_forward
        self.ignore = frozenset([ignore] if isinstance(ignore, str) else ignore)
        self.shared = frozenset([shared] if isinstance(shared, str) else shared)
        self.output = output
        self.unpack = unpack

    @property
    def modalities(self) -> tuple[str, ...]:
        """The names of the modalities, in the order of their maskers."""
        return tuple(self.maskers.keys())

    def shown(self, view: str) -> tuple[str, ...]:
        """The modalities that a view shows."""
        if view == FULL:
            return self.modalities
        if view.startswith("~"):
            return tuple(m for m in self.modalities if m != view[1:])
        return (view,)

    def inputs(self, batch: Batch) -> dict[str, Batch]:
        """What the model is given for each view."""
        self.size(batch)
        return {view: self._input(batch, view) for view in self.names}

    def forward(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """The model's logits for each view: view -> (N, ...)."""
        check_callable("model", model)
        _check_wrapped(self, model)
        size, _ = self.size(batch)
        return self._run(model, size, lambda view: self._input(batch, view), self.shared)

    if TYPE_CHECKING:  # torch's own says that a call returns Any
        __call__ = forward

    def late_fusion(
        self, towers: Callable[..., Any], head: Callable[..., Any], batch: Batch
    ) -> dict[str, Tensor]:
        """The logits for each view of a model that fuses late: every tower runs only once.

        For a model whose forward is ``head(**towers(**batch))``. A modality is taken away at the
        features, where its tower's output for a blank input stands for it. Logits and gradients
        are those of ``views(model, batch)`` but for dropout, of which all views share one draw,
        and for batch statistics.

        Args:
            towers: called with the batch; gives modality -> features, tensors or a nested batch
                of such, each of them made from its modality alone.
            head: called with these features; gives the logits.
            batch: the input. The blank input is its first sample without any modality, so all
                that a tower is given must be blank alike for all samples: the maskers name
                attention masks too, and none has a ``keep``.

        Shape:
            Each view: (N, ...), as the head returns it.

        Raises:
            TypeError: towers or a head that can't be called, or features that are no mapping.
            ValueError: features named otherwise than the modalities, or not one row per sample;
                a `Shuffle` or a ``keep``, which make no two blank inputs alike.

        Example:
            >>> views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
            >>> image, text = nn.Linear(4, 8), nn.Linear(3, 8)
            >>> towers = lambda pixels, tokens: {"image": image(pixels), "text": text(tokens)}
            >>> head = lambda image, text: image + text
            >>> batch = {"pixels": torch.rand(2, 4), "tokens": torch.rand(2, 3)}
            >>> [tuple(logits.shape) for logits in views.late_fusion(towers, head, batch).values()]
            [(2, 8), (2, 8), (2, 8)]

        Source: [ours].
        """
        check_callable("towers", towers)
        check_callable("head", head)
        size, _ = self.size(batch)
        features = self._features(towers, batch, size)
        present, blank = narrow(features, 0, size), expand(narrow(features, size, None), size)

        def seen(view: str) -> Batch:
            shown = self.shown(view)
            return {m: (present if m in shown else blank)[m] for m in self.modalities}

        return self._run(head, size, seen, ())

    def valid(self, present: Mapping[str, Tensor]) -> Tensor:
        """Which views of which samples are valid: those whose every shown modality is present.

        Args:
            present: modality -> (N,) of bool, for every modality.

        Shape:
            Returns (N, K) of bool, the views on the last axis.

        Raises:
            KeyError: a modality is missing or unknown.
            TypeError: a mask that is not boolean.
            ValueError: masks of different shape.
        """
        if set(present) != set(self.modalities):
            raise KeyError(
                f"Expected `present` to name {listing(self.modalities)}, got {listing(present)}."
            )
        first = present[self.modalities[0]]
        samples = first.shape[:1] if isinstance(first, Tensor) else ()
        for modality in self.modalities:
            check_mask(f"present[{modality!r}]", present[modality], samples)
        columns = [
            torch.stack([present[modality] for modality in self.shown(view)]).all(0)
            for view in self.names
        ]
        return torch.stack(columns, dim=-1)

    def size(self, batch: Batch) -> tuple[int, torch.device]:
        """The number of samples in a batch, and the device that it is on."""
        if not isinstance(batch, Mapping):
            raise TypeError(f"Expected `batch` to be a mapping, got {describe(batch)}.")
        first: tuple[str, Tensor] | None = None
        for name, entry in leaves(batch, skip=self.ignore | self.shared):
            first = first or (name, entry)
            if len(entry) != len(first[1]):
                raise ValueError(
                    "Expected batched entries of one length, got "
                    f"{len(first[1])} for `{first[0]}` and {len(entry)} for `{name}`. "
                    "Name an entry that is not batched in `shared` or `ignore`."
                )
        if first is None:
            raise ValueError("Expected `batch` to hold a batched tensor, got none.")
        return len(first[1]), first[1].device

    def _run(
        self,
        model: Callable[..., Any],
        size: int,
        seen: Callable[[str], Batch],
        shared: Collection[str],
    ) -> dict[str, Tensor]:
        """A model on what it sees in each view, a few views stacked at a time."""
        step = self.views_per_forward or len(self.names)
        logits: dict[str, Tensor] = {}
        for start in range(0, len(self.names), step):
            names = self.names[start : start + step]
            stacked = stack([seen(view) for view in names], shared)
            parts = self._logits(model, stacked, len(names), size)
            logits.update(zip(names, parts, strict=True))
        return logits

    def _features(self, towers: Callable[..., Any], batch: Batch, size: int) -> Batch:
        """The features of the batch, and behind them those of a blank sample."""
        _check_blanks(self.maskers)
        blank = narrow(batch, 0, 1, self.shared)
        for modality in self.modalities:
            blank = _take_away(self, modality, blank)
        whole = stack([drop(part, self.ignore) for part in (batch, blank)], self.shared)
        features = towers(**whole) if self.unpack else towers(whole)
        _check_features(features, self.modalities, size + min(size, 1))
        return cast(Batch, features)

    def _input(self, batch: Batch, view: str) -> Batch:
        shown = self.shown(view)
        for modality in self.modalities:
            if modality not in shown:
                batch = _take_away(self, modality, batch)
        return drop(batch, self.ignore)

    def _logits(
        self, model: Callable[..., Any], batch: Batch, views: int, size: int
    ) -> Sequence[Tensor]:
        returned = model(**batch) if self.unpack else model(batch)
        logits = returned if self.output is None else self.output(returned)
        if self.output is None and not isinstance(logits, Tensor):
            logits = getattr(returned, "logits", None)
            if logits is None and isinstance(returned, Mapping):
                logits = returned.get("logits")
        if not isinstance(logits, Tensor):
            raise TypeError(
                "Expected the model to return a tensor, or logits by attribute or key, got "
                f"{describe(returned if self.output is None else logits)}. "
                "Say where they are with `output`."
            )
        if logits.ndim == 0 or len(logits) != views * size:
            raise ValueError(
                f"Expected the model to return one row for each of {views} x {size} stacked "
                f"samples, got {tuple(logits.shape)}."
            )
        return logits.reshape(views, size, *logits.shape[1:]).unbind(0)

    def extra_repr(self) -> str:
        return f"names={self.names}, views_per_forward={self.views_per_forward}"


class ModalityDropout(nn.Module):
    """Takes modalities away at random, sample by sample, never all of them; for training.

    A teacher needs it to have something to say of a single modality, and it is the baseline
    that distillation by modality has to beat. In evaluation the batch is handed on unchanged.

    Args:
        views: whose maskers say what absent looks like.
        p: the probability that a modality is taken away. A sample that would lose all keeps
            one, drawn at random.

    Shape:
        A batch in, a batch of the same shapes out.

    Raises:
        TypeError: ``views`` is no `ModalityViews`, ``p`` no number; a batch, or what a masker
            returns, that is no mapping.
        ValueError: ``p`` outside [0, 1]; a masker that does not hand on all entries.

    Example:
        >>> views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0))
        >>> drop = ModalityDropout(views, p=0.5).eval()
        >>> drop({"pixels": torch.ones(1, 1), "tokens": torch.ones(1, 1)})["pixels"].tolist()
        [[1.0]]

    Source: [ours].
    """

    def __init__(self, views: ModalityViews, p: float) -> None:
        super().__init__()
        if not isinstance(views, ModalityViews):
            raise TypeError(f"Expected `views` to be a ModalityViews, got {describe(views)}.")
        check_number("p", p)
        if not 0 <= p <= 1:
            raise ValueError(f"Expected `p` in [0, 1], got {p}.")
        self.views = views
        self.p = p

    def forward(self, batch: Batch) -> Batch:
        """The batch with modalities missing, in training; the batch itself otherwise."""
        if not self.training:
            return batch
        dropped = self._draw(*self.views.size(batch)).unbind(1)
        for modality, absent in zip(self.views.modalities, dropped, strict=True):
            batch = where(absent, _take_away(self.views, modality, batch), batch)
        return batch

    if TYPE_CHECKING:  # torch's own says that a call returns Any
        __call__ = forward

    def _draw(self, size: int, device: torch.device) -> Tensor:
        count = len(self.views.modalities)
        drop = torch.rand(size, count, device=device) < self.p
        last = torch.rand(size, count, device=device).argmax(1, keepdim=True)
        spared = torch.zeros_like(drop).scatter(1, last, True)
        return drop & ~(drop.all(1, keepdim=True) & spared)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _take_away(views: ModalityViews, modality: str, batch: Batch) -> Batch:
    """The batch without a modality; whatever the masker does, the one handed in stays as it is."""
    masker = views.maskers[modality]
    masked = masker(batch if isinstance(masker, EntryMasker) else copy(batch, views.shared))
    if not isinstance(masked, Mapping):
        raise TypeError(
            f"Expected the masker of `{modality}` to return a mapping, got {describe(masked)}."
        )
    return masked


def _check_wrapped(views: ModalityViews, model: object) -> None:
    """Whether what the maskers learn is averaged over the processes, as the model is."""
    model = getattr(model, "_orig_mod", model)  # of one that was compiled
    if not (isinstance(model, DistributedDataParallel) and torch.is_grad_enabled()):
        return
    learned = {name: p for name, p in views.named_parameters() if p.requires_grad}
    held = {id(p) for p in model.parameters()} if learned else ()
    for name, parameter in learned.items():
        if id(parameter) not in held:
            raise ValueError(
                "Expected what the views learn to be in the module that DistributedDataParallel "
                f"wraps, or it drifts apart, got `{name}` outside: wrap one module of both."
            )


def _check_blanks(maskers: nn.ModuleDict) -> None:
    for modality, masker in maskers.items():
        if isinstance(masker, Shuffle) or getattr(masker, "keep", None) is not None:
            raise ValueError(
                "Expected maskers that make all samples alike, got "
                f"{describe(masker)}{' with `keep`' * (not isinstance(masker, Shuffle))} for "
                f"`{modality}`: mask the inputs."
            )


def _check_features(features: object, modalities: Sequence[str], rows: int) -> None:
    if not isinstance(features, Mapping):
        raise TypeError(
            f"Expected `towers` to return a mapping of modalities, got {describe(features)}."
        )
    if set(features) != set(modalities):
        raise ValueError(
            f"Expected `towers` to return features of {listing(modalities)}, "
            f"got {listing(features)}."
        )
    for name, entry in leaves(features):
        if len(entry) != rows:
            raise ValueError(
                f"Expected `towers` to return {rows} rows of `{name}`, one for each sample and "
                f"one for a blank input, got {tuple(entry.shape)}."
            )


def _check_options(**options: Any) -> None:
    for name, value in options.items():
        masker = isinstance(value, EntryMasker) or (callable(value) and name != "output")
        if masker:
            raise ValueError(
                f"Expected modalities named otherwise than the options, got a masker for `{name}`."
            )
    output, count = options["output"], options["views_per_forward"]
    if output is not None and not callable(output):
        raise TypeError(f"Expected `output` to be a function, got {describe(output)}.")
    if count is not None and type(count) is not int:
        raise TypeError(
            f"Expected `views_per_forward` to be a whole number or None, got {describe(count)}."
        )
    if count is not None and count < 1:
        raise ValueError(f"Expected `views_per_forward` to be 1 or more, got {count}.")


def _check_maskers(maskers: Mapping[str, Masker]) -> None:
    if len(maskers) < 2:
        raise ValueError(f"Expected a masker for at least two modalities, got {listing(maskers)}.")
    taken = nn.ModuleDict()  # it takes no name that is an attribute of its own
    for modality, masker in maskers.items():
        if modality in ("", FULL) or modality.startswith("~") or "." in modality:
            raise ValueError(
                f"Expected modality names other than `{FULL}`, without `~` and dots, "
                f"got `{modality}`."
            )
        if hasattr(taken, modality):
            raise ValueError(
                "Expected modality names that are no attributes of a torch module, "
                f"got `{modality}`."
            )
        if not callable(masker):
            raise TypeError(
                f"Expected the masker of `{modality}` to be callable, got {describe(masker)}."
            )


def _check_names(views: Sequence[str], modalities: Iterable[str]) -> tuple[str, ...]:
    known = (FULL, *modalities, *(f"~{modality}" for modality in modalities))
    for view in views:
        if view not in known:
            raise ValueError(f"Expected `views` among {listing(known)}, got `{view}`.")
    if not views or len(set(views)) != len(views):
        raise ValueError(f"Expected `views` to name each view once, got {listing(views)}.")
    return tuple(views)
