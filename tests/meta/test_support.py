"""Students, optimizers, weightings, and options that `MetaLearner` rejects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lookahead import LR, SAMPLES, FreeWeights, Student, Task, mlp
from torch import nn
from torch.optim import SGD, Adam, Rprop
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from msdlosses import MetaLearner

pytestmark = pytest.mark.usefixtures("double_precision")

Case = tuple[Callable[[], Any], type[Exception], str]


def make(
    student: Any = None,
    optimizer: Any = None,
    weighting: Any = None,
    weighting_optimizer: Any = None,
    **options: Any,
) -> MetaLearner:
    """Make a learner; all arguments that are left out are valid."""
    student = Student(mlp()) if student is None else student
    optimizer = optimizer or SGD(student.parameters(), LR)
    weighting = weighting or FreeWeights(SAMPLES, 3)
    weighting_optimizer = weighting_optimizer or SGD(weighting.parameters(), LR)
    return MetaLearner(student, optimizer, weighting, weighting_optimizer, **options)


def make_with_optimizer(make_optimizer: Callable[[nn.Module], Any], **options: Any) -> MetaLearner:
    student = Student(mlp())
    return make(student, make_optimizer(student), **options)


def make_with_changed_student(change: Callable[[nn.Module], object], **options: Any) -> MetaLearner:
    student = Student(mlp())
    change(student)
    return make(student, **options)


def own_sgd(student: nn.Module) -> SGD:
    return type("OwnSGD", (SGD,), {})(student.parameters(), LR)


def hooked_sgd(register: str) -> Callable[[nn.Module], SGD]:
    def make_optimizer(student: nn.Module) -> SGD:
        optimizer = SGD(student.parameters(), LR)
        getattr(optimizer, register)(lambda *args: None)
        return optimizer

    return make_optimizer


def sgd_with_another_parameter(student: nn.Module) -> SGD:
    return SGD([*student.parameters(), nn.Parameter(torch.ones(2))], LR)


def make_with_weighting_in_student_optimizer() -> MetaLearner:
    student, weighting = Student(mlp()), FreeWeights(3)
    return make(student, SGD([*student.parameters(), weighting.weights], LR), weighting)


def replace_forward(student: nn.Module) -> None:
    student.body[1].forward = nn.Linear(12, 6).forward


ARGUMENTS: dict[str, Case] = {
    "student, function": (lambda: make(lambda x: x, Adam([nn.Parameter(torch.ones(1))])),
                          TypeError, "`student` to be a module, got function"),
    "optimizer, str": (lambda: make_with_optimizer(lambda student: "SGD"), TypeError,
                       "`optimizer` to be one of `torch.optim.SGD`, `torch.optim.Adam`, .*got str"),
    "optimizer, Rprop": (lambda: make_with_optimizer(lambda student: Rprop(student.parameters())),
                         TypeError, "`optimizer` to be one of .* got Rprop"),
    "optimizer, subclass": (lambda: make_with_optimizer(own_sgd), TypeError,
                            "`optimizer` to be one of .* got OwnSGD"),
    "optimizer, step pre-hook": (lambda: make_with_optimizer(hooked_sgd("register_step_pre_hook")),
                                 ValueError, "`optimizer` without hooks"),
    "optimizer, step post-hook": (
        lambda: make_with_optimizer(hooked_sgd("register_step_post_hook")), ValueError,
        "`optimizer` without hooks"),
    "optimizer, with the weighting": (make_with_weighting_in_student_optimizer, ValueError,
                                      "no parameters of `weighting` in `optimizer`, got some"),
    "weighting, list": (
        lambda: make(weighting=[1.0], weighting_optimizer=SGD([torch.ones(1)], LR)), TypeError,
        "`weighting` to be a module, got list"),
    "weighting, no parameters": (
        lambda: make(weighting=nn.ReLU(), weighting_optimizer=SGD([torch.ones(1)], LR)),
        ValueError, "`weighting` to have parameters to learn, got none"),
    "weighting, frozen": (lambda: make(weighting=FreeWeights(3).requires_grad_(False)), ValueError,
                          "`weighting` to have parameters to learn, got none"),
    "weighting_optimizer, str": (lambda: make(weighting_optimizer="Adam"), TypeError,
                                 "`weighting_optimizer` to be an optimizer, got str"),
    "weighting_optimizer, others": (lambda: make(weighting_optimizer=Adam([torch.ones(1)])),
                                    ValueError, "`weighting_optimizer` to hold parameters of "
                                    "`weighting`, got others"),
    "engine": (lambda: make(engine="exact"), ValueError,
               "`engine` to be one of `auto`, `forward`, `double-backward`, "
               "`difference`, `higher`, got 'exact'"),
    "mode": (lambda: make(mode="offline"), ValueError,
             "`mode` to be one of `online`, `lookahead`, got 'offline'"),
    "update_every, 0": (lambda: make(update_every=0), ValueError,
                        "`update_every` of at least 1, got 0"),
    "update_every, float": (lambda: make(update_every=1.5), TypeError,
                            "`update_every` to be an integer, got float"),
    "warmup": (lambda: make(warmup=-1), ValueError, "`warmup` of at least 0, got -1"),
    "steps, 0": (lambda: make(steps=0, mode="lookahead"), ValueError,
                 "`steps` of at least 1, got 0"),
    "steps, online": (lambda: make(steps=2), ValueError,
                      "`steps` of 1 with mode='online', got 2. Set mode='lookahead'"),
    "steps, forward": (lambda: make(steps=2, mode="lookahead", engine="forward"), ValueError,
                       "`steps` of 1 with engine='forward', got 2"),
    "max_norm, 0": (lambda: make(max_norm=0), ValueError, r"`max_norm` in \(0, inf\), got 0"),
    "max_norm, str": (lambda: make(max_norm="1"), TypeError, "`max_norm` to be a number, got str"),
    "scaler": (lambda: make(scaler=2.0), TypeError, "`scaler` to be a GradScaler, got float"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_rejects_wrong_arguments(name: str) -> None:
    call, error, message = ARGUMENTS[name]
    with pytest.raises(error, match=f"Expected {message}"):
        call()


GRADIENT_HOOKS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "backward": (lambda s: s.body.register_full_backward_hook(print), "body"),
    "backward pre": (lambda s: s.body[3].register_full_backward_pre_hook(print), "body.3"),
    "parameter": (lambda s: s.body[1].bias.register_hook(print), "body.1.bias"),
    "accumulation": (lambda s: s.body[1].bias.register_post_accumulate_grad_hook(print),
                     "body.1.bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENT_HOOKS)
def test_rejects_hooks_on_gradients(name: str) -> None:
    register, place = GRADIENT_HOOKS[name]
    with pytest.raises(ValueError, match=f"without hooks on gradients.* got some at `{place}`"):
        make_with_changed_student(register)


def test_rejects_hooks_registered_after_construction() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    learner = task.learner(student, optimizer)
    handle = student.body.register_full_backward_hook(lambda *args: None)
    with pytest.raises(ValueError, match=r"without hooks on gradients.* got some at `body`"):
        learner.step(task.inner, task.outer)
    handle.remove()
    optimizer.register_step_pre_hook(lambda *args: None)
    with pytest.raises(ValueError, match="`optimizer` without hooks"):
        learner.gradient(task.inner, task.outer)


HIGHER: dict[str, Case] = {
    "another parameter": (
        lambda: make_with_optimizer(sgd_with_another_parameter, engine="higher"), ValueError,
        "only parameters of `student` in `optimizer`, for `higher`, got others"),
    "forward hook": (
        lambda: make_with_changed_student(
            lambda s: s.body[1].register_forward_hook(print), engine="higher"), ValueError,
        "without hooks.* got some at `body.1`"),
    "forward pre-hook": (
        lambda: make_with_changed_student(
            lambda s: s.register_forward_pre_hook(print), engine="higher"), ValueError,
        "without hooks.* got some at the student itself"),
    "replaced forward": (lambda: make_with_changed_student(replace_forward, engine="higher"),
                         ValueError, "replaced `forward`.* got some at `body.1`"),
    "compiled": (lambda: make(torch.compile(Student(mlp()), backend="eager"), engine="higher"),
                 TypeError, "neither compiled nor wrapped.* got some at the student itself"),
    "compiled in place": (
        lambda: make_with_changed_student(lambda s: s.compile(backend="eager"), engine="higher"),
        TypeError, "neither compiled nor wrapped.* got some at the student itself"),
    "compiled submodule": (
        lambda: make_with_changed_student(
            lambda s: s.body[1].compile(backend="eager"), engine="higher"), TypeError,
        "neither compiled nor wrapped.* got some at `body.1`"),
    "several steps": (
        lambda: make_with_changed_student(
            lambda s: s.register_forward_hook(print), steps=2, mode="lookahead"), ValueError,
        "without hooks.* got some at the student itself"),
}  # fmt: skip


@pytest.mark.parametrize("name", HIGHER)
def test_rejects_students_that_higher_does_not_copy_correctly(name: str) -> None:
    call, error, message = HIGHER[name]
    with pytest.raises(error, match=f"Expected .*{message}"):
        call()


@pytest.mark.parametrize(
    "register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook]
)
def test_rejects_hooks_on_all_optimizers(register: Any) -> None:
    handle = register(lambda *args: None)
    try:
        with pytest.raises(ValueError, match="`optimizer` without hooks"):
            make()
    finally:
        handle.remove()
    make()
