"""The weightings that losses are tested with.

To test a new weighting, add it to `SCHEMES`. If it does not have a property, set a flag of its
`Scheme`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from strategies import make_views

from msdlosses import (
    DynamicWeightAverage,
    FixedWeighting,
    SaliencyWeighting,
    TeacherLossWeighting,
    UncertaintyWeighting,
    Weighting,
    WeightNet,
)

CLASSES = 5
Names = Sequence[str]


@dataclass(frozen=True)
class Scheme:
    """A function that makes a weighting, and the properties of that weighting."""

    make: Callable[[Names, int], Weighting]
    """Takes the names of the views and the number of classes."""
    bounded: bool = True
    """Its weights are at most 1."""
    independent: bool = True
    """A sample's weights do not depend on the other samples."""
    symmetric: bool = True
    """The order of the views does not matter."""


def population(names: Names) -> SaliencyWeighting:
    """Return a weighting that is fitted to another batch."""
    modalities = [name for name in names if name != "full"]
    return SaliencyWeighting(population=True).fit(make_views(*modalities, seed=1).teacher)


def dynamic(names: Names) -> DynamicWeightAverage:
    """Return a weighting after two epochs in which the terms of the views differed."""
    weighting = DynamicWeightAverage(names)
    for epoch in range(2):
        weighting(torch.rand(4, len(names)) + epoch, {}, names=names)
        weighting.step()
    return weighting


def fixed(names: Names) -> FixedWeighting:
    return FixedWeighting(**{name: (k + 1) / 4 for k, name in enumerate(sorted(names))})


SCHEMES = {
    "fixed": Scheme(lambda names, classes: fixed(names)),
    "saliency": Scheme(lambda names, classes: SaliencyWeighting(alpha=0.5)),
    "population saliency": Scheme(lambda names, classes: population(names)),
    "teacher loss": Scheme(lambda names, classes: TeacherLossWeighting(alpha=2.0)),
    "uncertainty": Scheme(lambda names, classes: UncertaintyWeighting(names)),
    "dynamic": Scheme(lambda names, classes: dynamic(sorted(names)), bounded=False),
    "weight net": Scheme(
        lambda names, classes: WeightNet(names, num_classes=classes),
        bounded=False,
        independent=False,
        symmetric=False,
    ),
    "plain weight net": Scheme(
        lambda names, classes: WeightNet(names, num_classes=classes, normalize=False),
        symmetric=False,
    ),
}
NONE = "none"
"""The name of an `MSDLoss` without weighting."""


def claiming(*claims: str) -> list[str]:
    """Return the names of the schemes whose flags are all set."""
    return [name for name, case in SCHEMES.items() if all(getattr(case, c) for c in claims)]


def make_weighting(scheme: str, names: Names, classes: int = CLASSES) -> Weighting | None:
    """Make the weighting with this name; None for `NONE`."""
    return None if scheme == NONE else SCHEMES[scheme].make(names, classes)


every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
every_weighting = pytest.mark.parametrize("scheme", [NONE, *SCHEMES])
