"""A model's logits on each view of a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from msdlosses._batches import Batch, drop_entries, map_batched, size_and_device, stack
from msdlosses._checks import (
    check_callable,
    check_mask,
    check_same_names,
    check_that,
    describe,
    expected,
    join_names,
)
from msdlosses._views import FULL, shown_modalities
from msdlosses.masking._checks import (
    check_blanks,
    check_features,
    check_maskers,
    check_options,
    check_view_names,
    parameters_outside_ddp,
)
from msdlosses.masking._masker import EntryMasker

Masker = Callable[[Batch], Batch]


class ModalityViews(nn.Module):
    """A model's logits on each view of a batch.

    A batch is a mapping. Each tensor in it with at least one dimension, also in nested mappings and
    lists, is batched along its first axis, unless ``shared`` or ``ignore`` names it. All other
    values are passed on. A batch is never changed in place.

    Args:
        views: the views, in order: ``full`` is the whole input, the name of a modality is that
            modality only, and ``~image`` is everything except the image. By default ``full`` and
            each modality.
        views_per_forward: how many views to stack along the batch axis in one forward pass; None
            stacks all. 1 runs the views separately, which needs less memory and keeps batch
            statistics apart. For a model with one encoder per modality see `late_fusion`.
        ignore: entries that the model does not get, such as the index of a sample.
        shared: entries that are not batched, and passed on as they are.
        output: a function that returns the logits from what the model returns. By default the
            model may return a tensor, an object with ``.logits``, or a mapping with ``"logits"``.
        unpack: pass the batch to the model as keyword arguments; False passes the mapping itself.
        maskers: modality -> masker, as keywords: any callable ``batch -> batch``.

    Shape:
        Each view: (N, ...), as the model returns it.

    Raises:
        TypeError: a masker, option, model, batch, or output has the wrong type.
        ValueError: there are fewer than two modalities; the name of one is an option or an
            attribute of a torch module; a view is unknown or repeated; entries differ in length;
            views cannot be stacked; the model does not return one row per sample; the model is
            wrapped in `DistributedDataParallel` without the parameters of a `LearnedFill`.
        KeyError: the batch lacks an entry that a masker names.

    Example:
        >>> views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0))
        >>> views.names
        ('full', 'image', 'text')
        >>> batch = {"pixels": torch.ones(1, 1), "tokens": torch.ones(1, 1)}
        >>> model = lambda pixels, tokens: torch.cat([pixels, tokens], 1)
        >>> {view: logits.tolist() for view, logits in views(model, batch).items()}
        {'full': [[1.0, 1.0]], 'image': [[1.0, 0.0]], 'text': [[0.0, 1.0]]}

    Source: [paper] for one view per modality; that the student's input is masked as well: [ours].
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
        options = {"views": views, "ignore": ignore, "shared": shared, "unpack": unpack}
        check_options({**options, "views_per_forward": views_per_forward, "output": output})
        check_maskers(maskers)
        check_view_names((FULL,) if views is None else views, maskers)
        self.maskers = nn.ModuleDict(
            {m: f if isinstance(f, nn.Module) else _FunctionMasker(f) for m, f in maskers.items()}
        )
        self.names = (FULL, *maskers) if views is None else tuple(views)
        self.views_per_forward = views_per_forward
        self.ignore = frozenset([ignore] if isinstance(ignore, str) else ignore)
        self.shared = frozenset([shared] if isinstance(shared, str) else shared)
        self.output = output
        self.unpack = unpack

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities, in the order of their maskers."""
        return tuple(self.maskers.keys())

    def shown(self, view: str) -> tuple[str, ...]:
        """Return the modalities that a view shows."""
        return shown_modalities(view, self.modalities)

    def forward(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """Return the model's logits on each view: view -> (N, ...)."""
        check_callable("model", model)
        outside, advice = parameters_outside_ddp(self, model), "Wrap one module of model and views."
        check_that("no parameters outside the DDP model", not outside, join_names(outside), advice)
        size, _ = self.size_and_device(batch)
        return self._run(model, size, lambda view: self._input(batch, view), self.shared)

    if TYPE_CHECKING:  # torch declares that a call returns Any
        __call__ = forward

    def inputs(self, batch: Batch) -> dict[str, Batch]:
        """Return the model's input for each view."""
        self.size_and_device(batch)
        return {view: self._input(batch, view) for view in self.names}

    def valid(self, present: Mapping[str, Tensor]) -> Tensor:
        """Return which views of which samples are valid: those whose modalities are all present.

        Args:
            present: modality -> (N,) of bool, for every modality.

        Shape:
            Returns (N, K) of bool, with the views as the last axis.

        Raises:
            KeyError: a modality is missing or unknown.
            TypeError: a mask is not boolean.
            ValueError: masks differ in shape.
        """
        check_same_names("a mask in `present`", present, self.modalities)
        first = next(iter(present.values()))
        samples = first.new_empty(*first.shape[:1], 1) if isinstance(first, Tensor) else first
        for modality, mask in present.items():
            check_mask(f"present[{modality!r}]", mask, samples)
        columns = [
            torch.stack([present[modality] for modality in self.shown(view)]).all(0)
            for view in self.names
        ]
        return torch.stack(columns, dim=-1)

    def late_fusion(
        self, towers: Callable[..., Any], head: Callable[..., Any], batch: Batch
    ) -> dict[str, Tensor]:
        """Return the logits on each view of a late-fusion model, running each encoder only once.

        For a model with one encoder per modality, its towers, and a fusion head, whose forward
        pass is ``head(**towers(**batch))``. Instead of masking the input of a modality, this method
        replaces its features by those of a blank input. Logits and gradients equal those of
        ``views(model, batch)``, except that all views share one dropout mask and batch statistics.

        Args:
            towers: called with the batch; returns modality -> features, a tensor or a nested batch
                of tensors. The features of a modality may depend on that modality only.
            head: called with these features; returns the logits.
            batch: the input. The blank input is the first sample with all modalities masked, so
                masking must turn all samples into the same input: the maskers also have to mask
                attention masks, and cannot have a ``keep``.

        Shape:
            Each view: (N, ...), as the head returns it.

        Raises:
            TypeError: ``towers`` or ``head`` is not callable, or features are not a mapping.
            ValueError: features are not named after the modalities or do not have one row per
                sample; a masker is a `Shuffle` or has a ``keep``.

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
        check_blanks(self.maskers.items())
        size, _ = self.size_and_device(batch)
        features = self._features(towers, batch, size)
        present = map_batched(lambda x: x[:size], features)
        blank = map_batched(lambda x: x[size:].expand(size, *x.shape[1:]), features)

        def fusion_input(view: str) -> Batch:
            shown = self.shown(view)
            return {m: (present if m in shown else blank)[m] for m in self.modalities}

        return self._run(head, size, fusion_input, ())

    def size_and_device(self, batch: Batch) -> tuple[int, torch.device]:
        """Return the number of samples in a batch, and its device."""
        return size_and_device(batch, skip=self.ignore | self.shared)

    def _without(self, modality: str, batch: Batch) -> Batch:
        """Return the batch without a modality. A masker may work in place: it gets a copy."""
        masker = self.maskers[modality]
        if not isinstance(masker, EntryMasker):
            batch = map_batched(Tensor.clone, batch, self.shared)
        masked: Batch = masker(batch)
        what, is_mapping = f"a mapping from the masker of `{modality}`", isinstance(masked, Mapping)
        check_that(what, is_mapping, describe(masked), error=TypeError)
        return masked

    def _run(
        self,
        model: Callable[..., Any],
        size: int,
        input_of: Callable[[str], Batch],
        shared: Collection[str],
    ) -> dict[str, Tensor]:
        """Run a model on the input of each view, a few views stacked at a time."""
        step = self.views_per_forward or len(self.names)
        logits: dict[str, Tensor] = {}
        for start in range(0, len(self.names), step):
            names = self.names[start : start + step]
            stacked = stack([input_of(view) for view in names], shared)
            parts = self._logits(model, stacked, len(names), size)
            logits.update(zip(names, parts, strict=True))
        return logits

    def _input(self, batch: Batch, view: str) -> Batch:
        shown = self.shown(view)
        for modality in self.modalities:
            if modality not in shown:
                batch = self._without(modality, batch)
        return drop_entries(batch, self.ignore)

    def _features(self, towers: Callable[..., Any], batch: Batch, size: int) -> Batch:
        """Return the features of the batch, followed by those of a blank sample."""
        blank = map_batched(lambda x: x[:1], batch, self.shared)
        for modality in self.modalities:
            blank = self._without(modality, blank)
        parts = [drop_entries(part, self.ignore) for part in (batch, blank)]
        features: Batch = self._call(towers, stack(parts, self.shared))
        check_features(features, self.modalities, size + min(size, 1))
        return features

    def _logits(
        self, model: Callable[..., Any], batch: Batch, views: int, size: int
    ) -> Sequence[Tensor]:
        returned = self._call(model, batch)
        logits = _find_logits(returned) if self.output is None else self.output(returned)
        if not isinstance(logits, Tensor):
            what = "the model to return a tensor, or an object or a mapping with `logits`"
            got = describe(returned if self.output is None else logits)
            raise TypeError(expected(what, got, "Pass a function as `output` to find them."))
        if logits.ndim == 0 or len(logits) != views * size:
            raise ValueError(expected(f"{views} x {size} rows from the model", tuple(logits.shape)))
        return logits.reshape(views, size, *logits.shape[1:]).unbind(0)

    def _call(self, model: Callable[..., Any], batch: Batch) -> Any:
        return model(**batch) if self.unpack else model(batch)

    def extra_repr(self) -> str:
        return f"names={self.names}, views_per_forward={self.views_per_forward}"


class _FunctionMasker(nn.Module):
    """A masker that is a plain function."""

    def __init__(self, function: Masker) -> None:
        super().__init__()
        self.function = function

    def forward(self, batch: Batch) -> Batch:
        return self.function(batch)


def _find_logits(returned: Any) -> Any:
    """Find the logits in what a model returns: a tensor, an attribute, or a key."""
    if isinstance(returned, Tensor):
        return returned
    logits = getattr(returned, "logits", None)
    if logits is None and isinstance(returned, Mapping):
        logits = returned.get("logits")
    return logits
