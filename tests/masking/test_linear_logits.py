"""Views of a model that returns `LinearLogits`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from multimodal import make_batch, make_views
from torch import Tensor, nn

from msdlosses import KDLoss, LinearLogits, MSDLoss

WIDTH = 4


class Decoder(nn.Module):
    """Hidden states (N, 5, D) of pixels and tokens, and a head."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.image = nn.Linear(6, WIDTH)
        self.text = nn.Embedding(9, WIDTH)
        self.lm_head = nn.Linear(WIDTH, classes)

    def towers(self, pixels: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        return {"image": self.image(pixels.flatten(1)), "text": self.text(tokens)}

    def head(self, image: Tensor, text: Tensor) -> Tensor:
        return (text + image[:, None]).tanh()

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.head(**self.towers(pixels, tokens))

    def logits(self, hidden: Tensor) -> LinearLogits:
        return LinearLogits(hidden, self.lm_head.weight, self.lm_head.bias, softcap=2.0)


@pytest.mark.parametrize("views_per_forward", [None, 1, 2])
def test_each_view_has_its_hidden_states_and_the_same_head(views_per_forward: Any) -> None:
    model, batch = Decoder(), make_batch()
    logits = make_views(output=model.logits, views_per_forward=views_per_forward)(model, batch)
    hidden = make_views(views_per_forward=1)(model, batch)
    for view, expected in hidden.items():
        torch.testing.assert_close(logits[view].hidden, expected)
        assert logits[view].weight is model.lm_head.weight
        assert logits[view].softcap == 2.0


def test_late_fusion_of_hidden_states() -> None:
    model, batch = Decoder(), make_batch()
    views = make_views(output=model.logits)
    fused = views.late_fusion(model.towers, model.head, batch)
    for view, logits in views(model, batch).items():
        torch.testing.assert_close(fused[view].hidden, logits.hidden)


def test_model_may_return_linear_logits_itself() -> None:
    model, batch = Decoder(), make_batch()
    expected = make_views(output=model.logits)(model, batch)
    for wrap in (lambda x: x, lambda x: {"logits": x}):
        returned = make_views()(lambda wrap=wrap, **b: wrap(model.logits(model(**b))), batch)
        assert torch.equal(returned["text"].hidden, expected["text"].hidden)


def test_a_head_with_as_many_classes_as_stacked_samples_costs_no_second_pass() -> None:
    model, batch, calls = Decoder(classes=12), make_batch(4), []
    model.register_forward_hook(lambda *_: calls.append(1))
    views = make_views(output=lambda hidden: model.logits(hidden[:, 0]))
    assert views(model, batch)["full"].shape == (4, 12)
    assert len(calls) == 1


def test_rows_are_counted() -> None:
    model = Decoder()
    views = make_views(output=lambda hidden: model.logits(hidden[1:]))
    with pytest.raises(ValueError, match=r"3 x 4 rows from the model, got \(11, 5, 7\)"):
        views(model, make_batch())


def test_loss_and_gradients_equal_those_of_plain_logits() -> None:
    student, teacher, batch = Decoder().double(), Decoder().double(), make_batch()
    batch["pixels"] = batch["pixels"].double()
    msd = MSDLoss(KDLoss(2.0))
    results = []
    for plain in (False, True):

        def output(model: Decoder, plain: bool = plain) -> Any:
            return lambda h: model.logits(h).materialize() if plain else model.logits(h)

        s = make_views(output=output(student))(student, batch)
        t = make_views(output=output(teacher))(teacher, batch)
        loss = msd(s, t)
        results.append((loss, *torch.autograd.grad(loss, [*student.parameters()])))
    for linear, expected in zip(*results, strict=True):
        torch.testing.assert_close(linear, expected)
