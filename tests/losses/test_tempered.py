"""Losses at a temperature: fixed, per sample, scheduled, or learned."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import laws
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import msdlosses
from msdlosses import (
    DistillationLoss,
    DISTLoss,
    JSDLoss,
    KDLoss,
    MSDLoss,
    MultiLabelKDLoss,
    ReverseKDLoss,
)
from msdlosses import functional as F
from msdlosses.losses._tempered import TemperedLoss

NAN = float("nan")
LOSSES: dict[str, Callable[..., DistillationLoss]] = {
    "kd": KDLoss,
    "standardized kd": lambda *args, **options: KDLoss(*args, standardize=True, **options),
    "reverse kd": ReverseKDLoss,
    "jsd": lambda *args, **options: JSDLoss(*args, beta=0.3, **options),
    "multi-label kd": MultiLabelKDLoss,
    "dkd": laws.AimedDKDLoss,
    "dist": DISTLoss,
}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "kd": F.kl_divergence,
    "standardized kd": lambda *args, **options: F.kl_divergence(*args, standardize=True, **options),
    "reverse kd": F.reverse_kl_divergence,
    "jsd": F.js_divergence,
    "multi-label kd": F.multilabel_kl_divergence,
    "dkd": laws.aimed_dkd,
    "dist": F.dist_loss,
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def test_every_public_loss_at_a_temperature_is_tested_here() -> None:
    public = [getattr(msdlosses, name) for name in msdlosses.__all__]
    losses = {loss for loss in public if inspect.isclass(loss) and issubclass(loss, TemperedLoss)}
    tested = {base for make in LOSSES.values() for base in type(make(1.0)).__mro__}
    assert losses <= tested, "add it to `LOSSES` and `FUNCTIONS`"
    assert LOSSES.keys() == FUNCTIONS.keys()


# One temperature per sample


@every_loss
def test_temperature_per_sample(name: str) -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    temperatures = torch.tensor([0.5, 1.0, 4.0])
    values = LOSSES[name](temperatures, reduction="none")(student, teacher)
    if name == "dist":  # its values depend on the other samples
        assert values.isfinite().all()
        return
    for n, tau in enumerate(temperatures.tolist()):
        single = LOSSES[name](tau, reduction="none")(student[n : n + 1], teacher[n : n + 1])
        assert_close(values[n : n + 1], single)


@every_loss
def test_temperature_per_sample_of_sequences_and_images(name: str) -> None:
    student, teacher = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    temperatures = torch.tensor([0.5, 1.0, 4.0])
    per_position = temperatures[:, None].expand(3, 4)
    expected = LOSSES[name](per_position, reduction="none")(student, teacher)
    assert_close(LOSSES[name](temperatures, reduction="none")(student, teacher), expected)
    classes_first = LOSSES[name](temperatures, dim=1, reduction="none")(student.mT, teacher.mT)
    assert_close(classes_first, expected)


# Scheduled temperatures


@every_loss
def test_temperature_tensor_is_a_buffer(name: str) -> None:
    student, teacher = torch.randn(2, 3, 5)
    loss = LOSSES[name](torch.tensor(2.0))
    assert_close(loss(student, teacher), LOSSES[name](2.0)(student, teacher))
    assert not list(loss.parameters())
    assert len(loss.state_dict()) == 1
    loss.temperature.fill_(3.0)
    assert_close(loss(student, teacher), LOSSES[name](3.0)(student, teacher))


@every_loss
def test_setting_the_temperature_writes_into_buffers_and_parameters(name: str) -> None:
    student, teacher = torch.randn(2, 3, 5)
    expected = LOSSES[name](3.0)(student, teacher)
    for loss in (
        LOSSES[name](2.0),
        LOSSES[name](torch.tensor(2.0)),
        LOSSES[name](torch.full((3,), 2.0)),
        LOSSES[name](2.0, learn_temperature=(1, 8)),
        LOSSES[name](torch.tensor(2.0), learn_temperature=(1, 8)),
    ):
        addresses = {key: value.data_ptr() for key, value in loss.state_dict().items()}
        loss.temperature = 3.0
        assert_close(loss(student, teacher), expected)
        assert {key: value.data_ptr() for key, value in loss.state_dict().items()} == addresses


def test_temperature_tensor_is_copied() -> None:
    temperature = torch.tensor(4.0)
    losses = [KDLoss(temperature), JSDLoss(temperature)]
    losses[0].temperature = 1.0
    assert temperature.item() == 4.0
    assert losses[1].temperature.item() == 4.0


# Learned temperatures


@every_loss
def test_learned_temperature_increases_the_loss_and_is_saved(name: str) -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    loss = LOSSES[name](2.0, learn_temperature=(1, 8)).double()
    before = loss(student, teacher)
    assert_close(before, LOSSES[name](2.0)(student, teacher))
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)
    before.backward()
    optimizer.step()
    assert loss(student, teacher) > before
    assert list(loss.state_dict()) == ["learned_temperature.position"]


@every_loss
@pytest.mark.parametrize("temperature", [torch.tensor(2.0), torch.tensor([0.7, 3.0])], ids=str)
def test_gradient_of_the_temperature_matches_finite_differences(
    name: str, temperature: Tensor
) -> None:
    student, teacher = torch.randn(2, 2, 3, dtype=torch.float64)

    def loss(tau: Tensor) -> Tensor:
        return FUNCTIONS[name](student, teacher, temperature=tau)

    tau = temperature.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, tau, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, tau)


def test_temperature_per_view() -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    criterion = {"full": KDLoss(4.0), "text": KDLoss(2.0, learn_temperature=(1, 8))}
    msd = MSDLoss(criterion).double()
    views = {"full": student, "text": student}, {"full": teacher, "text": teacher}
    expected = [F.kl_divergence(student, teacher, temperature=tau) for tau in (4.0, 2.0)]
    assert_close(msd.terms(*views), torch.stack(expected, -1))
    msd(*views).backward()
    assert [name for name, p in msd.named_parameters() if p.grad is not None] == [
        "criterion.text.learned_temperature.position"
    ]


@every_loss
def test_rescale_multiplies_by_temperature_squared(name: str) -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    plain = LOSSES[name](4.0, rescale=False)(student, teacher)
    assert_close(16 * plain, LOSSES[name](4.0)(student, teacher))


# Errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        pytest.param(lambda: KDLoss(-1.0), ValueError, "got -1.0", id="negative"),
        pytest.param(lambda: KDLoss(float("inf")), ValueError, "got inf", id="infinite"),
        pytest.param(
            lambda: KDLoss(torch.tensor([1.0, NAN])), ValueError, "got nan", id="nan for a sample"
        ),
        pytest.param(
            lambda: MultiLabelKDLoss(torch.tensor(0.0)), ValueError, "got 0", id="tensor of 0"
        ),
        pytest.param(
            lambda: JSDLoss(0.0, learn_temperature=(1, 8)),
            ValueError,
            "got 0.0",
            id="learned from 0",
        ),
        pytest.param(
            lambda: KDLoss(nn.Parameter(torch.tensor(2.0))),
            TypeError,
            "Set `learn_temperature`",
            id="parameter",
        ),
        pytest.param(
            lambda: setattr(KDLoss(2.0), "temperature", torch.tensor(2.0)),
            TypeError,
            r"to be a number, got float32 \(\)",
            id="number set to a tensor",
        ),
        pytest.param(
            lambda: setattr(KDLoss(2.0), "temperature", 0.0), ValueError, "got 0.0", id="set to 0"
        ),
    ],
)
def test_rejects_temperature(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"`temperature`.*{message}") as caught:
        make()
    assert caught.type is error
