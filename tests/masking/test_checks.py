"""Checks of the arguments of `ModalityViews`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multimodal import PAD, Batch, ErrorCases, assert_raises, error_cases, make_views

from msdlosses import Fill, ModalityViews


def masker(batch: Batch) -> Batch:
    return batch


def two(image: Any = masker, **options: Any) -> ModalityViews:
    return ModalityViews(image=image, text=Fill(tokens=PAD), **options)


NAMES = "modality names except `full` and attributes of a module, without ~ and dots, got"
OPTIONS = "modalities with other names than the options, got"

ERRORS: ErrorCases = {
    "no modality": (ModalityViews, ValueError, "two modalities, got none"),
    "one modality": (
        lambda: ModalityViews(image=masker),
        ValueError,
        "two modalities, got `image`",
    ),
    "modality named full": (lambda: two(full=masker), ValueError, f"{NAMES} `full`"),
    "modality with a tilde": (lambda: two(**{"~x": masker}), ValueError, f"{NAMES} `~x`"),
    "modality with a dot": (lambda: two(**{"a.b": masker}), ValueError, f"{NAMES} `a.b`"),
    "modality without a name": (lambda: two(**{"": masker}), ValueError, f"{NAMES} ``"),
    "modality named values": (lambda: two(values=Fill(x=0)), ValueError, f"{NAMES} `values`"),
    "modality named training": (lambda: two(training=Fill(x=0)), ValueError, f"{NAMES} `training`"),
    "modality named output": (lambda: two(output=Fill(x=0)), ValueError, f"{OPTIONS} `output`"),
    "modality named shared": (lambda: two(shared=Fill(x=0)), ValueError, f"{OPTIONS} `shared`"),
    "modality named unpack": (lambda: two(unpack=masker), ValueError, f"{OPTIONS} `unpack`"),
    "masker is a number": (lambda: two(0.0), TypeError, "`image` to be callable, got float"),
    "unknown view": (
        lambda: make_views(views=("full", "audio")),
        ValueError,
        "`views` among `full`, `image`, `text`, `~image`, `~text`, got `audio`",
    ),
    "repeated view": (
        lambda: make_views(views=("full", "text", "full")),
        ValueError,
        "`views` .*distinct.* got `full`, `text`, `full`",
    ),
    "no view": (lambda: make_views(views=()), ValueError, "`views` .* got none"),
    "zero views per forward": (
        lambda: make_views(views_per_forward=0),
        ValueError,
        "`views_per_forward` of at least 1, got 0",
    ),
    "fractional views per forward": (
        lambda: make_views(views_per_forward=1.5),
        TypeError,
        "`views_per_forward` to be an integer, got float",
    ),
    "output is a string": (
        lambda: make_views(output="logits"),
        TypeError,
        "`output` to be callable, got str",
    ),
}


@error_cases(ERRORS)
def test_rejects(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    assert_raises(call, kind, pattern)
