"""Views: their names, which are `full`, a modality, or `~modality`, and their logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from msdlosses._torch import TRACES_DICT_SUBCLASSES, register_pytree

FULL = "full"


def view_names(views: Iterable[str]) -> tuple[str, ...]:
    """Return names of views, or the views of a mapping.

    Iterating over a TensorDict would give its samples.
    """
    return tuple(getattr(views, "keys", views.__iter__)())


def modalities_of(views: Iterable[str]) -> tuple[str, ...]:
    """Return the modalities of some views: what they know, or else what their names tell."""
    known = getattr(views, "modalities", None)
    if known is not None:
        return tuple(known)
    named = (view.removeprefix("~") for view in view_names(views) if view != FULL)
    return tuple(dict.fromkeys(named))


def shown_modalities(view: str, modalities: Iterable[str]) -> tuple[str, ...]:
    """Return the modalities that a view shows."""
    if view == FULL:
        return tuple(modalities)
    if view.startswith("~"):
        return tuple(modality for modality in modalities if modality != view[1:])
    return (view,)


def opposite(view: str, views: Iterable[str]) -> str:
    """Return the view that shows exactly what `view` hides, by its name among `views`.

    With two modalities, `~image` and `text` are the same view.
    """
    modality = view.removeprefix("~")
    others = [other for other in modalities_of(views) if other != modality]
    negated = modality if view.startswith("~") else f"~{modality}"
    if negated in view_names(views) or len(others) != 1:
        return negated
    return f"~{others[0]}" if view.startswith("~") else others[0]


class ViewLogits(dict[str, Any]):
    """View -> logits: a dict that knows the modalities, of which it may lack some views."""

    def __init__(
        self, logits: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), modalities: Any = None
    ) -> None:
        super().__init__(logits)
        self.modalities: tuple[str, ...] = tuple(
            modalities_of(self) if modalities is None else modalities
        )

    def copy(self) -> ViewLogits:
        return ViewLogits(self, self.modalities)


def _flatten(logits: ViewLogits) -> tuple[list[Any], Any]:
    return list(logits.values()), (tuple(logits), logits.modalities)


def _unflatten(values: Iterable[Any], context: Any) -> ViewLogits:
    names, modalities = context
    return ViewLogits(zip(names, values, strict=True), modalities)


register_pytree(ViewLogits, _flatten, _unflatten)


def with_modalities(logits: Mapping[str, Any], modalities: Iterable[str]) -> dict[str, Any]:
    """Return logits by view that know their modalities, where a compiler can trace that."""
    traced = TRACES_DICT_SUBCLASSES or not torch.compiler.is_compiling()
    return ViewLogits(logits, modalities) if traced else dict(logits)


def map_views(function: Callable[[str, Any], Any], logits: Mapping[str, Any]) -> dict[str, Any]:
    """Apply `function(view, logits)` to each view. The result knows the same modalities."""
    mapped = {view: function(view, value) for view, value in logits.items()}
    modalities = getattr(logits, "modalities", None)
    return mapped if modalities is None else with_modalities(mapped, modalities)
