"""Checks of what views are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from msdlosses._batches import batched_tensors, covering
from msdlosses._checks import (
    check_callable,
    check_integer,
    check_mapping,
    check_names,
    check_that,
    describe,
    expected,
    join_names,
)
from msdlosses._torch import unwrap_compiled
from msdlosses._views import FULL
from msdlosses.masking._masker import EntryMasker


def check_options(options: Mapping[str, Any]) -> None:
    """Check options of `ModalityViews`, which a modality may have been named after."""
    functions = [name for name, option in options.items() if callable(option) and name != "output"]
    taken = functions + ["output"] * isinstance(options["output"], EntryMasker)
    check_that("modalities with other names than the options", not taken, join_names(taken))
    check_callable("output", options["output"], optional=True)
    if options["views_per_forward"] is not None:
        check_integer("views_per_forward", options["views_per_forward"], least=1)


def check_maskers(maskers: Mapping[str, Any]) -> None:
    """Check for at least two maskers, and for names that can be modalities."""
    check_that("maskers for at least two modalities", len(maskers) > 1, join_names(maskers))
    container = nn.ModuleDict()  # will hold the maskers, and does not allow all keys
    for modality, masker in maskers.items():
        what = f"modality names except `{FULL}` and attributes of a module, without ~ and dots"
        ok = modality not in ("", FULL) and not hasattr(container, modality)
        check_that(what, ok and not {"~", "."} & set(modality), f"`{modality}`")
        check_callable(modality, masker)


def check_view_names(views: Sequence[str], modalities: Iterable[str]) -> None:
    """Check that each view is `full`, a modality, or a modality with `~`."""
    check_names("views", views)
    known = (FULL, *modalities, *(f"~{modality}" for modality in modalities))
    for view in views:
        check_that(f"`views` among {join_names(known)}", view in known, f"`{view}`")


def parameters_outside_ddp(views: nn.Module, model: object) -> list[str]:
    """Return what the views learn outside of a DDP model, where it would not be averaged."""
    model = unwrap_compiled(model)
    if not (isinstance(model, DistributedDataParallel) and torch.is_grad_enabled()):
        return []
    learned = {name: p for name, p in views.named_parameters() if p.requires_grad}
    wrapped = {id(p) for p in model.parameters()} if learned else set()
    return [name for name, p in learned.items() if id(p) not in wrapped]


def check_axes(
    maskers: Iterable[nn.Module], ragged: Mapping[str, Any], batch_axis: Mapping[str, int]
) -> None:
    """Check the entries with another layout, and that all maskers can work on them."""
    for name, counts in ragged.items():
        check_callable(f"ragged[{name!r}]", counts)
    for name, axis in batch_axis.items():
        check_integer(f"batch_axis[{name!r}]", axis)
    both = [name for name in batch_axis if _overlaps(name, ragged)]
    check_that("entries in `ragged` or in `batch_axis`", not both, join_names(both))
    for masker in maskers:
        found = _misplaced(masker, ragged, batch_axis)
        check_that(f"{describe(masker)} to mask samples along axis 0", not found, join_names(found))


def _misplaced(
    masker: nn.Module, ragged: Mapping[str, Any], batch_axis: Mapping[str, int]
) -> list[str]:
    """Return the entries in which a masker would take something else for samples."""
    if not isinstance(masker, EntryMasker):
        return []
    others = [*ragged] if masker.moves_samples else []
    if masker.needs_axis_0 or masker.keep is not None:
        others += batch_axis
    return [entry for entry in masker.entries if _overlaps(entry, others)]


def _overlaps(entry: str, names: Collection[str]) -> bool:
    return any(covering(entry, [name]) or covering(name, [entry]) for name in names)


def check_blanks(maskers: Iterable[tuple[str, nn.Module]], ragged: Iterable[str]) -> None:
    """Check that the maskers give all samples the same blank input."""
    what, advice = "one blank input for all samples", "Call `views(model, batch)`."
    check_that("no ragged entries", not list(ragged), join_names(ragged), advice)
    for modality, masker in maskers:
        keeps = getattr(masker, "keep", None) is not None
        got = f"{describe(masker)}{' with `keep`' if keeps else ''} for `{modality}`"
        depends = keeps or getattr(masker, "depends_on_input", False)
        check_that(what, not depends, got, advice)


def check_features(features: Any, modalities: Sequence[str], rows: int) -> None:
    """Check what the towers return: features of each modality, with one row per sample."""
    check_mapping("towers(batch)", features, "modalities to features")
    same = set(features.keys()) == set(modalities)
    what = f"`towers` to return features of {join_names(modalities)}"
    check_that(what, same, join_names(features.keys()))
    for name, entry in batched_tensors(features):
        if len(entry) != rows:
            what = f"{rows} rows of `{name}`, one per sample and one for the blank input"
            raise ValueError(expected(what, len(entry)))
