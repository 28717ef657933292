"""A temperature that is learned against the student."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from msdlosses import JSDLoss, KDLoss


def learned(loss: nn.Module) -> nn.Parameter:
    (parameter,) = loss.parameters()
    return parameter


def test_gradient_is_the_reverse_of_the_derivative() -> None:
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    loss = KDLoss(2.0, learn_temperature=(1.0, 8.0)).double()
    loss(student, teacher).backward()
    step = 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            learned(loss).add_(sign * step)
            values.append(loss(student, teacher))
            learned(loss).sub_(sign * step)
    derivative = (values[0] - values[1]) / (2 * step)
    assert_close(learned(loss).grad, -derivative.reshape(1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_stays_within_its_bounds(direction: float) -> None:
    loss = KDLoss(2.0, learn_temperature=(1.0, 8.0))
    optimizer = torch.optim.SGD(loss.parameters(), lr=10.0)
    for _ in range(50):
        optimizer.zero_grad()
        (direction * loss.temperature).backward()
        optimizer.step()
    assert 1.0 <= loss.temperature.item() <= 8.0


def train(loss: KDLoss, steps: int = 300) -> tuple[KDLoss, float]:
    """Distill a linear teacher; return the divergence from it at temperature 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    teacher = 4 * x @ torch.randn(8, 5, generator=generator)
    torch.manual_seed(0)
    student = nn.Linear(8, 5)
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(student(x), teacher).backward()
        optimizer.step()
    log_q = student(x).log_softmax(-1)
    return loss, F.kl_div(log_q, teacher.softmax(-1), reduction="batchmean").item()


def test_does_not_collapse_when_the_student_learns_it_too() -> None:
    """Minimized with the loss, the temperature would run to 0 and take the loss with it."""
    loss, divergence = train(KDLoss(4.0, learn_temperature=(1.0, 10.0)))
    _, fixed = train(KDLoss(4.0))
    assert loss.temperature.item() > 4.0
    assert divergence < 2 * fixed + 1e-3


def test_a_temperature_at_a_bound_keeps_a_gradient() -> None:
    student, teacher = torch.randn(2, 6, 5)
    for start in (1.0, 8.0):
        loss = KDLoss(start, learn_temperature=(1.0, 8.0))
        loss(student, teacher).backward()
        assert learned(loss).grad is not None
        assert learned(loss).grad.abs() > 1e-6


def test_is_saved_and_moved_with_the_module() -> None:
    loss = KDLoss(2.0, learn_temperature=(1.0, 8.0))
    other = KDLoss(4.0, learn_temperature=(1.0, 8.0))
    other.load_state_dict(loss.state_dict())
    assert_close(other.temperature, torch.tensor(2.0))
    assert loss.double().temperature.dtype == torch.float64


@pytest.mark.parametrize(
    ("temperature", "bounds", "error", "match"),
    [
        pytest.param(2.0, True, TypeError, "`learn_temperature`.*got bool", id="not bounds"),
        pytest.param(2.0, (1.0,), ValueError, "`learn_temperature`", id="one bound"),
        pytest.param(2.0, (4.0, 1.0), ValueError, "low < high", id="reversed"),
        pytest.param(2.0, (0.0, 4.0), ValueError, "`learn_temperature`", id="zero"),
        pytest.param(2.0, (1.0, "4"), TypeError, "`learn_temperature`", id="string"),
        pytest.param(9.0, (1.0, 4.0), ValueError, r"`temperature` in \[1, 4\]", id="outside"),
        pytest.param(torch.ones(3), (1.0, 4.0), ValueError, "one `temperature`", id="several"),
    ],
)
def test_rejects(temperature: Any, bounds: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        JSDLoss(temperature, learn_temperature=bounds)
