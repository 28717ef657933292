"""What can't be learned exactly is refused, by name, and nothing is lost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    LR,
    SAMPLES,
    Free,
    Objective,
    Recurrent,
    Student,
    Task,
    assert_same,
    mlp,
)
from torch import Tensor, nn
from torch.optim import SGD, Adam, NAdam
from torch.utils.checkpoint import checkpoint

from msdlosses import MetaLearner
from msdlosses.meta import meta_gradient

ENGINES = ("forward", "double-backward", "higher")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(
    student: Any = None,
    optimizer: Any = None,
    weighting: Any = None,
    weighting_optimizer: Any = None,
    **options: Any,
) -> MetaLearner:
    """A learner of which everything that is not given is in order."""
    student = Student(mlp()) if student is None else student
    optimizer = optimizer or SGD(student.parameters(), LR)
    weighting = weighting or Free(SAMPLES, 3)
    steps = weighting_optimizer or SGD(weighting.parameters(), LR)
    return MetaLearner(student, optimizer, weighting, steps, **options)


def with_optimizer(make_optimizer: Callable[[nn.Module], Any], **options: Any) -> MetaLearner:
    student = Student(mlp())
    return make(student, make_optimizer(student), **options)


def changed(change: Callable[[nn.Module], object], **options: Any) -> MetaLearner:
    """A learner of a student that something was done to."""
    student = Student(mlp())
    change(student)
    return make(student, **options)


def hooked_optimizer(register: str) -> MetaLearner:
    student = Student(mlp())
    optimizer = SGD(student.parameters(), LR)
    getattr(optimizer, register)(lambda *args: None)
    return make(student, optimizer)


def replace_forward(student: nn.Module) -> None:
    student.body[1].forward = nn.Linear(12, 6).forward


def foreign(student: nn.Module) -> SGD:
    return SGD([*student.parameters(), nn.Parameter(torch.ones(2))], LR)


def compiled_part(student: nn.Module) -> None:
    student.body[1].compile(backend="eager")


def in_the_optimizer() -> MetaLearner:
    student, weighting = Student(mlp()), Free(3)
    return make(student, SGD([*student.parameters(), weighting.weights], LR), weighting)


Case = tuple[Callable[[], Any], type[Exception], str]

HIGHER = {"engine": "higher"}

CONSTRUCTION: dict[str, Case] = {
    "student": (lambda: make(lambda x: x, Adam([nn.Parameter(torch.ones(1))])), TypeError,
                "`student` to be a module, got function"),
    "optimizer": (lambda: with_optimizer(lambda student: "SGD"), TypeError,
                  "`optimizer` to be one of `torch.optim.SGD`, `torch.optim.Adam`, .*got str"),
    "NAdam": (lambda: with_optimizer(lambda student: NAdam(student.parameters())), TypeError,
              "`optimizer` to be one of .* got NAdam"),
    "own SGD": (lambda: with_optimizer(
        lambda student: type("OwnSGD", (SGD,), {})(student.parameters(), LR)), TypeError,
        "`optimizer` to be one of .* got OwnSGD"),
    "before a step": (lambda: hooked_optimizer("register_step_pre_hook"), ValueError,
                      "`optimizer` without hooks"),
    "after a step": (lambda: hooked_optimizer("register_step_post_hook"), ValueError,
                     "`optimizer` without hooks"),
    "weighting": (lambda: make(weighting=[1.0], weighting_optimizer=SGD([torch.ones(1)], LR)),
                  TypeError, "`weighting` to be a module, got list"),
    "no parameters": (lambda: make(
        weighting=nn.ReLU(), weighting_optimizer=SGD([torch.ones(1)], LR)), ValueError,
        "`weighting` to have parameters to learn, got none"),
    "frozen": (lambda: make(weighting=Free(3).requires_grad_(False)), ValueError,
               "`weighting` to have parameters to learn, got none"),
    "learned twice": (in_the_optimizer, ValueError,
                      "`optimizer` to hold no parameters of `weighting`.* got some"),
    "its optimizer": (lambda: make(weighting_optimizer="Adam"), TypeError,
                      "`weighting_optimizer` to be an optimiser, got str"),
    "not its optimizer": (lambda: make(weighting_optimizer=Adam([torch.ones(1)])), ValueError,
                          "`weighting_optimizer` to hold parameters of `weighting`, got others"),
    "engine": (lambda: make(engine="exact"), ValueError,
               "`engine` to be one of `auto`, `forward`, `double-backward`, `higher`, got 'exact'"),
    "mode": (lambda: make(mode="offline"), ValueError,
             "`mode` to be one of `online`, `lookahead`, got 'offline'"),
    "every": (lambda: make(every=0), ValueError, "`every` of at least 1, got 0"),
    "every, a fraction": (lambda: make(every=1.5), TypeError,
                          "`every` to be an integer, got float"),
    "warmup": (lambda: make(warmup=-1), ValueError, "`warmup` of at least 0, got -1"),
    "steps": (lambda: make(steps=0, mode="lookahead"), ValueError, "`steps` of at least 1, got 0"),
    "steps online": (lambda: make(steps=2), ValueError,
                     "`steps` of 1 with mode='online', .*got 2: set mode='lookahead'"),
    "steps, exact": (lambda: make(steps=2, mode="lookahead", engine="forward"), ValueError,
                     "`steps` of 1 with engine='forward', got 2"),
    "max_norm": (lambda: make(max_norm=0), ValueError, "`max_norm` to be finite above 0, got 0"),
    "max_norm, a word": (lambda: make(max_norm="1"), TypeError,
                         "`max_norm` to be a number, got str"),
    "scaler": (lambda: make(scaler=2.0), TypeError, "`scaler` to be a GradScaler, got float"),
    "backward hook": (lambda: changed(lambda s: s.body.register_full_backward_hook(print)),
                      ValueError, "without hooks on its gradients.* got such on `body`"),
    "backward pre-hook": (lambda: changed(
        lambda s: s.body[3].register_full_backward_pre_hook(print)), ValueError,
        "without hooks on its gradients.* got such on `body.3`"),
    "parameter hook": (lambda: changed(lambda s: s.body[1].bias.register_hook(print)), ValueError,
                       "without hooks on its gradients.* got such on `body.1.bias`"),
    "accumulate hook": (lambda: changed(
        lambda s: s.body[1].bias.register_post_accumulate_grad_hook(print)), ValueError,
        "without hooks on its gradients.* got such on `body.1.bias`"),
    "higher, foreign": (lambda: with_optimizer(foreign, **HIGHER), ValueError,
                        "`optimizer` to hold parameters of `student` alone.* got others"),
    "higher, hook": (lambda: changed(lambda s: s.body[1].register_forward_hook(print), **HIGHER),
                     ValueError, "without hooks.* got such on `body.1`"),
    "higher, pre-hook": (lambda: changed(lambda s: s.register_forward_pre_hook(print), **HIGHER),
                         ValueError, "without hooks.* got such on `the student`"),
    "higher, forward": (lambda: changed(replace_forward, **HIGHER), ValueError,
                        "`forward` set on an instance.* got such on `body.1`"),
    "higher, compiled": (lambda: make(torch.compile(Student(mlp()), backend="eager"), **HIGHER),
                         TypeError, "neither compiled nor wrapped.* OptimizedModule at `the stud"),
    "higher, compiled in place": (lambda: changed(lambda s: s.compile(backend="eager"), **HIGHER),
                                  TypeError, "neither compiled nor wrapped.* Student at `the stud"),
    "higher, compiled part": (lambda: changed(compiled_part, **HIGHER), TypeError,
                              "neither compiled nor wrapped.* got Linear at `body.1`"),
    "unrolled, hook": (lambda: changed(lambda s: s.register_forward_hook(print), steps=2,
                                       mode="lookahead"), ValueError, "without hooks"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_what_can_not_be_learned_is_refused(name: str) -> None:
    call, kind, message = CONSTRUCTION[name]
    with pytest.raises(kind, match=f"Expected .*{message}"):
        call()


FUNCTION: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "student": ({"student": 1}, TypeError, "`student` to be a module, got int"),
    "optimizer": ({"optimizer": None}, TypeError, "`optimizer` to be one of .*got NoneType"),
    "weighting": ({"weighting": nn.ReLU()}, ValueError, "to have parameters to learn, got none"),
    "engine": ({"engine": None}, ValueError, "`engine` to be one of"),
    "steps": ({"steps": "3"}, TypeError, "`steps` to be an integer, got str"),
    "max_norm": ({"max_norm": float("nan")}, ValueError, "`max_norm` to be finite"),
    "inner": ({"inner": 1.0}, TypeError, "`inner` to be a function of the model, got float"),
    "inners": ({"inner": []}, ValueError, "`inner` to be at least one function, got none"),
    "outers": ({"outer": [1]}, TypeError, "`outer` to be a function of the model, got int"),
    "probe, higher": (
        {"probe": lambda model: 0, "engine": "higher"},
        ValueError,
        "no `probe` where `higher` unrolls the steps, got one",
    ),
    "probe": ({"probe": 1}, TypeError, "`probe` to be a function of the model, got int"),
}


@pytest.mark.parametrize("name", FUNCTION)
def test_the_function_checks_its_arguments(name: str) -> None:
    wrong, kind, message = FUNCTION[name]
    student, task = Student(mlp()), Task()
    right = {
        "inner": task.inner,
        "outer": task.outer,
        "student": student,
        "optimizer": SGD(student.parameters(), LR),
        "weighting": task.weighting,
    }
    with pytest.raises(kind, match=f"Expected .*{message}"):
        meta_gradient(**{**right, **wrong})


def unlearned(task: Task, student: nn.Module, model: nn.Module) -> Tensor:
    terms = task.msd.terms(task.views(model, task.batch), task.teacher)
    return (task.weighting.weights.detach() * terms).mean()


NO_PATH = "`outer` to reach the weighting .* got no path"

LOSSES: dict[str, tuple[str, Callable[..., Any], type[Exception], str]] = {
    "rows": ("inner", lambda task, student, model: model(**task.batch).sum(1), TypeError,
             r"`inner` to return a scalar tensor, got float64 \(4,\)"),
    "a number": ("inner", lambda task, student, model: 1.0, TypeError,
                 "`inner` to return a scalar tensor, got float"),
    "outer rows": ("outer", lambda task, student, model: model(**task.held_out), TypeError,
                   r"`outer` to return a scalar tensor, got float64 \(5, 3\)"),
    "outer None": ("outer", lambda task, student, model: None, TypeError,
                   "`outer` to return a scalar tensor, got NoneType"),
    "constant": ("inner", lambda task, student, model: torch.ones(()), ValueError, NO_PATH),
    "outer constant": ("outer", lambda task, student, model: torch.ones(()), ValueError, NO_PATH),
    "weights alone": ("inner", lambda task, student, model: task.weighting.weights.sum(),
                      ValueError, NO_PATH),
    "detached weights": ("inner", unlearned, ValueError, NO_PATH),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["gradient", "step"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_teach_nothing_are_refused(name: str, method: str, engine: str) -> None:
    which, loss, kind, message = LOSSES[name]
    student, task = Student(mlp(nn.BatchNorm1d(6))), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    losses: dict[str, Objective] = {"inner": task.inner, "outer": task.outer}
    losses[which] = lambda model: loss(task, student, model)
    before = copy.deepcopy([student.state_dict(), task.weighting.state_dict()])
    with pytest.raises(kind, match=f"Expected .*{message}"):
        getattr(learner, method)(**losses)
    assert_same([student.state_dict(), task.weighting.state_dict()], before)


@pytest.mark.parametrize("which", ["inner", "outer"])
def test_higher_refuses_losses_that_use_the_student_itself(which: str) -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine="higher")
    losses: dict[str, Any] = {"inner": task.inner, "outer": task.outer}
    own = losses[which]
    losses[which] = lambda model: own(student)
    with pytest.raises(ValueError, match=f"`{which}` to use the model that it is given"):
        learner.gradient(**losses)


def test_what_comes_after_construction_is_refused_too() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    learner = task.learner(student, optimizer)
    handle = student.body.register_full_backward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="without hooks"):
        learner.step(task.inner, task.outer)
    handle.remove()
    optimizer.register_step_pre_hook(lambda *args: None)
    with pytest.raises(ValueError, match="without hooks"):
        learner.gradient(task.inner, task.outer)


def test_sparse_gradients_are_refused() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(9, 4, sparse=True), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.words((2 * x[:, 2].abs()).long().clamp(max=8)).mean(1))

    student, task = Student(Words()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine="forward")
    with pytest.raises(ValueError, match="dense gradients, got sparse ones: set sparse=False"):
        learner.step(task.inner, task.outer)


@pytest.mark.parametrize("engine", ["forward", "double-backward"])
def test_a_reentrant_checkpoint_is_refused(engine: str) -> None:
    """Its parameters are out of the graph: they would not be trained, without a word."""

    class Reentrant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp()

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.layers, x.requires_grad_(), use_reentrant=True)

    student, task = Student(nn.Sequential(Reentrant(), nn.Linear(CLASSES, CLASSES))), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    with pytest.raises(ValueError, match="got one with use_reentrant=True"):
        learner.step(task.inner, task.outer)


def test_an_operation_without_a_formula_is_named() -> None:
    student, task = Student(nn.Sequential(Recurrent(), Bag())), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine="double-backward")
    with pytest.raises(NotImplementedError, match=r"'double-backward' can diff.*, got: .*bag"):
        learner.step(task.inner, task.outer)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return x + self.bag(torch.zeros(len(x), 2, dtype=torch.long)) * x
