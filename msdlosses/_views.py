"""The names of views: `full`, a modality, or `~modality` for everything else."""

from __future__ import annotations

from collections.abc import Iterable

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
