"""Meta-gradients of a student whose logits are `LinearLogits`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.testing import assert_close

from msdlosses import KDLoss, LinearLogits, MSDLoss, WeightNet
from msdlosses.meta import meta_gradient

pytestmark = pytest.mark.usefixtures("double_precision")

VIEWS, SAMPLES, CLASSES = ("full", "text"), 5, 7


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> LinearLogits:
        return LinearLogits(self.body(inputs).tanh(), self.head.weight, self.head.bias)


@pytest.mark.parametrize("engine", ["forward", "double-backward"])
def test_gradient_equals_that_of_tensors(engine: str) -> None:
    inputs = {view: torch.randn(SAMPLES, 4) for view in VIEWS}
    teacher = {view: torch.randn(SAMPLES, CLASSES) for view in VIEWS}
    target = torch.randint(CLASSES, (SAMPLES,))
    student, net = Decoder(), WeightNet(VIEWS, num_classes=CLASSES, hidden=3)
    msd = MSDLoss(KDLoss(2.0, chunk_size=2), net)

    def linear(model: Decoder) -> Tensor:
        return msd({view: model(x) for view, x in inputs.items()}, teacher, target)

    def plain(model: Decoder) -> Tensor:
        return msd({view: model(x).materialize() for view, x in inputs.items()}, teacher, target)

    def outer(model: Decoder) -> Tensor:
        return F.cross_entropy(model(inputs["full"]).materialize(), target)

    optimizer = AdamW(student.parameters(), 0.1)
    results = [
        meta_gradient(inner, outer, student, optimizer, net, engine=engine)
        for inner in (linear, plain)
    ]
    assert_close(*results, rtol=1e-10, atol=1e-14)
