"""A model's logits on each view of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from msdlosses._batches import Batch, Layout, Rules, drop_entries, stack
from msdlosses._checks import check_callable, check_that, join_names
from msdlosses._linear import Logits
from msdlosses._views import FULL, shown_modalities, with_modalities
from msdlosses.masking._checks import (
    check_axes,
    check_blanks,
    check_features,
    check_maskers,
    check_options,
    check_view_names,
    parameters_outside_ddp,
)
from msdlosses.masking._fusion import blank_sample, split_features
from msdlosses.masking._input import Masker, ViewInput
from msdlosses.masking._logits import (
    check_width,
    logits_of,
    may_compare_samples,
    split_views,
    without_side_effects,
)
from msdlosses.masking._present import stack_present


class ModalityViews(nn.Module):
    """A model's logits on each view of a batch.

    A batch is a mapping, which may hold further mappings, lists, and records. Each of its entries
    is one of these, where a name in an option covers everything nested in that entry:

    - a tensor with at least one axis has one sample per index of its first axis, or of its
      ``batch_axis``;
    - a ``ragged`` tensor has several rows per sample;
    - a list or tuple of N values that hold no such tensor has one value per sample;
    - a ``shared`` entry is passed on untouched;
    - anything else is a constant.

    Each view gets containers, tensors, and objects of its own, of the same types. So models and
    maskers may work in place: neither the batch nor other views change.

    Args:
        views: the views, in order: ``full`` is the whole input, the name of a modality is that
            modality only, and ``~image`` is everything except the image. By default ``full`` and
            each modality.
        views_per_forward: how many views to stack along the batch axis in one forward pass; None
            stacks all. 1 runs the views separately, which needs less memory and keeps batch
            statistics apart. For a model with one encoder per modality see `late_fusion`.
        ignore: entries that the model does not get, such as the index of a sample.
        shared: entries that are not batched, and passed on as they are.
        ragged: entry -> function ``batch -> (N,)`` of how many rows of the entry belong to each
            sample, such as packed image patches. It is called once with the caller's batch.
        batch_axis: entry -> batch axis, where it is not the first, such as 1 for position IDs of
            shape (3, N, L).
        output: a function that returns the logits from what the model returns: a tensor or
            `LinearLogits`. By default the model may return these themselves, an object with
            ``.logits``, or a mapping with ``"logits"``.
        unpack: pass the batch to the model as keyword arguments; False passes the mapping itself.
        maskers: modality -> masker, as keywords: any callable ``batch -> batch``.

    Shape:
        Each view: (N, ...), as the model returns it, in a dict that also has ``.modalities``.

    Raises:
        TypeError: a masker, option, model, batch, or output has the wrong type, or an object in
            the batch cannot be copied.
        ValueError: there are fewer than two modalities; the name of one is an option or an
            attribute of a torch module; a view is unknown or repeated; entries differ in length;
            counts do not add up; a masker cannot work on a ragged entry or another batch axis;
            views cannot be stacked; the model does not return one row per sample, or it compares
            the samples of a batch, such as CLIP, and views are stacked; the model is wrapped in
            `DistributedDataParallel` without the parameters of a `LearnedFill`.
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
        ragged: Mapping[str, Callable[[Batch], Tensor]] | None = None,
        batch_axis: Mapping[str, int] | None = None,
        output: Callable[[Any], Logits] | None = None,
        unpack: bool = True,
        **maskers: Masker,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "views": views,
            "ignore": ignore,
            "shared": shared,
            "unpack": unpack,
        }
        options |= {"ragged": ragged, "batch_axis": batch_axis, "output": output}
        check_options({**options, "views_per_forward": views_per_forward})
        check_maskers(maskers)
        check_view_names((FULL,) if views is None else views, maskers)
        self.maskers = nn.ModuleDict(
            {m: f if isinstance(f, nn.Module) else _FunctionMasker(f) for m, f in maskers.items()}
        )
        self.names = (FULL, *maskers) if views is None else tuple(views)
        self.views_per_forward = views_per_forward
        self.ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
        self.shared = (shared,) if isinstance(shared, str) else tuple(shared)
        self.ragged = dict(ragged or {})
        self.batch_axis = dict(batch_axis or {})
        check_axes(self.maskers.values(), self.ragged, self.batch_axis)
        self.output = output
        self.unpack = unpack

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities, in the order of their maskers."""
        return tuple(self.maskers.keys())

    def shown(self, view: str) -> tuple[str, ...]:
        """Return the modalities that a view shows."""
        return shown_modalities(view, self.modalities)

    def forward(self, model: Callable[..., Any], batch: Batch) -> dict[str, Any]:
        """Return the model's logits on each view: view -> (N, ...)."""
        check_callable("model", model)
        outside, advice = parameters_outside_ddp(self, model), "Wrap one module of model and views."
        check_that("no parameters outside the DDP model", not outside, join_names(outside), advice)
        layout = self.layout(batch)
        return self._run(model, layout, lambda view: self._input(batch, view, layout))

    if TYPE_CHECKING:  # torch declares that a call returns Any
        __call__ = forward

    def inputs(self, batch: Batch) -> dict[str, Batch]:
        """Return the model's input for each view."""
        layout = self.layout(batch)
        return {view: self._input(batch, view, layout).own() for view in self.names}

    def valid(self, present: Mapping[str, Tensor]) -> Tensor:
        """Return which views of which samples are valid: those whose modalities are all present.

        Args:
            present: modality -> (N,) of bool, for every modality.

        Shape:
            Returns (N, K) of bool, with the views as the last axis.

        Raises:
            KeyError: a modality is missing or unknown.
            TypeError: ``present`` is not a mapping, or a mask is not boolean.
            ValueError: masks differ in shape.
        """
        masks = stack_present(present, self.modalities).unbind(1)
        named = dict(zip(self.modalities, masks, strict=True))
        columns = [
            torch.stack([named[modality] for modality in self.shown(view)]).all(0)
            for view in self.names
        ]
        return torch.stack(columns, dim=-1)

    def late_fusion(
        self, towers: Callable[..., Any], head: Callable[..., Any], batch: Batch
    ) -> dict[str, Any]:
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
                sample; the blank input of a masker depends on the sample, because of ``keep`` or
                as with `Shuffle` and `Downsample`; an entry is ragged.

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
        check_blanks(self.maskers.items(), self.ragged)
        layout = self.layout(batch)
        features = self._features(towers, batch, layout)
        check_features(features, self.modalities, layout.size + min(layout.size, 1))
        present, blank = split_features(features, layout.size)
        rows = Layout(Rules(), layout.size, layout.device)

        def fusion_input(view: str) -> ViewInput:
            shown = self.shown(view)
            return ViewInput(
                {m: (present if m in shown else blank)[m] for m in self.modalities}, rows
            )

        return self._run(head, rows, fusion_input)

    def layout(self, batch: Batch) -> Layout:
        """Return which parts of a batch belong to which sample."""
        return Rules(self.ignore, self.shared, self.ragged, self.batch_axis).layout(batch)

    def size_and_device(self, batch: Batch) -> tuple[int, torch.device]:
        """Return the number of samples in a batch, and its device."""
        layout = self.layout(batch)
        return layout.size, layout.device

    def _run(
        self, model: Callable[..., Any], layout: Layout, input_of: Callable[[str], ViewInput]
    ) -> dict[str, Any]:
        """Run a model on the input of each view, a few views stacked at a time."""
        step = self.views_per_forward or len(self.names)
        logits: dict[str, Any] = {}
        for start in range(0, len(self.names), step):
            names = self.names[start : start + step]
            parts = self._logits(model, [input_of(view) for view in names], layout)
            logits.update(zip(names, parts, strict=True))
        return with_modalities(logits, self.modalities)

    def _logits(
        self, model: Callable[..., Any], inputs: Sequence[ViewInput], layout: Layout
    ) -> Sequence[Logits]:
        count = len(inputs)
        stacked = stack([view.batch for view in inputs], layout) if count > 1 else inputs[0].own()
        logits = logits_of(self._call(model, stacked), self.output)
        parts = split_views(logits, count, layout.size)
        if may_compare_samples(logits, count):
            # Batch normalization needs more than one sample.
            copies = 1 if layout.size > 1 else count + 1
            probe = stack([inputs[0].batch] * copies, layout)
            with without_side_effects(model, layout.device) as quiet:
                other = logits_of(self._call(quiet, probe), self.output)
            check_width(logits.shape[1], other.shape[1])
        return parts

    def _input(self, batch: Batch, view: str, layout: Layout) -> ViewInput:
        shown = self.shown(view)
        hidden = [modality for modality in self.modalities if modality not in shown]
        return self._hide(hidden, batch, layout)

    def _hide(self, modalities: Sequence[str], batch: Batch, layout: Layout) -> ViewInput:
        masked = ViewInput(batch, layout)
        for modality in modalities:
            masked.mask(modality, self.maskers[modality])
        masked.drop(self.ignore)
        return masked

    def _features(self, towers: Callable[..., Any], batch: Batch, layout: Layout) -> Any:
        """Return the features of the batch, followed by those of a blank sample."""
        sample, one = blank_sample(batch, layout)
        blank = self._hide(self.modalities, sample, one).batch
        return self._call(towers, stack([drop_entries(batch, self.ignore), blank], layout))

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
