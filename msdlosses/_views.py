"""The names of views: `full`, a modality, or `~modality` for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

FULL = "full"


class ViewLogits(dict[str, Any]):
    """Logits by view, which also know the modalities that the views are made of.

    The names of the views do not always tell: `full`, `image`, and `text` can be views of two
    modalities, or of three.
    """

    def __init__(self, logits: Mapping[str, Any], modalities: Iterable[str]) -> None:
        super().__init__(logits)
        self.modalities = tuple(modalities)


def map_views(function: Callable[[str, Any], Any], logits: Mapping[str, Any]) -> dict[str, Any]:
    """Apply `function(view, logits)` to each view. The result knows the same modalities."""
    mapped = {view: function(view, value) for view, value in logits.items()}
    modalities = getattr(logits, "modalities", None)
    return mapped if modalities is None else ViewLogits(mapped, modalities)


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
