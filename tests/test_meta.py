"""The meta-learner against finite differences of the real optimiser, a closed form, and loops."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer
from torch.utils.checkpoint import checkpoint

from msdlosses import (
    Fill,
    KDLoss,
    MetaLearner,
    ModalityViews,
    MSDLoss,
    Weighting,
    WeightNet,
)

SAMPLES, CLASSES, LR, LAMBDA = 4, 3, 0.5, 0.5
CUDNN = torch.backends.cudnn.enabled  # as it is before any test

Objective = Callable[[nn.Module], Tensor]
Batch = dict[str, Tensor]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- students: pixels (N, 2, 4) and tokens (N, 1, 4) to logits (N, 3)


class Student(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.body(torch.cat([pixels, tokens], dim=1))
        return logits


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(x).mean(1))
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(x)[0][:, -1])
        return logits


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(x.flatten(1)).tanh()).tanh())
        return logits


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.layers, x, use_reentrant=False)


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), *between, nn.Tanh(), nn.Linear(6, CLASSES))


def weight_normed() -> nn.Module:
    body = mlp()
    nn.utils.parametrizations.weight_norm(body[1])
    return body


STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "batch norm": lambda: mlp(nn.BatchNorm1d(6)),
    "dropout": lambda: mlp(nn.Dropout(0.5)),
    "attention": Attention,
    "attention, dropout": lambda: Attention(0.2),
    "LSTM": Recurrent,
    "tied": Tied,
    "checkpointed": Checkpointed,
    "weight norm": weight_normed,
}


# --- one task, with weights for every sample and view


class Free(Weighting):
    """A free weight for each sample and view."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        return self.weights


def make_batch(size: int) -> Batch:
    return {"pixels": torch.randn(size, 2, 4), "tokens": torch.randn(size, 1, 4)}


class Task:
    """Data, views and the two losses; the weighting is in the inner one."""

    def __init__(self, weighting: Weighting | None = None) -> None:
        self.views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
        self.weighting = weighting or Free(SAMPLES, 3)
        self.msd = MSDLoss(KDLoss(temperature=2.0), self.weighting)
        self.batch, self.held_out = make_batch(SAMPLES), make_batch(5)
        self.target = torch.randint(CLASSES, (SAMPLES,))
        self.held_out_target = torch.randint(CLASSES, (5,))
        self.teacher = {view: 3 * torch.randn(SAMPLES, CLASSES) for view in self.views.names}

    def inner(self, model: Callable[..., Any]) -> Tensor:
        s = self.views(model, self.batch)
        task = F.cross_entropy(s["full"], self.target)
        return (1 - LAMBDA) * task + LAMBDA * self.msd(s, self.teacher, self.target)

    def outer(self, model: Callable[..., Any]) -> Tensor:
        return F.cross_entropy(self.views(model, self.held_out)["full"], self.held_out_target)

    def learner(self, student: nn.Module, optimizer: Optimizer, **options: Any) -> MetaLearner:
        steps = Adam(self.weighting.parameters(), 0.1)
        return MetaLearner(student, optimizer, self.weighting, steps, **options)


def plain_step(student: nn.Module, optimizer: Optimizer, loss: Objective) -> None:
    optimizer.zero_grad()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trained = [p for p in parameters if p.requires_grad]
    for p, grad in zip(
        trained, torch.autograd.grad(loss(student), trained, allow_unused=True), strict=True
    ):
        p.grad = grad
    optimizer.step()
    optimizer.zero_grad()


def finite_differences(
    student: nn.Module, optimizer: Optimizer, task: Task, eps: float = 1e-4
) -> list[Tensor]:
    """d outer / d weights through the step of the real optimiser, with the same dropout."""
    state = torch.get_rng_state()

    def looked_ahead() -> float:
        torch.set_rng_state(state)
        other, steps = copy.deepcopy((student, optimizer))
        plain_step(other, steps, task.inner)
        return task.outer(other).item()

    slopes = []
    with torch.no_grad():
        for parameter in task.weighting.parameters():
            slope = torch.zeros_like(parameter)
            for i in range(parameter.numel()):
                entry, before = parameter.view(-1)[i : i + 1], parameter.view(-1)[i].item()
                values = []
                for sign in (1, -1):
                    entry.fill_(before + sign * eps)
                    with torch.enable_grad():
                        values.append(looked_ahead())
                entry.fill_(before)
                slope.view(-1)[i] = (values[0] - values[1]) / (2 * eps)
            slopes.append(slope)
    torch.set_rng_state(state)
    return slopes


def relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    a, b = (torch.cat([t.flatten() for t in tensors]) for tensors in (found, expected))
    assert b.norm() > 1e-6
    return ((a - b).norm() / b.norm()).item()


def assert_exact(student: nn.Module, optimizer: Optimizer, task: Task) -> None:
    found = task.learner(student, optimizer).gradient(task.inner, task.outer)
    assert relative(found, finite_differences(student, optimizer, task)) < 1e-6


# --- the gradient is that of the real step

SGDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight decay": {"weight_decay": 0.1},
    "all": {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
    "foreach": {"momentum": 0.8, "weight_decay": 0.1, "foreach": True},
    "fused": {"momentum": 0.8, "weight_decay": 0.1, "fused": True},
    "tensor": {"lr": torch.tensor(0.3)},
}


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("options", SGDS)
def test_gradient_is_that_of_the_real_optimizer(options: str, warm: int) -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), **{"lr": LR, **SGDS[options]})
    for _ in range(warm):
        plain_step(student, optimizer, task.inner)
    assert_exact(student, optimizer, task)


@pytest.mark.parametrize("name", STUDENTS)
def test_gradient_for_students_of_many_kinds(name: str) -> None:
    student, task = Student(STUDENTS[name]()), Task()
    optimizer = SGD(student.parameters(), LR, momentum=0.9)
    plain_step(student, optimizer, task.inner)
    assert_exact(student, optimizer, task)


def to_float(student: nn.Module, task: Task) -> None:
    """Single precision, which has kernels of its own: oneDNN's LSTM, fused attention."""
    student.float()
    task.msd.float()
    for values in (task.batch, task.held_out, task.teacher):
        values.update({name: value.float() for name, value in values.items()})


@pytest.mark.parametrize("name", ["mlp", "batch norm", "attention", "LSTM"])
def test_gradient_in_single_precision(name: str) -> None:
    student, task = Student(STUDENTS[name]()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    expected = learner.gradient(task.inner, task.outer)
    to_float(student, task)
    found = learner.gradient(task.inner, task.outer)
    assert found[0].dtype == torch.float32
    assert relative(found, expected) < 1e-4


def test_gradient_in_evaluation_mode() -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.5))), Task()
    plain_step(student, SGD(student.parameters(), LR), task.inner)
    assert_exact(student.eval(), SGD(student.parameters(), LR), task)


def test_gradient_with_groups_of_their_own_options() -> None:
    body, task = mlp(), Task()
    groups = [
        {"params": body[1].parameters(), "lr": 0.05},
        {"params": [body[3].weight], "momentum": 0.9, "weight_decay": 0.3},
        {"params": [body[3].bias], "lr": 1.5, "momentum": 0.5, "nesterov": True},
    ]
    student = Student(body)
    optimizer = SGD(groups, LR)
    plain_step(student, optimizer, task.inner)
    assert_exact(student, optimizer, task)


def test_gradient_follows_a_schedule() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    learner = task.learner(student, optimizer)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    before = learner.gradient(task.inner, task.outer)
    plain_step(student, optimizer, lambda model: 0 * task.inner(model))
    schedule.step()
    after = learner.gradient(task.inner, task.outer)
    assert relative(after, finite_differences(student, optimizer, task)) < 1e-6
    assert after[0].norm() < 0.3 * before[0].norm()


def test_gradient_with_a_frozen_parameter() -> None:
    student, task = Student(mlp()), Task()
    student.body[1].weight.requires_grad_(False)
    assert_exact(student, SGD(student.parameters(), LR, weight_decay=0.1), task)


def test_gradient_with_some_parameters_out_of_the_optimizer() -> None:
    student, task = Student(mlp()), Task()
    assert_exact(student, SGD(student.body[3].parameters(), LR), task)


def test_gradient_with_a_parameter_that_is_not_used() -> None:
    student, task = Student(mlp()), Task()
    student.spare = nn.Linear(2, 2)
    assert_exact(student, SGD(student.parameters(), LR, weight_decay=0.1), task)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_for_a_weight_net(normalize: bool) -> None:
    names = ("full", "image", "text")
    weighting = WeightNet(names, num_classes=CLASSES, hidden=3, normalize=normalize)
    student, task = Student(mlp()), Task(weighting)
    assert_exact(student, SGD(student.parameters(), LR), task)


def test_gradient_is_the_closed_form_for_plain_sgd() -> None:
    student, task = Student(mlp()), Task()
    parameters = list(student.parameters())
    (found,) = task.learner(student, SGD(parameters, LR)).gradient(task.inner, task.outer)

    terms = task.msd.terms(task.views(student, task.batch), task.teacher)
    own = [torch.autograd.grad(term, parameters, retain_graph=True) for term in terms.flatten()]
    ahead = copy.deepcopy(student)
    plain_step(ahead, SGD(ahead.parameters(), LR), task.inner)
    held_out = torch.autograd.grad(task.outer(ahead), list(ahead.parameters()))
    products = [sum((a * b).sum() for a, b in zip(held_out, g, strict=True)) for g in own]
    expected = -LR * LAMBDA / SAMPLES * torch.stack(products).reshape(SAMPLES, 3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


class Partly(Weighting):
    """Some parameters are learned, one is frozen, one has no part in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.rand(3), requires_grad=False)
        self.spare = nn.Parameter(torch.rand(2))
        self.weights = nn.Parameter(torch.rand(3))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.weights + self.frozen


def test_gradient_has_an_entry_for_each_parameter_that_is_learned() -> None:
    student, task = Student(mlp()), Task(Partly())
    learner = task.learner(student, SGD(student.parameters(), LR))
    spare, weights = learner.gradient(task.inner, task.outer)
    assert spare.tolist() == [0.0, 0.0]
    assert weights.abs().min() > 0


def test_compiled_losses_give_the_same_gradient() -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    expected = learner.gradient(task.inner, task.outer)
    task.msd = torch.compile(task.msd, backend="aot_eager")
    task.msd(task.teacher, task.teacher)
    assert relative(learner.gradient(task.inner, task.outer), expected) < 1e-12


# --- the gradient leaves no trace


class Counting(Free):
    """A weighting with state that moves at every forward."""

    def __init__(self) -> None:
        super().__init__(SAMPLES, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, terms: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.weights * self.norm(terms.detach()).sigmoid()


def everything(student: nn.Module, optimizer: Optimizer, learner: MetaLearner) -> Any:
    """The state of all that takes part."""
    modules = [student, learner.weighting]
    return copy.deepcopy(
        {
            "states": [list(module.state_dict().items()) for module in modules],
            "grads": [[p.grad for p in module.parameters()] for module in modules],
            "asked": [[p.requires_grad for p in module.parameters()] for module in modules],
            "modes": [[m.training for m in module.modules()] for module in modules],
            "optimizers": [optimizer.state_dict(), learner.weighting_optimizer.state_dict()],
            "random": torch.get_rng_state(),
        }
    )


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert_same(list(left.items()), list(right.items()))
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


class HalfwayError(Exception):
    """A loss that fails half-way."""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "body", [lambda: mlp(nn.BatchNorm1d(6), nn.Dropout(0.5)), Recurrent, lambda: Attention(0.5)]
)
def test_gradient_changes_no_state(body: Callable[[], nn.Module], fails: bool) -> None:
    student, task = Student(body()), Task(Counting())
    optimizer = SGD(student.parameters(), LR, momentum=0.9)
    learner = task.learner(student, optimizer)
    learner.step(task.inner, task.outer)
    (task.inner(student) + task.outer(student)).backward()  # leaves gradients behind
    student.body.eval()
    next(iter(student.body.children())).train()

    def outer(model: nn.Module) -> Tensor:
        loss = task.outer(model)
        if fails:
            raise HalfwayError
        return loss

    buffers, before = [*student.buffers()], everything(student, optimizer, learner)
    if fails:
        with pytest.raises(HalfwayError):
            learner.gradient(task.inner, outer)
    else:
        learner.gradient(task.inner, outer)
    assert_same(everything(student, optimizer, learner), before)
    assert torch.backends.cudnn.enabled == CUDNN
    assert all(a is b for a, b in zip(student.buffers(), buffers, strict=True))


def test_gradient_can_be_taken_where_gradients_are_off() -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    expected = learner.gradient(task.inner, task.outer)
    with torch.no_grad():
        assert_same(learner.gradient(task.inner, task.outer), expected)
        learner.step(task.inner, task.outer)


# --- a step


@pytest.mark.parametrize("name", STUDENTS)
def test_online_the_student_moves_as_in_a_plain_step(name: str) -> None:
    student, task = Student(STUDENTS[name]()), Task()
    optimizer = SGD(student.parameters(), LR, momentum=0.9, weight_decay=0.01)
    twin, twin_optimizer = copy.deepcopy((student, optimizer))
    learner = task.learner(student, optimizer)
    for _ in range(2):
        weights = copy.deepcopy(task.weighting.state_dict())
        state = torch.get_rng_state()
        step = learner.step(task.inner, task.outer)
        after = torch.get_rng_state()

        moved = copy.deepcopy(task.weighting.state_dict())
        task.weighting.load_state_dict(weights)
        torch.set_rng_state(state)
        assert step.inner == task.inner(copy.deepcopy(twin)).detach()
        torch.set_rng_state(state)
        plain_step(twin, twin_optimizer, task.inner)
        assert torch.equal(torch.get_rng_state(), after)  # as after one pass, not three
        task.weighting.load_state_dict(moved)
    assert_same(list(student.state_dict().items()), list(twin.state_dict().items()))
    assert_same(optimizer.state_dict(), twin_optimizer.state_dict())


def reference(
    student: nn.Module, optimizer: Optimizer, steps: Optimizer, task: Task, mode: str
) -> None:
    """The loop by hand, for SGD without momentum, on the real optimisers."""
    named = dict(student.named_parameters())
    grads = torch.autograd.grad(task.inner(student), list(named.values()), create_graph=True)
    ahead = {n: p - LR * g for (n, p), g in zip(named.items(), grads, strict=True)}

    def look_ahead(**batch: Tensor) -> Any:
        return functional_call(student, ahead, (), batch)

    learned = list(task.weighting.parameters())
    gradients = torch.autograd.grad(task.outer(look_ahead), learned)
    if mode == "online":
        plain_step(student, optimizer, task.inner)
    for parameter, gradient in zip(learned, gradients, strict=True):
        parameter.grad = gradient
    steps.step()
    if mode == "lookahead":
        plain_step(student, optimizer, task.inner)


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_steps_equal_a_loop_written_by_hand(mode: str) -> None:
    student, task = Student(mlp()), Task()
    by_hand, twin = copy.deepcopy((student, task))
    learner = task.learner(student, SGD(student.parameters(), LR), mode=mode)
    optimizer = SGD(by_hand.parameters(), LR)
    steps = Adam(twin.weighting.parameters(), 0.1)
    for _ in range(5):
        learner.step(task.inner, task.outer)
        reference(by_hand, optimizer, steps, twin, mode)
    for one, other in ((student, by_hand), (task.weighting, twin.weighting)):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_modes_differ_in_whose_weights_the_student_moves_by() -> None:
    moved = {}
    for mode in ("online", "lookahead"):
        torch.manual_seed(0)
        student, task = Student(mlp()), Task()
        task.learner(student, SGD(student.parameters(), LR), mode=mode).step(task.inner, task.outer)
        moved[mode] = student.body[1].weight.detach()
    assert not torch.allclose(moved["online"], moved["lookahead"])


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_a_step_moves_batch_statistics_once(mode: str) -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6))), Task(Counting())
    learner = task.learner(student, SGD(student.parameters(), LR), mode=mode)
    for count in (1, 2, 3):
        learner.step(task.inner, task.outer)
        assert student.body[2].num_batches_tracked == count
        assert task.weighting.norm.num_batches_tracked == count


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_a_step_leaves_no_gradients(mode: str) -> None:
    student, task = Student(mlp()), Task(Partly())
    learner = MetaLearner(
        student,
        SGD(student.body[3].parameters(), LR),
        task.weighting,
        Adam([task.weighting.weights], 0.1),
        mode=mode,
    )
    learner.step(task.inner, task.outer)
    assert [p.grad for p in (*student.parameters(), *task.weighting.parameters())] == [None] * 7


def changes(module: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not value.equal(before[name])}


def test_a_step_trains_what_the_optimizers_hold_and_no_more() -> None:
    student, weighting = Student(mlp()), Partly()
    student.body[3].bias.requires_grad_(False)
    student.body[3].bias.grad = torch.ones(CLASSES)  # from before it was frozen
    student.body[1].bias.grad = torch.ones(6)  # for an optimiser of its own
    before = copy.deepcopy((student.state_dict(), weighting.state_dict()))
    optimizer = SGD(student.body[3].parameters(), LR)
    task, steps = Task(weighting), Adam([weighting.weights], 0.1)
    MetaLearner(student, optimizer, weighting, steps).step(task.inner, task.outer)
    assert changes(student, before[0]) == {"body.3.weight"}
    assert changes(weighting, before[1]) == {"weights"}
    assert student.body[1].bias.grad.tolist() == [1.0] * 6


@pytest.mark.parametrize("engine", ["auto", "higher"])
def test_a_step_says_what_it_did(engine: str) -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    inner = task.inner(student).item()
    step = learner.step(task.inner, task.outer)
    outer = task.outer(student).item()  # online, the look-ahead is the step that was taken
    assert step.engine == "higher"
    assert step.inner.item() == pytest.approx(inner, rel=1e-12)
    assert step.outer.item() == pytest.approx(outer, rel=1e-12)
    assert not step.inner.requires_grad
    assert not step.outer.requires_grad


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_steps_in_one_autocast_region_equal_steps_in_their_own(mode: str) -> None:
    results = []
    for together in (True, False):
        torch.manual_seed(0)
        student = Student(mlp())
        task = Task(WeightNet(("full", "image", "text"), num_classes=CLASSES))
        to_float(student, task)
        learner = task.learner(student, SGD(student.parameters(), LR), mode=mode)
        with torch.autocast("cpu", torch.bfloat16) if together else nullcontext():
            for _ in range(3):
                with nullcontext() if together else torch.autocast("cpu", torch.bfloat16):
                    learner.step(task.inner, task.outer)
        results.append([*student.parameters(), *task.weighting.parameters()])
    assert_same(results[0], results[1])


# --- it learns


def corrupted(task: Task, wrong: Tensor) -> None:
    """A teacher that knows the classes, but on some samples and views says another."""
    right = F.one_hot(task.target, CLASSES).double() * 6
    for view, column in zip(task.views.names, wrong.unbind(1), strict=True):
        task.teacher[view] = torch.where(column[:, None], right.roll(1, 1), right)


def learnable(weighting: Weighting, size: int) -> Task:
    task = Task(weighting)
    task.batch, task.held_out = make_batch(size), make_batch(64)
    centre = torch.randn(CLASSES, 3, 4)
    task.target, task.held_out_target = (torch.randint(CLASSES, (n,)) for n in (size, 64))
    for batch, target in (
        (task.batch, task.target),
        (task.held_out, task.held_out_target),
    ):
        batch["pixels"] = batch["pixels"] / 2 + centre[target, :2]
        batch["tokens"] = batch["tokens"] / 2 + centre[target, 2:]
    return task


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_a_corrupted_view_is_weighed_down(mode: str) -> None:
    task = learnable(Free(3), size=48)
    corrupted(task, torch.tensor([[False, True, False]]).expand(48, 3))
    student = Student(mlp())
    learner = task.learner(student, SGD(student.parameters(), LR), mode=mode)
    with torch.no_grad():
        task.weighting.weights.fill_(1.0)
    for _ in range(30):
        learner.step(task.inner, task.outer)
    full, image, text = task.weighting.weights.tolist()
    assert image < min(full, text) - 1.0


def test_corrupted_samples_are_weighed_down_by_a_weight_net() -> None:
    task = learnable(WeightNet(("full", "image", "text"), num_classes=CLASSES), size=64)
    wrong = (torch.rand(64, 1) < 0.4).expand(64, 3)
    corrupted(task, wrong)
    student = Student(mlp())
    learner = task.learner(student, SGD(student.parameters(), LR))
    for _ in range(30):
        learner.step(task.inner, task.outer)
    s = task.views(student, task.batch)
    weights = task.msd.parts(s, task.teacher, task.target).weights
    assert weights[wrong].mean() < 0.5 * weights[~wrong].mean()


# --- errors


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


def with_optimizer(make_optimizer: Callable[[nn.Module], Any]) -> MetaLearner:
    student = Student(mlp())
    return make(student, make_optimizer(student))


def hooked(hook: Callable[[nn.Module], object]) -> MetaLearner:
    student = Student(mlp())
    hook(student)
    return make(student)


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


Case = tuple[Callable[[], Any], type[Exception], str]

CONSTRUCTION: dict[str, Case] = {
    "student": (lambda: make(lambda x: x, Adam([nn.Parameter(torch.ones(1))])), TypeError,
                "`student` to be a module, got function"),
    "optimizer": (lambda: with_optimizer(lambda student: "SGD"), TypeError,
                  "`optimizer` to be a torch.optim.SGD, got str"),
    "Adam": (lambda: with_optimizer(lambda student: Adam(student.parameters())), TypeError,
             "`optimizer` to be a torch.optim.SGD, got Adam"),
    "own SGD": (lambda: with_optimizer(
        lambda student: type("OwnSGD", (SGD,), {})(student.parameters(), LR)), TypeError,
        "`optimizer` to be a torch.optim.SGD, got OwnSGD"),
    "maximize": (lambda: with_optimizer(
        lambda student: SGD(student.parameters(), LR, maximize=True)), ValueError,
        "`optimizer` that minimises, got maximize=True"),
    "foreign": (lambda: with_optimizer(foreign), ValueError,
                "`optimizer` to hold parameters of `student` alone, got others"),
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
    "its optimizer": (lambda: make(weighting_optimizer="Adam"), TypeError,
                      "`weighting_optimizer` to be an optimiser, got str"),
    "not its optimizer": (lambda: make(weighting_optimizer=Adam([torch.ones(1)])), ValueError,
                          "`weighting_optimizer` to hold parameters of `weighting`, got others"),
    "engine": (lambda: make(engine="exact"), ValueError,
               "`engine` to be one of `auto`, `higher`, got 'exact'"),
    "mode": (lambda: make(mode="offline"), ValueError,
             "`mode` to be one of `online`, `lookahead`, got 'offline'"),
    "hook": (lambda: hooked(lambda s: s.body[1].register_forward_hook(print)), ValueError,
             "without hooks.* got such on `body.1`"),
    "pre-hook": (lambda: hooked(lambda s: s.register_forward_pre_hook(print)), ValueError,
                 "without hooks.* got such on `the student`"),
    "backward hook": (lambda: hooked(lambda s: s.body.register_full_backward_hook(print)),
                      ValueError, "without hooks.* got such on `body`"),
    "backward pre-hook": (lambda: hooked(
        lambda s: s.body[3].register_full_backward_pre_hook(print)), ValueError,
        "without hooks.* got such on `body.3`"),
    "parameter hook": (lambda: hooked(lambda s: s.body[1].bias.register_hook(print)), ValueError,
                       "without hooks.* got such on the parameter `body.1.bias`"),
    "accumulate hook": (lambda: hooked(
        lambda s: s.body[1].bias.register_post_accumulate_grad_hook(print)), ValueError,
        "without hooks.* got such on the parameter `body.1.bias`"),
    "forward": (lambda: hooked(replace_forward), ValueError,
                "`forward` set on an instance.* got such on `body.1`"),
    "compiled": (lambda: make(torch.compile(Student(mlp()), backend="eager")), TypeError,
                 "neither compiled nor wrapped.* got OptimizedModule at `the student`"),
    "compiled in place": (lambda: hooked(lambda s: s.compile(backend="eager")), TypeError,
                          "neither compiled nor wrapped.* got Student at `the student`"),
    "compiled part": (lambda: hooked(compiled_part), TypeError,
                      "neither compiled nor wrapped.* got Linear at `body.1`"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_what_can_not_be_learned_is_refused(name: str) -> None:
    call, kind, message = CONSTRUCTION[name]
    with pytest.raises(kind, match=f"Expected .*{message}"):
        call()


def test_a_distributed_student_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        student = nn.parallel.DistributedDataParallel(Student(mlp()))
        with pytest.raises(TypeError, match="got DistributedDataParallel at `the student`"):
            make(student)
    finally:
        torch.distributed.destroy_process_group()


class Aside(nn.Module):
    """A student that also keeps a parameter where no module sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()
        self.aside = [self.layers[3].weight]

    def forward(self, x: Tensor) -> Any:
        return self.layers(x) + x.sum() * self.aside[0].sum()


def unlearned(task: Task, student: nn.Module, model: nn.Module) -> Tensor:
    terms = task.msd.terms(task.views(model, task.batch), task.teacher)
    return (task.weighting.weights.detach() * terms).mean()


OWN = "use the model that it is given, got a loss that depends on the student's own parameters"
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
    "student": ("inner", lambda task, student, model: task.inner(student), ValueError,
                f"`inner` to {OWN}"),
    "both": ("inner", lambda task, student, model: task.inner(model) + task.outer(student),
             ValueError, f"`inner` to {OWN}"),
    "outer student": ("outer", lambda task, student, model: task.outer(student), ValueError,
                      f"`outer` to {OWN}"),
    "constant": ("inner", lambda task, student, model: torch.ones(()), ValueError, NO_PATH),
    "outer constant": ("outer", lambda task, student, model: torch.ones(()), ValueError, NO_PATH),
    "weights alone": ("inner", lambda task, student, model: task.weighting.weights.sum(),
                      ValueError, NO_PATH),
    "detached weights": ("inner", unlearned, ValueError, NO_PATH),
}  # fmt: skip


@pytest.mark.parametrize("method", ["gradient", "step"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_teach_nothing_are_refused(name: str, method: str) -> None:
    which, loss, kind, message = LOSSES[name]
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    losses: dict[str, Objective] = {"inner": task.inner, "outer": task.outer}
    losses[which] = lambda model: loss(task, student, model)
    parameters = [*student.parameters(), *task.weighting.parameters()]
    before = copy.deepcopy(parameters)
    with pytest.raises(kind, match=f"Expected .*{message}"):
        getattr(learner, method)(**losses)
    assert_same(parameters, before)


def test_a_student_that_keeps_parameters_aside_is_refused() -> None:
    student, task = Student(Aside()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    with pytest.raises(ValueError, match=f"Expected `inner` to {OWN}"):
        learner.gradient(task.inner, task.outer)


def test_what_comes_after_construction_is_refused_too() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    learner = task.learner(student, optimizer)
    handle = student.body.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="without hooks"):
        learner.step(task.inner, task.outer)
    handle.remove()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match=re.escape("parameters of `student` alone")):
        learner.gradient(task.inner, task.outer)
