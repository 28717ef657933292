"""The look-ahead gradient against differences of the real optimiser, `higher` and closed forms."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    LAMBDA,
    LR,
    SAMPLES,
    STUDENTS,
    VIEWS,
    Attention,
    Free,
    Recurrent,
    Student,
    Task,
    finite_differences,
    mlp,
    plain_step,
    relative,
    to_float,
)
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

from msdlosses import LearnedFill, ModalityViews, WeightNet
from msdlosses.meta import meta_gradient

EXACT = ("forward", "double-backward")
ENGINES = (*EXACT, "higher")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradient(
    student: nn.Module, optimizer: Optimizer, task: Task, engine: str = "auto", **options: Any
) -> tuple[Tensor, ...]:
    return meta_gradient(
        task.inner, task.outer, student, optimizer, task.weighting, engine=engine, **options
    )


def assert_exact(
    student: nn.Module,
    optimizer: Optimizer,
    task: Task,
    engines: Sequence[str] = EXACT,
    max_norm: float | None = None,
) -> None:
    expected = finite_differences(student, optimizer, task, max_norm=max_norm)
    for engine in engines:
        found = gradient(student, optimizer, task, engine, max_norm=max_norm)
        assert relative(found, expected) < 1e-6, engine


# --- every optimiser

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "SGD": (SGD, {}),
    "SGD, momentum": (SGD, {"momentum": 0.9}),
    "SGD, dampening": (SGD, {"momentum": 0.9, "dampening": 0.5}),
    "SGD, Nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "SGD, weight decay": (SGD, {"weight_decay": 0.1}),
    "SGD, maximize": (SGD, {"momentum": 0.9, "maximize": True, "weight_decay": 0.1}),
    "SGD, foreach": (SGD, {"momentum": 0.8, "weight_decay": 0.1, "foreach": True}),
    "SGD, fused": (SGD, {"momentum": 0.8, "weight_decay": 0.1, "fused": True}),
    "SGD, tensor": (SGD, {"lr": torch.tensor(0.3, dtype=torch.float64)}),
    "Adam": (Adam, {"eps": 1e-2}),
    "Adam, small eps": (Adam, {"eps": 1e-4}),
    "Adam, weight decay": (Adam, {"eps": 1e-2, "weight_decay": 0.1}),
    "Adam, decoupled": (Adam, {"eps": 1e-2, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "Adam, amsgrad": (Adam, {"eps": 1e-2, "amsgrad": True}),
    "Adam, maximize": (Adam, {"eps": 1e-2, "maximize": True, "weight_decay": 0.1}),
    "Adam, betas": (Adam, {"eps": 1e-2, "betas": (0.5, 0.7)}),
    "Adam, foreach": (Adam, {"eps": 1e-2, "foreach": True}),
    "Adam, fused": (Adam, {"eps": 1e-2, "fused": True}),
    "AdamW": (AdamW, {"eps": 1e-2, "weight_decay": 0.3}),
    "AdamW, amsgrad, maximize": (AdamW, {"eps": 1e-2, "amsgrad": True, "maximize": True}),
    "RMSprop": (RMSprop, {"eps": 1e-2}),
    "RMSprop, centred": (RMSprop, {"eps": 1e-2, "centered": True, "alpha": 0.8}),
    "RMSprop, momentum": (RMSprop, {"eps": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
    "RMSprop, maximize": (RMSprop, {"eps": 1e-2, "maximize": True}),
    "Adagrad": (Adagrad, {"eps": 1e-2}),
    "Adagrad, options": (Adagrad, {"lr_decay": 0.1, "weight_decay": 0.1, "maximize": True,
                                   "initial_accumulator_value": 0.1}),
    "Adadelta": (Adadelta, {"eps": 1e-2}),
    "Adadelta, options": (Adadelta, {"eps": 1e-2, "rho": 0.5, "weight_decay": 0.1,
                                     "maximize": True}),
}  # fmt: skip


def make_optimizer(name: str, parameters: Any) -> Optimizer:
    kind, options = OPTIMIZERS[name]
    if (
        "decoupled_weight_decay" in options
        and "decoupled_weight_decay" not in Adam([nn.Parameter(torch.ones(1))]).defaults
    ):
        pytest.skip("this torch has no such option")
    return kind(parameters, **{"lr": 0.1, **options})


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_is_that_of_the_real_optimizer(name: str, warm: int) -> None:
    student, task = Student(mlp()), Task()
    optimizer = make_optimizer(name, student.parameters())
    for _ in range(warm):
        plain_step(student, optimizer, task.inner)
    assert_exact(student, optimizer, task, ENGINES)


@pytest.mark.parametrize("name", ["SGD, maximize", "AdamW", "RMSprop, centred", "Adadelta"])
@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_gradient_with_clipping(name: str, max_norm: float) -> None:
    student, task = Student(mlp()), Task()
    optimizer = make_optimizer(name, student.parameters())
    plain_step(student, optimizer, task.inner)
    assert_exact(student, optimizer, task, ENGINES, max_norm)


def test_clipping_leaves_out_what_the_optimizer_does_not_hold() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.body[3].parameters(), LR)
    assert_exact(student, optimizer, task, ENGINES, max_norm=0.1)


@pytest.mark.parametrize("name", ["Adam", "RMSprop, centred", "Adagrad", "Adadelta"])
def test_gradient_where_some_gradients_are_zero(name: str) -> None:
    """The rows of an embedding that a batch does not use: a root of 0 is in their step."""
    student, task = Student(STUDENTS["embedding"]()), Task()
    optimizer = make_optimizer(name, student.parameters())
    assert_exact(student, optimizer, task)


# --- every student

NO_FORWARD_MODE = {"weight norm", "spectral norm"}
STOPS_GRADIENTS = {"spectral norm"}  # of its power iteration, which differences see
NOT_COPIED = {"hooks", "replaced forward", "compiled", "parameters aside"}


def engines_for(name: str) -> list[str]:
    left_out = {"forward"} if name in NO_FORWARD_MODE else set()
    return [e for e in ENGINES if e not in left_out | ({"higher"} if name in NOT_COPIED else set())]


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
@pytest.mark.parametrize("name", sorted(STUDENTS.keys() - STOPS_GRADIENTS))
def test_gradient_for_students_of_many_kinds(name: str, optimizer: type[Optimizer]) -> None:
    student, task = Student(STUDENTS[name]()), Task()
    steps = optimizer(student.parameters(), LR / 5, **({"eps": 1e-2} if optimizer is AdamW else {}))
    plain_step(student, steps, task.inner)
    assert_exact(student, steps, task, engines_for(name))


@pytest.mark.parametrize("name", STUDENTS)
def test_engines_agree_to_the_last_digits(name: str) -> None:
    student, task = Student(STUDENTS[name]()), Task(WeightNet(VIEWS, num_classes=CLASSES, hidden=5))
    optimizer = SGD(student.parameters(), LR, momentum=0.9)
    plain_step(student, optimizer, task.inner)
    found = [gradient(student, optimizer, task, engine) for engine in engines_for(name)]
    for other in found[1:]:
        assert relative(found[0], other) < 1e-9


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mlp", "batch norm", "attention", "LSTM"])
def test_gradient_in_single_precision(name: str, engine: str) -> None:
    student, task = Student(STUDENTS[name]()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected = gradient(student, optimizer, task, engine)
    to_float(student, task)
    found = gradient(student, optimizer, task, engine)
    assert found[0].dtype == torch.float32
    assert relative(found, expected) < 1e-4


@pytest.mark.parametrize("body", [lambda: mlp(nn.BatchNorm1d(6), nn.Dropout(0.5)), Attention])
def test_gradient_in_evaluation_mode(body: Callable[[], nn.Module]) -> None:
    student, task = Student(body()), Task()
    plain_step(student, SGD(student.parameters(), LR), task.inner)
    assert_exact(student.eval(), SGD(student.parameters(), LR), task, ENGINES)


@pytest.mark.parametrize("engine", EXACT)
def test_gradient_under_autocast(engine: str) -> None:
    """In bfloat16: near that of single precision, though `outer` sees other parameters."""
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    to_float(student, task)
    expected = gradient(student, optimizer, task, engine)
    with torch.autocast("cpu", torch.bfloat16):
        task.inner(student)  # fills the cache with casts of the parameters as they are
        found = gradient(student, optimizer, task, engine)
    assert 0 < relative(found, expected) < 0.03


# --- parameters


def test_gradient_with_groups_of_their_own_options() -> None:
    body, task = mlp(), Task()
    groups = [
        {"params": body[1].parameters(), "lr": 0.05},
        {"params": [body[3].weight], "momentum": 0.9, "weight_decay": 0.3, "maximize": True},
        {"params": [body[3].bias], "lr": 1.5, "momentum": 0.5, "nesterov": True},
    ]
    student = Student(body)
    optimizer = SGD(groups, LR)
    plain_step(student, optimizer, task.inner)
    assert_exact(student, optimizer, task, ENGINES)


def test_gradient_follows_a_schedule() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    before = gradient(student, optimizer, task)
    plain_step(student, optimizer, lambda model: 0 * task.inner(model))
    schedule.step()
    assert_exact(student, optimizer, task)
    assert gradient(student, optimizer, task)[0].norm() < 0.3 * before[0].norm()


def test_gradient_with_a_frozen_parameter() -> None:
    student, task = Student(mlp()), Task()
    student.body[1].weight.requires_grad_(False)
    assert_exact(student, SGD(student.parameters(), LR, weight_decay=0.1), task, ENGINES)


def test_gradient_with_some_parameters_out_of_the_optimizer() -> None:
    student, task = Student(mlp()), Task()
    assert_exact(student, SGD(student.body[3].parameters(), LR), task, ENGINES)


def test_gradient_with_a_parameter_that_is_not_used() -> None:
    student, task = Student(mlp()), Task()
    student.spare = nn.Linear(2, 2)
    assert_exact(student, SGD(student.parameters(), LR, weight_decay=0.1), task, ENGINES)


def test_gradient_with_parameters_of_other_modules() -> None:
    """What absent looks like is learned by the student's optimiser."""
    student, task = Student(mlp()), Task()
    task.views = ModalityViews(image=LearnedFill(pixels=(2, 4)), text=LearnedFill(tokens=(1, 4)))
    fills = list(task.views.parameters())
    optimizer = SGD([*student.parameters(), *fills], LR, momentum=0.9)
    expected = []
    for engine in EXACT:
        expected.append(gradient(student, optimizer, task, engine))
    assert relative(*expected) < 1e-12
    whole = nn.ModuleDict({"student": student, "views": task.views})  # for differences to go back
    alone = finite_differences(whole, optimizer, _Inside(task))
    assert relative(expected[0], alone) < 1e-6


class _Inside(Task):
    """The same task for a module that holds the student."""

    def __init__(self, task: Task) -> None:
        vars(self).update(vars(task))

    def inner(self, model: Any) -> Tensor:
        return super().inner(model["student"])

    def outer(self, model: Any) -> Tensor:
        return super().outer(model["student"])


@pytest.mark.parametrize("engine", EXACT)
def test_losses_may_use_the_student_itself(engine: str) -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected = gradient(student, optimizer, task, engine)
    found = meta_gradient(
        lambda model: task.inner(student), lambda model: task.outer(student),
        student, optimizer, task.weighting, engine=engine,
    )  # fmt: skip
    assert relative(found, expected) == 0


def test_gradient_when_the_student_holds_the_weighting() -> None:
    """As a LightningModule does."""
    student, task = Student(mlp()), Task()
    optimizer = SGD(list(student.parameters()), LR)
    expected = gradient(student, optimizer, task)
    student.weighting = task.weighting
    for engine in EXACT:
        assert relative(gradient(student, optimizer, task, engine), expected) < 1e-12


# --- weights


@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_for_a_weight_net(normalize: bool) -> None:
    weighting = WeightNet(VIEWS, num_classes=CLASSES, hidden=3, normalize=normalize)
    student, task = Student(mlp()), Task(weighting)
    assert_exact(student, SGD(student.parameters(), LR), task, ENGINES)


class Attached(Free):
    """Weights that depend on the terms, and so on the student, undetached."""

    def forward(self, terms: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.weights * terms.sigmoid()


def test_gradient_for_weights_that_depend_on_the_student() -> None:
    student, task = Student(mlp()), Task(Attached(SAMPLES, 3))
    assert_exact(student, SGD(student.parameters(), LR), task, ENGINES)


def test_gradient_when_the_held_out_loss_uses_the_weights_too() -> None:
    student, task = Student(mlp()), Task(Free(3))

    def outer(model: nn.Module) -> Tensor:
        return Task.outer(task, model) * task.weighting.weights.square().sum()

    task.outer = outer
    assert_exact(student, SGD(student.parameters(), LR), task, ENGINES)


def test_gradient_is_the_closed_form_for_plain_sgd() -> None:
    student, task = Student(mlp()), Task()
    parameters = list(student.parameters())
    terms = task.msd.terms(task.views(student, task.batch), task.teacher)
    own = [torch.autograd.grad(term, parameters, retain_graph=True) for term in terms.flatten()]
    ahead = copy.deepcopy(student)
    plain_step(ahead, SGD(ahead.parameters(), LR), task.inner)
    held_out = torch.autograd.grad(task.outer(ahead), list(ahead.parameters()))
    products = [sum((a * b).sum() for a, b in zip(held_out, g, strict=True)) for g in own]
    expected = -LR * LAMBDA / SAMPLES * torch.stack(products).reshape(SAMPLES, 3)
    for engine in ENGINES:
        (found,) = gradient(student, SGD(parameters, LR), task, engine)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


class Partly(Free):
    """Some parameters are learned, one is frozen, one has no part in the weights."""

    def __init__(self) -> None:
        super().__init__(3)
        self.frozen = nn.Parameter(torch.rand(3), requires_grad=False)
        self.spare = nn.Parameter(torch.rand(2))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.weights + self.frozen


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_has_an_entry_for_each_parameter_that_is_learned(engine: str) -> None:
    student, task = Student(mlp()), Task(Partly())
    weights, spare = gradient(student, SGD(student.parameters(), LR), task, engine)
    assert spare.tolist() == [0.0, 0.0]
    assert weights.abs().min() > 0


# --- parts of batches, and several


@pytest.mark.parametrize("engine", EXACT)
def test_a_probe_alone_carries_the_gradient(engine: str) -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6))), Task()
    optimizer = SGD(student.parameters(), LR)
    ahead = copy.deepcopy(student)
    plain_step(ahead, SGD(ahead.parameters(), LR), task.inner)
    held_out = torch.autograd.grad(task.outer(ahead), list(ahead.parameters()))

    def probe(model: nn.Module) -> Tensor:
        return task.part(model, slice(2))

    slopes = torch.autograd.grad(probe(student), list(student.parameters()), create_graph=True)
    product = sum((a * b).sum() for a, b in zip(held_out, slopes, strict=True))
    expected = torch.autograd.grad(-LR * product, task.weighting.weights)
    found = gradient(student, optimizer, task, engine, probe=probe)
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_several_losses_are_their_sum(engine: str) -> None:
    student, task = Student(mlp()), Task()
    optimizer = AdamW(student.parameters(), LR, eps=1e-2)
    halves = [lambda model, rows=rows: task.part(model, rows) / 2
              for rows in (slice(2), slice(2, 4))]  # fmt: skip
    task.weighting = task.msd.weighting = Free(3)
    expected = gradient(student, optimizer, task, engine)
    outers = [lambda model: task.outer(model) / 2] * 2
    found = meta_gradient(halves, outers, student, optimizer, task.weighting, engine=engine)
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("name", ["SGD, momentum", "AdamW", "RMSprop, centred"])
def test_several_steps_are_unrolled(name: str) -> None:
    student, task = Student(mlp()), Task()
    optimizer = make_optimizer(name, student.parameters())
    found = gradient(student, optimizer, task, steps=3)
    taken = plain_step

    def thrice(*args: Any) -> None:
        for _ in range(3):
            taken(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lookahead.plain_step", thrice)
        expected = finite_differences(student, optimizer, task)
    assert relative(found, expected) < 1e-6


# --- which engine


class Cubed(Function):
    """Differentiable twice, but not in forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 3 * slope * ctx.saved_tensors[0] ** 2


class Kernel(Cubed):
    """Its backward runs a kernel of its own, which records no graph."""

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 3 * slope.detach() * ctx.saved_tensors[0].detach() ** 2


class Once(Cubed):
    """Says so itself."""

    backward = staticmethod(once_differentiable(Cubed.backward))


class OnceForward(Once):
    """Its gradient has no derivative, but it knows forward mode."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 3 * tangent * ctx.saved_for_forward[0] ** 2

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_forward(x)
        return Cubed.forward(ctx, x)


class Through(nn.Module):
    def __init__(self, function: type[Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function.apply(x)


def test_auto_takes_double_backward_but_forward_mode_for_recurrent_students() -> None:
    for body, engine in ((mlp(), "double-backward"), (Recurrent(), "forward")):
        student, task = Student(body), Task()
        assert engine_of(student, task) == engine


def test_auto_takes_forward_mode_for_several_losses_and_for_a_probe() -> None:
    student, task = Student(mlp()), Task()
    assert engine_of(student, task, [task.inner, task.inner]) == "forward"
    assert engine_of(student, task, probe=task.inner) == "forward"


def engine_of(student: nn.Module, task: Task, inner: Any = None, **options: Any) -> str | None:
    learner = task.learner(student, SGD(student.parameters(), LR))
    return learner.step(inner or task.inner, task.outer, **options).engine


def test_auto_falls_back_to_forward_mode_and_says_so_once() -> None:
    student, task = Student(mlp(Through(OnceForward))), Task()
    optimizer = SGD(student.parameters(), LR)
    learner = task.learner(student, optimizer)
    with pytest.warns(UserWarning, match="'double-backward' can differentiate, got: .*OnceForward"):
        step = learner.step(task.inner, task.outer)
    assert step.engine == "forward"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learner.step(task.inner, task.outer).engine == "forward"
    assert_exact(student, optimizer, task, ["forward"])


def test_auto_falls_back_to_double_backward_and_says_so_once() -> None:
    student, task = Student(nn.Sequential(Recurrent(), Through(Cubed))), Task()
    optimizer = SGD(student.parameters(), LR)
    learner = task.learner(student, optimizer)
    with pytest.warns(UserWarning, match="'forward' can differentiate, got: .*jvp function"):
        step = learner.step(task.inner, task.outer)
    assert step.engine == "double-backward"
    assert learner.step(task.inner, task.outer).engine == "double-backward"
    assert_exact(student, optimizer, task, ["double-backward"])


@pytest.mark.parametrize("function", [Kernel, Once])
def test_a_function_that_cuts_the_gradient_is_refused(function: type[Function]) -> None:
    """And not passed over: its weights would be learned from a part of the gradient."""
    student, task = Student(mlp(Through(function))), Task()
    optimizer = SGD(student.parameters(), LR)
    with pytest.raises(NotImplementedError, match=f"backward of {function.__name__} is not"):
        gradient(student, optimizer, task, "double-backward")
    with pytest.raises(NotImplementedError, match=r"'forward' can differentiate.*jvp"):
        gradient(student, optimizer, task)


def test_forward_mode_needs_a_loss_that_can_be_repeated() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    batches = iter([task.batch, task.held_out])

    def inner(model: nn.Module) -> Tensor:
        task.batch = {k: v[:SAMPLES] for k, v in next(batches).items()}
        return Task.inner(task, model)

    with pytest.raises(ValueError, match="the same loss when it is called again"):
        meta_gradient(inner, task.outer, student, optimizer, task.weighting, engine="forward")


def test_compiled_losses_give_the_same_gradient() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected = gradient(student, optimizer, task)
    task.msd = torch.compile(task.msd, backend="aot_eager")
    task.msd(task.teacher, task.teacher)
    for engine in ENGINES:
        assert relative(gradient(student, optimizer, task, engine), expected) < 1e-12


def test_a_compiled_student_gives_the_same_gradient() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected = gradient(student, optimizer, task)
    whole = torch.compile(student, backend="aot_eager")
    task.inner(whole)
    for engine in EXACT:
        assert relative(gradient(whole, optimizer, task, engine), expected) < 1e-12


def test_fused_attention_does_without_its_fused_kernel() -> None:
    """Scaled dot products in a student of the user's own, with no layer to know it by."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.head = nn.Linear(4, 12), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Any:
            q, k, v = self.project(x).unsqueeze(1).chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(q, k, v).mean((1, 2)))

    student, task = Student(Own()), Task()
    assert_exact(student, SGD(student.parameters(), LR), task, ENGINES)
