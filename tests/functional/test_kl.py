"""KL divergence and reverse KL divergence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import laws
import pytest
import torch
from hypothesis import given
from strategies import INF, Pair, logit_pairs
from torch import Tensor
from torch.testing import assert_close

from msdlosses.functional import kl_divergence, reverse_kl_divergence

NAN = float("nan")
LOGITS = torch.zeros(4, 5)
WIDER = torch.zeros(4, 6)

double_pairs = logit_pairs(kinds=("ordinary", "confident"), dtypes=(torch.float64,))
both_directions = pytest.mark.parametrize("divergence", [kl_divergence, reverse_kl_divergence])


@given(pair=double_pairs)
def test_reverse_kl_swaps_student_and_teacher(pair: Pair) -> None:
    student, teacher = pair
    expected = kl_divergence(teacher, student, temperature=2.0)
    assert_close(reverse_kl_divergence(student, teacher, temperature=2.0), expected)


# Skew


@both_directions
@given(pair=double_pairs)
def test_tiny_skew_approaches_no_skew(divergence: Callable[..., Tensor], pair: Pair) -> None:
    assert_close(divergence(*pair, skew=1e-300), divergence(*pair), rtol=1e-6, atol=1e-9)


@both_directions
@given(pair=double_pairs)
def test_skew_bounds_the_divergence(divergence: Callable[..., Tensor], pair: Pair) -> None:
    assert (divergence(*pair, skew=0.1) <= -math.log(0.1) + 1e-9).all()


def test_skew_keeps_the_divergence_finite_if_a_class_is_ruled_out() -> None:
    student, teacher = torch.tensor([[0.0, -INF]]), torch.tensor([[0.0, 0.0]])
    assert kl_divergence(student, teacher).item() == INF
    assert reverse_kl_divergence(teacher, student).item() == INF
    expected = 0.5 * math.log(0.5 / 0.95) + 0.5 * math.log(0.5 / 0.05)
    for divergence, logits in (
        (kl_divergence, (student, teacher)),
        (reverse_kl_divergence, (teacher, student)),
    ):
        value, gradient = laws.value_and_gradient(
            lambda s, t, divergence=divergence: divergence(s, t, skew=0.1), *logits
        )
        assert_close(value.item(), expected)
        assert gradient.isfinite().all()


# Standardized logits


def test_standardized_kl_ignores_shift_and_scale() -> None:
    student, teacher = torch.randn(2, 4, 7, dtype=torch.float64)
    expected = kl_divergence(student, teacher, standardize=True)
    assert_close(kl_divergence(5 * student + 3, teacher / 4, standardize=True), expected)
    assert_close(kl_divergence(7 * teacher, teacher, standardize=True), torch.zeros(4).double())


def test_standardized_kl_agrees_with_numpy() -> None:
    student, teacher = torch.randn(2, 4, 7, dtype=torch.float64)
    standardized = [
        (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        for x in (student.numpy(), teacher.numpy())
    ]
    expected = kl_divergence(*map(torch.from_numpy, standardized), temperature=2.0)
    assert_close(kl_divergence(student, teacher, temperature=2.0, standardize=True), expected)


# Temperatures, which may be numbers or tensors


@pytest.mark.parametrize("compiled", [False, True])
def test_number_and_tensor_temperature_agree_on_extreme_logits(compiled: bool) -> None:
    """They have different code, also for missing classes and probabilities that underflow to 0."""
    divergence = kl_divergence
    if compiled:
        torch.compiler.reset()
        divergence = torch.compile(divergence, fullgraph=True, backend="aot_eager")
    extremes = torch.tensor([0.0, 1.0, -3e3, 3e4, -INF])
    student, teacher = torch.cartesian_prod(*[extremes] * 4).view(-1, 2, 2).unbind(1)
    has_classes = ~((student == -INF).all(1) | (teacher == -INF).all(1))
    student, teacher = student[has_classes].requires_grad_(), teacher[has_classes]
    number = divergence(student, teacher, temperature=2.0)
    tensor = kl_divergence(student, teacher, temperature=torch.tensor(2.0))
    assert_close(number, tensor)
    finite = number.isfinite()
    assert finite.any()
    assert (number[~finite] == INF).all()
    gradients = [torch.autograd.grad(x[finite].sum(), student)[0] for x in (number, tensor)]
    assert_close(*gradients)
    assert gradients[0].isfinite().all()


@pytest.mark.parametrize("temperature", [2.0, torch.tensor(2.0)], ids=["number", "tensor"])
def test_nan_logits_give_nan(temperature: float | Tensor) -> None:
    valid, broken = torch.tensor([[0.0, 1.0, -INF]]), torch.tensor([[0.0, NAN, -INF]])
    for student, teacher in ((valid, broken), (broken, valid)):
        assert kl_divergence(student, teacher, temperature=temperature).isnan()


def test_half_precision_temperature_is_upcast() -> None:
    student, teacher = torch.randn(2, 3, 5)
    temperature = torch.tensor([0.5, 2.0, 8.0])
    values = kl_divergence(student, teacher, temperature=temperature.half())
    assert values.dtype == torch.float32
    assert_close(values, kl_divergence(student, teacher, temperature=temperature))


# Errors

NOT_FLOATING = "`student` to be a floating-point tensor, got int64 (4, 5)"


@pytest.mark.parametrize(
    ("student", "teacher", "error", "message"),
    [
        pytest.param([[1.0, 2.0]], LOGITS, TypeError, "`student`", id="list"),
        pytest.param(LOGITS.long(), LOGITS, TypeError, NOT_FLOATING, id="integers"),
        pytest.param(LOGITS, WIDER, ValueError, "(4, 5) and (4, 6)", id="classes differ"),
        pytest.param(LOGITS, LOGITS[:1], ValueError, "(4, 5) and (1, 5)", id="would broadcast"),
        pytest.param(LOGITS.sum(), LOGITS.sum(), ValueError, "() and ()", id="scalars"),
        pytest.param(LOGITS, LOGITS.to("meta"), ValueError, "cpu and meta", id="devices differ"),
        pytest.param(LOGITS[:, :0], LOGITS[:, :0], ValueError, "(4, 0)", id="no classes"),
    ],
)
def test_rejects_logits(
    student: Tensor, teacher: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        kl_divergence(student, teacher)
    assert caught.type is error
    assert "`student`" in str(caught.value)


@pytest.mark.parametrize(
    ("temperature", "error", "message"),
    [
        pytest.param("2", TypeError, "got str", id="string"),
        pytest.param(0, ValueError, "got 0", id="zero"),
        pytest.param(NAN, ValueError, "got nan", id="nan"),
        pytest.param(torch.tensor(2), TypeError, "got int64 ()", id="integer tensor"),
        pytest.param(torch.ones(4, 5), ValueError, "got (4, 5)", id="per class"),
        pytest.param(torch.tensor([1.0, 0, 2, 1]), ValueError, "0 to 2", id="zero for a sample"),
        pytest.param(torch.ones(4, device="meta"), ValueError, "got meta", id="another device"),
    ],
)
def test_rejects_temperature(temperature: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        kl_divergence(LOGITS, LOGITS, temperature=temperature)
    assert caught.type is error
    assert "`temperature`" in str(caught.value)


@pytest.mark.parametrize(
    ("divergence", "options", "error", "message"),
    [
        (reverse_kl_divergence, {"temperature": None}, TypeError, "`temperature` to be a number"),
        (kl_divergence, {"dim": "C"}, TypeError, "`dim` to be an integer, got str"),
        (kl_divergence, {"dim": 2}, IndexError, "`dim` to be an axis of (4, 5), got 2"),
        (kl_divergence, {"skew": 1.0}, ValueError, "`skew` in [0, 1), got 1.0"),
        (reverse_kl_divergence, {"skew": -0.1}, ValueError, "`skew` in [0, 1), got -0.1"),
    ],
)
def test_rejects_options(
    divergence: Callable[..., Tensor],
    options: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        divergence(LOGITS, LOGITS, **options)
    assert caught.type is error


def test_temperature_is_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        kl_divergence(LOGITS, LOGITS, 2.0)


def test_vmap_and_compiled_code_do_not_check_values() -> None:
    """A check of values would break the graph; only eager code does it."""
    temperature = torch.tensor([1.0, 0.0, 1.0, 1.0])
    values = torch.func.vmap(lambda tau: kl_divergence(LOGITS[0], LOGITS[0], temperature=tau))(
        temperature
    )
    assert values[[0, 2, 3]].isfinite().all()
    torch.compiler.reset()
    compiled = torch.compile(kl_divergence, fullgraph=True, backend="eager")
    assert compiled(LOGITS, LOGITS, temperature=temperature)[[0, 2, 3]].isfinite().all()
