"""Views: their names, which are `full`, a modality, or `~modality`, and their logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msdlosses._torch import register_pytree

FULL = "full"


def modalities_of(views: Iterable[str]) -> tuple[str, ...]:
    """Return the modalities that some views name, in order of appearance."""
    return tuple(dict.fromkeys(view.removeprefix("~") for view in views if view != FULL))


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
    views = tuple(views)
    modality = view.removeprefix("~")
    negated = modality if view.startswith("~") else f"~{modality}"
    others = [other for other in modalities_of(views) if other != modality]
    if negated in views or len(others) != 1:
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
