"""Losses whose gradient is not their derivative are rejected; correct losses are not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import cycle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lookahead import (
    ENGINES,
    EXACT,
    LR,
    SAMPLES,
    Student,
    Task,
    assert_matches_differences,
    mlp,
    relative_error,
    use_single_precision,
)
from students import STUDENTS, engines_for
from torch import Tensor, nn
from torch.autograd import Function
from torch.optim import SGD, Adam, AdamW, RMSprop

from msdlosses.meta import meta_gradient

each_engine = pytest.mark.parametrize("engine", ENGINES)
double = pytest.mark.usefixtures("double_precision")
MESSAGE = "a gradient that is its derivative"


class Body(nn.Module):
    """Applies a function to activations."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Rounded(Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class RoundedForward(Rounded):
    """The same with a forward mode, which returns the true derivative."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return torch.zeros_like(tangent)


class Reversed(Function):
    """Reverses gradients, as in adversarial training."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Swapped(Function):
    """Has two inputs and outputs and a context of its own; its backward confuses them."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        return factor * x, y.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.factor = inputs[2]

    @staticmethod
    def backward(ctx: Any, gx: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, None]:
        return gy * ctx.saved_tensors[0].cos(), ctx.factor * gx, None


class NotSwapped(Swapped):
    @staticmethod
    def backward(ctx: Any, gx: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, None]:
        return ctx.factor * gx, gy * ctx.saved_tensors[0].cos(), None


class Dropped(Function):
    """Dropout as a kernel, which draws random numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mask = (torch.rand_like(x) > 0.3).to(x)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0]


def two_inputs(function: type[Function]) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        left, right = function.apply(x, 2 * x, 1.5)
        return left + right

    return apply


def with_hook(hook: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        x.register_hook(hook)
        return x

    return apply


def with_node_hook(x: Tensor) -> Tensor:
    if x.grad_fn is not None:
        x.grad_fn.register_prehook(lambda gradients: tuple(-g for g in gradients))
    return x


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    """Its `no_grad` is invisible from Python."""
    with torch.no_grad():
        gate = x.sigmoid()
    return x * gate


WRONG: dict[str, Callable[[Tensor], Any]] = {
    "hook, reversed": with_hook(lambda g: -g),
    "hook, scaled": with_hook(lambda g: 1.5 * g),
    "hook, clipped": with_hook(lambda g: g.clamp(-1e-3, 1e-3)),
    "hook on a node": with_node_hook,
    "straight-through": Rounded.apply,
    "straight-through, forward mode": RoundedForward.apply,
    "gradient reversal": Reversed.apply,
    "two inputs": two_inputs(Swapped),
    "no_grad in a script": scripted,
}
NO_FORWARD_MODE = ("straight-through", "gradient reversal", "two inputs")


@double
@each_engine
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_rejects_gradients_that_are_not_derivatives(name: str, engine: str, kind: Any) -> None:
    student, task = Student(mlp(Body(WRONG[name]))), Task()
    error: Any = ValueError
    message = MESSAGE
    if engine == "forward" and name in NO_FORWARD_MODE:
        error, message = NotImplementedError, "'forward' can differentiate"
    with pytest.raises(error, match=message):
        task.gradient(student, kind(student.parameters(), lr=LR), engine)


@each_engine
@pytest.mark.parametrize("name", WRONG)
def test_rejects_them_in_single_precision(name: str, engine: str) -> None:
    student, task = Student(mlp(Body(WRONG[name]))), Task()
    with pytest.raises((ValueError, NotImplementedError)):
        task.gradient(student, AdamW(student.parameters(), lr=LR), engine)


@pytest.mark.parametrize("name", ["hook, reversed", "straight-through, forward mode"])
@each_engine
def test_rejects_them_under_autocast(name: str, engine: str) -> None:
    student, task = Student(mlp(Body(WRONG[name]))), Task()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=MESSAGE):
        task.gradient(student, AdamW(student.parameters(), lr=LR), engine)


@double
def test_auto_does_not_fall_back_from_wrong_gradients() -> None:
    student, task = Student(mlp(Body(WRONG["hook, reversed"]))), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    before = [p.clone() for p in student.parameters()]
    with pytest.raises(ValueError, match=MESSAGE):
        learner.step(task.inner, task.outer)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


@double
def test_hook_that_is_added_later_is_found() -> None:
    student, task = Student(mlp(Body(lambda x: body(x)))), Task()
    learner = task.learner(student, SGD(student.parameters(), 0.01))
    body: Callable[[Tensor], Tensor] = torch.tanh
    for _ in range(5):
        learner.step(task.inner, task.outer)
    body = with_hook(lambda g: -g)
    learner.step(task.inner, task.outer)  # not compared: the steps are 1, 2, 3, 5, 9, 17, ...
    for _ in range(2):
        learner.step(task.inner, task.outer)
    with pytest.raises(ValueError, match=MESSAGE):
        learner.step(task.inner, task.outer)


@double
def test_hook_that_cuts_the_graph_is_wrong_only_where_the_graph_is_used() -> None:
    student, task = Student(mlp(Body(with_hook(lambda g: g.detach().clone())))), Task()
    optimizer = SGD(student.parameters(), LR)
    for engine in ("double-backward", "higher"):
        with pytest.raises(NotImplementedError, match="a hook on a gradient"):
            task.gradient(student, optimizer, engine)
    assert_matches_differences(student, optimizer, task, ["forward"])


@double
@pytest.mark.parametrize("function", [two_inputs(NotSwapped), Dropped.apply])
def test_functions_without_forward_mode_are_compared_by_differences(function: Any) -> None:
    student, task = Student(mlp(Body(function))), Task()
    optimizer = SGD(student.parameters(), LR)
    parts = dict(vars(NotSwapped))
    assert_matches_differences(student, optimizer, task, ["double-backward", "higher"])
    assert dict(vars(NotSwapped)) == parts


class InPlace(Function):
    """Changes its input, so that it cannot be compared by differences."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


@double
def test_function_that_works_in_place_is_not_compared() -> None:
    student, task = Student(mlp(Body(lambda x: InPlace.apply(x.clone())))), Task()
    optimizer = SGD(student.parameters(), LR)
    assert_matches_differences(student, optimizer, task, ["double-backward"])


@double
def test_functions_are_not_compared_if_the_loss_computes_without_gradients() -> None:
    """The values without a gradient would move with the parameters in a difference."""

    def scaled(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean() + 1
        return two_inputs(NotSwapped)(x) / scale

    student, task = Student(mlp(Body(scaled))), Task()
    optimizer = SGD(student.parameters(), LR)
    task.gradient(student, optimizer, "double-backward")


def test_functions_are_not_compared_in_half_precision() -> None:
    student, task = Student(mlp(Body(swapped_in_half))), Task()
    with torch.autocast("cpu", torch.bfloat16):
        task.gradient(student, SGD(student.parameters(), LR), "double-backward")


def swapped_in_half(x: Tensor) -> Tensor:
    return two_inputs(NotSwapped)(x.bfloat16())


# Correct losses


OPTIMIZERS = {
    "SGD": lambda parameters: SGD(parameters, LR, momentum=0.9),
    "Adam": lambda parameters: Adam(parameters, 1e-3),
    "RMSprop": lambda parameters: RMSprop(parameters, 1e-3, centered=True),
}
NOT_IN_HALF = ("compiled", "LSTM", "GRU", "packed LSTM")
PRECISIONS = ("float64", "float32", "bfloat16", "float16")


@pytest.mark.parametrize("precision", PRECISIONS)
@given(
    name=st.sampled_from(
        [n for n in STUDENTS if n not in ("compiled", "LSTM", "GRU", "packed LSTM")]
    ),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    engine=st.sampled_from(ENGINES),
    scale=st.sampled_from([1e-12, 1e-4, 1.0, 1e4]),
    seed=st.integers(0, 2**16),
)
def test_correct_losses_raise_no_alarm(
    precision: str, name: str, optimizer: str, engine: str, scale: float, seed: int
) -> None:
    if engine not in engines_for(name):
        return
    torch.manual_seed(seed)
    student, task = Student(STUDENTS[name]()), Task()
    if precision == "float64":
        student.double()
        for values in (task.batch, task.held_out):
            values.update({k: v.double() for k, v in values.items()})
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    learner = task.learner(student, OPTIMIZERS[optimizer](student.parameters()), engine=engine)
    with torch.autocast("cpu", half) if half else nullcontext():
        for _ in range(2):
            learner.step(lambda model: scale * task.inner(model), task.outer)


@double
@pytest.mark.parametrize("engine", EXACT)
def test_zero_gradients_raise_no_alarm(engine: str) -> None:
    student, task = Student(mlp()), Task()
    gradient = meta_gradient(
        lambda model: 0 * task.inner(model),
        lambda model: 0 * task.outer(model),
        student,
        SGD(student.parameters(), LR),
        task.weighting,
        engine=engine,
    )
    assert not gradient[0].any()


@double
@pytest.mark.parametrize("engine", ENGINES)
def test_empty_and_unused_parameters_raise_no_alarm(engine: str) -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected = task.gradient(student, optimizer, engine)
    student.empty, student.unused = nn.Parameter(torch.ones(0, 3)), nn.Parameter(torch.ones(2))
    task.inner = lambda model: Task.inner(task, model) + model.empty.sum()
    actual = task.gradient(student, SGD(student.parameters(), LR), engine)
    assert relative_error(actual, expected) < 1e-12


# Another loss in each call


@double
@each_engine
def test_rejects_a_loss_that_changes_between_calls(engine: str) -> None:
    student, task = Student(mlp()), Task()
    batches = cycle([task.batch, task.held_out])

    def inner(model: nn.Module) -> Tensor:
        task.batch = {name: entry[:SAMPLES] for name, entry in next(batches).items()}
        return 1e-6 * Task.inner(task, model)

    task.inner = inner
    with pytest.raises(ValueError, match="the same loss from each call of `inner`"):
        task.gradient(student, SGD(student.parameters(), LR), engine)


# Losses that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@each_engine
def test_loss_that_is_not_finite_is_a_plain_step(engine: str, value: float) -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    step = learner.step(lambda model: value * task.inner(model), task.outer)
    assert not step.inner.isfinite()
    assert all(p.isnan().all() for p in student.body[3].parameters())


@pytest.mark.parametrize("engine", EXACT)
def test_scaler_skips_a_loss_that_is_nan(engine: str) -> None:
    student, task = Student(mlp()), Task()
    use_single_precision(student, task)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    learner = task.learner(student, SGD(student.parameters(), LR), scaler=scaler, engine=engine)
    before = [p.clone() for p in (*student.parameters(), *task.weighting.parameters())]
    learner.step(lambda model: float("nan") * task.inner(model), task.outer)
    after = (*student.parameters(), *task.weighting.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert scaler.get_scale() == 2.0
