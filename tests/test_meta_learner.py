"""The learner's steps: what they move, what they leave, how they go on, and that they learn."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    LR,
    SAMPLES,
    STUDENTS,
    VIEWS,
    Attention,
    Free,
    Recurrent,
    Student,
    Task,
    assert_same,
    make_batch,
    mlp,
    plain_step,
    to_float,
)
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from msdlosses import MetaLearner, Weighting, WeightNet

ENGINES = ("forward", "double-backward", "higher")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
            "versions": [[p._version for p in module.parameters()] for module in modules],
            "modes": [[m.training for m in module.modules()] for module in modules],
            "hooks": [len(m._forward_hooks) for m in learner.weighting.modules()],
            "optimizers": [optimizer.state_dict(), learner.weighting_optimizer.state_dict()],
            "random": torch.get_rng_state(),
            "kernels": [
                torch.backends.cudnn.enabled,
                torch.backends.mha.get_fastpath_enabled(),
                torch._C._get_mkldnn_enabled(),
            ],
        }
    )


class HalfwayError(Exception):
    """A loss that fails half-way."""


@pytest.mark.parametrize("fails", [None, 1, 2, 3])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "body", [lambda: mlp(nn.BatchNorm1d(6), nn.Dropout(0.5)), Recurrent, lambda: Attention(0.5)]
)
def test_gradient_changes_no_state(
    body: Callable[[], nn.Module], engine: str, fails: int | None
) -> None:
    student, task = Student(body()), Task(Counting())
    optimizer = AdamW(student.parameters(), LR)
    learner = task.learner(student, optimizer, engine=engine)
    learner.step(task.inner, task.outer)
    (task.inner(student) + task.outer(student)).backward()  # leaves gradients behind
    student.body.eval()
    next(iter(student.body.children())).train()
    calls = iter(range(1, 9))

    def failing(loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        def function(model: nn.Module) -> Tensor:
            value = loss(model)
            if next(calls) == fails:
                raise HalfwayError
            return value

        return function

    storage = [p.data_ptr() for p in student.parameters()]
    buffers, before = [*student.buffers()], everything(student, optimizer, learner)
    try:
        learner.gradient(failing(task.inner), failing(task.outer))
    except HalfwayError:
        assert fails is not None
    assert_same(everything(student, optimizer, learner), before)
    assert all(a is b for a, b in zip(student.buffers(), buffers, strict=True))
    assert [p.data_ptr() for p in student.parameters()] == storage


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_leaves_the_graphs_of_others_whole(engine: str) -> None:
    """A graph that saved the parameters before can still be used after."""
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    loss, parameters = task.inner(student), list(student.parameters())
    expected = torch.autograd.grad(loss, parameters, retain_graph=True)
    learner.gradient(task.inner, task.outer)
    assert_same(torch.autograd.grad(loss, parameters), expected)


def test_gradient_can_be_taken_where_gradients_are_off() -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    expected = learner.gradient(task.inner, task.outer)
    with torch.no_grad():
        assert_same(learner.gradient(task.inner, task.outer), expected)
        learner.step(task.inner, task.outer)


# --- a step

ROUNDED = {"attention", "attention, dropout", "weight norm"}  # other kernels than a plain step's


@pytest.mark.parametrize("engine", ["auto", "forward", "higher"])
@pytest.mark.parametrize("name", STUDENTS)
def test_online_the_student_moves_as_in_a_plain_step(name: str, engine: str) -> None:
    if engine == "higher" and name in {"hooks", "replaced forward", "compiled", "parameters aside"}:
        pytest.skip("higher can't copy it")
    if engine == "forward" and name in {"weight norm", "spectral norm"}:
        pytest.skip("no forward mode")
    torch.manual_seed(1)
    student, task = Student(STUDENTS[name]()), Task()
    torch.manual_seed(1)
    twin, _ = Student(STUDENTS[name]()), Task()
    optimizers = [SGD(s.parameters(), LR, momentum=0.9, weight_decay=0.01) for s in (student, twin)]
    learner = task.learner(student, optimizers[0], engine=engine)
    for _ in range(2):
        weights = copy.deepcopy(task.weighting.state_dict())
        state = torch.get_rng_state()
        step = learner.step(task.inner, task.outer)
        after = torch.get_rng_state()

        moved = copy.deepcopy(task.weighting.state_dict())
        task.weighting.load_state_dict(weights)
        torch.set_rng_state(state)
        losses: list[Tensor] = []

        def inner(model: nn.Module, losses: list[Tensor] = losses) -> Tensor:
            losses.append(task.inner(model))
            return losses[-1]

        plain_step(twin, optimizers[1], inner)
        assert torch.equal(torch.get_rng_state(), after)  # as after one pass, not three
        torch.testing.assert_close(step.inner, losses[0].detach(), rtol=1e-12, atol=0)
        task.weighting.load_state_dict(moved)
    same = assert_near if name in ROUNDED else assert_same
    same(list(student.state_dict().items()), list(twin.state_dict().items()))
    same(list(optimizers[0].state_dict().items()), list(optimizers[1].state_dict().items()))


def assert_near(left: Any, right: Any) -> None:
    torch.testing.assert_close(dict(left), dict(right), rtol=1e-10, atol=1e-14)


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


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_steps_equal_a_loop_written_by_hand(mode: str, engine: str) -> None:
    student, task = Student(mlp()), Task()
    by_hand, twin = copy.deepcopy((student, task))
    learner = task.learner(student, SGD(student.parameters(), LR), mode=mode, engine=engine)
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


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_a_step_moves_statistics_and_optimizers_once(mode: str, engine: str) -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6))), Task(Counting())
    optimizer = AdamW(student.parameters(), LR)
    learner = task.learner(student, optimizer, mode=mode, engine=engine)
    tracked = student.body[2].num_batches_tracked
    for count in (1, 2, 3):
        learner.step(task.inner, task.outer)
        assert tracked == count
        assert student.body[2].num_batches_tracked is tracked
        assert task.weighting.norm.num_batches_tracked == count
        steps = {int(state["step"]) for state in optimizer.state.values()}
        steps |= {int(state["step"]) for state in learner.weighting_optimizer.state.values()}
        assert steps == {count}


class Partly(Weighting):
    """Some parameters are learned, one is frozen, one has no part in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.rand(3), requires_grad=False)
        self.spare = nn.Parameter(torch.rand(2))
        self.weights = nn.Parameter(torch.rand(3))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.weights + self.frozen


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


@pytest.mark.parametrize("max_norm", [0.01, 1e3])
@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_a_step_clips_the_student_alone(mode: str, max_norm: float) -> None:
    student, task = Student(mlp()), Task()
    twin = copy.deepcopy(student)
    learner = task.learner(student, SGD(student.parameters(), LR), mode=mode, max_norm=max_norm)
    weights = copy.deepcopy(task.weighting.state_dict())
    learner.step(task.inner, task.outer)
    if mode == "online":
        task.weighting.load_state_dict(weights)
    plain_step(twin, SGD(twin.parameters(), LR), task.inner, max_norm)
    assert_same(list(student.parameters()), list(twin.parameters()))


# --- what a step says


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_says_what_it_did(engine: str) -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    inner, weights = task.inner(student).item(), task.weighting.weights.detach().clone()
    step = learner.step(task.inner, task.outer)
    outer = task.outer(student).item()  # online, the look-ahead is the step that was taken
    assert step.engine == engine
    assert step.inner.item() == pytest.approx(inner, rel=1e-12)
    assert step.outer is not None
    assert step.outer.item() == pytest.approx(outer, rel=1e-12)
    assert not step.inner.requires_grad
    assert not step.outer.requires_grad
    assert list(step.weights) == list(VIEWS)
    for view, column in zip(VIEWS, weights.unbind(1), strict=True):
        share = column / column.sum()
        told = step.weights[view]
        torch.testing.assert_close(told.mean, column.mean())
        assert torch.equal(told.min, column.min())
        torch.testing.assert_close(told.entropy, -(share * share.log()).sum())


def test_weights_of_invalid_samples_are_not_told() -> None:
    student, task = Student(mlp()), Task()
    valid = torch.tensor([[True, True, False]] * SAMPLES)
    valid[0] = torch.tensor([False, True, False])
    forward = task.msd.forward
    task.msd.forward = lambda s, t, y: forward(s, t, y, valid=valid)
    learner = task.learner(student, SGD(student.parameters(), LR))
    weights = task.weighting.weights.detach().clone()
    told = learner.step(task.inner, task.outer).weights
    torch.testing.assert_close(told["full"].mean, weights[1:, 0].mean())
    torch.testing.assert_close(told["image"].mean, weights[:, 1].mean())
    assert told["text"].mean.isnan()


def test_weights_of_several_losses_are_told_together() -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    weights = task.weighting.weights.detach().clone()
    parts = [lambda model, rows=rows: task.part(model, rows) for rows in (slice(2), slice(0, 3))]
    told = learner.step(parts, task.outer).weights
    seen = torch.cat([weights[:2], weights[:3]])
    torch.testing.assert_close(told["text"].mean, seen[:, 2].mean())


# --- when it learns


def test_weights_are_learned_in_the_warm_up_and_then_at_every_so_many_steps() -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), every=3, warmup=2)
    steps = [learner.step(task.inner, task.outer) for _ in range(9)]
    assert [step.engine is not None for step in steps] == [
        True, True, True, False, False, True, False, False, True
    ]  # fmt: skip
    assert [step.outer is None for step in steps] == [step.engine is None for step in steps]
    assert steps[3].weights == {}


def test_steps_between_are_plain_steps() -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.5))), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), every=2)
    learner.step(task.inner, task.outer)
    twin, weights = copy.deepcopy((student, task.weighting.weights))
    state = torch.get_rng_state()
    learner.step(task.inner, task.outer)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    plain_step(twin, SGD(twin.parameters(), LR), task.inner)
    assert torch.equal(torch.get_rng_state(), after)
    assert_same(list(student.state_dict().items()), list(twin.state_dict().items()))
    assert torch.equal(task.weighting.weights, weights)


def part(task: Task, rows: slice, share: float, model: nn.Module) -> Tensor:
    return share * task.part(model, rows)


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_accumulated_gradients_equal_those_of_the_whole_batch(mode: str) -> None:
    results = []
    for parts in ([slice(None)], [slice(2), slice(2, 4)]):
        torch.manual_seed(0)
        student, task = Student(mlp()), Task(Free(3))
        learner = task.learner(student, AdamW(student.parameters(), LR, eps=1e-2), mode=mode)
        losses = [partial(part, task, rows, 1 / len(parts)) for rows in parts]
        for _ in range(3):
            learner.step(losses, task.outer)
        results.append([*student.parameters(), *task.weighting.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# --- going on


def trained(steps: int, stop: int | None = None, **options: Any) -> tuple[Any, list[Any]]:
    """Parameters and steps of a run, or of one that was stopped and resumed from its state."""
    torch.manual_seed(0)
    student = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.5)))
    task = Task(WeightNet(VIEWS, num_classes=CLASSES, hidden=4))
    optimizer = AdamW(student.parameters(), 0.05)
    learner = task.learner(student, optimizer, **options)
    told = []
    for n in range(steps):
        if n == stop:
            saved = [student.state_dict(), optimizer.state_dict(), learner.state_dict()]
            saved = copy.deepcopy([*saved, torch.get_rng_state()])
            student = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.5)))
            task.weighting = WeightNet(VIEWS, num_classes=CLASSES, hidden=4)
            task.msd.weighting = task.weighting
            optimizer = AdamW(student.parameters(), 0.05)
            learner = task.learner(student, optimizer, **options)
            for what, state in zip((student, optimizer, learner), saved[:3], strict=True):
                what.load_state_dict(state)
            torch.set_rng_state(saved[3])
        step = learner.step(task.inner, task.outer)
        told.append((step.inner, step.outer, step.engine))
    return [*student.state_dict().values(), *task.weighting.state_dict().values()], told


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("options", [{}, {"mode": "lookahead"}, {"every": 3, "warmup": 1}])
def test_a_resumed_run_equals_an_unbroken_one(options: dict[str, Any], stop: int) -> None:
    assert_same(trained(6, stop, **options), trained(6, **options))


def test_the_state_can_be_saved_as_weights_only(tmp_path: Any) -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    learner.step(task.inner, task.outer)
    torch.save(learner.state_dict(), tmp_path / "learner.pt")
    loaded = torch.load(tmp_path / "learner.pt", weights_only=True)
    learner.load_state_dict(loaded)
    with pytest.raises(KeyError, match="to hold `steps_taken`, got `weighting`, "):
        learner.load_state_dict({k: v for k, v in loaded.items() if k != "steps_taken"})


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_leaks(engine: str) -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.5))), Task()
    learner = task.learner(student, AdamW(student.parameters(), LR), engine=engine)
    counts = []
    steps = 200 if engine != "higher" else 10
    gc.collect()
    gc.disable()
    try:
        for n in range(steps):
            learner.step(task.inner, task.outer)
            if n in (2, steps - 1):
                counts.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
    finally:
        gc.enable()
    if engine != "higher":  # whose copies are in cycles
        assert counts[0] == counts[1]


# --- half precision


@pytest.mark.parametrize("engine", ["forward", "double-backward"])
@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_steps_in_one_autocast_region_equal_steps_in_their_own(mode: str, engine: str) -> None:
    results = []
    for together in (True, False):
        torch.manual_seed(0)
        student = Student(mlp())
        task = Task(WeightNet(VIEWS, num_classes=CLASSES))
        to_float(student, task)
        optimizer = SGD(student.parameters(), LR)
        learner = task.learner(student, optimizer, mode=mode, engine=engine)
        with torch.autocast("cpu", torch.bfloat16) if together else nullcontext():
            for _ in range(3):
                with nullcontext() if together else torch.autocast("cpu", torch.bfloat16):
                    learner.step(task.inner, task.outer)
        results.append([*student.parameters(), *task.weighting.parameters()])
    assert_same(results[0], results[1])


def scaled(scale: float | None, **options: Any) -> tuple[list[Tensor], MetaLearner]:
    """The parameters after three steps, with losses in float16 where there is a scale."""
    torch.manual_seed(0)
    student, task = Student(mlp()), Task()
    to_float(student, task)
    task.weighting.float()
    scaler = None if scale is None else GradScaler("cpu", init_scale=scale, growth_interval=2)
    optimizer = SGD(student.parameters(), 0.1, momentum=0.9)
    learner = task.learner(student, optimizer, scaler=scaler, **options)
    for _ in range(3):
        with nullcontext() if scale is None else torch.autocast("cpu", torch.float16):
            learner.step(task.inner, task.outer)
    return [*student.parameters(), *task.weighting.parameters()], learner


@pytest.mark.parametrize("engine", ["forward", "double-backward"])
@pytest.mark.parametrize("options", [{}, {"mode": "lookahead"}, {"max_norm": 0.1}, {"every": 2}])
def test_steps_with_a_gradient_scaler(options: dict[str, Any], engine: str) -> None:
    found, learner = scaled(2.0**12, engine=engine, **options)
    expected, _ = scaled(None, engine=engine, **options)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
    assert learner.scaler is not None
    assert learner.scaler.get_scale() == 2.0**13  # grown once


@pytest.mark.parametrize("engine", ["forward", "double-backward"])
def test_a_scaler_skips_steps_that_overflow(engine: str) -> None:
    found, learner = scaled(2.0**120, engine=engine)
    start, _ = scaled(None)
    torch.manual_seed(0)
    student, task = Student(mlp()), Task()
    fresh = [p.detach().float() for p in (*student.parameters(), *task.weighting.parameters())]
    assert_same([p.detach() for p in found], fresh)
    assert learner.scaler is not None
    assert learner.scaler.get_scale() == 2.0**117
    assert not torch.equal(start[0], found[0])


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


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_corrupted_samples_are_weighed_down_by_a_weight_net(optimizer: type[Optimizer]) -> None:
    task = learnable(WeightNet(VIEWS, num_classes=CLASSES), size=64)
    wrong = (torch.rand(64, 1) < 0.4).expand(64, 3)
    corrupted(task, wrong)
    student = Student(mlp())
    steps = Adam(task.weighting.parameters(), 0.01)
    learner = MetaLearner(student, optimizer(student.parameters(), 0.03), task.weighting, steps)
    for _ in range(60):
        learner.step(task.inner, task.outer)
    s = task.views(student, task.batch)
    weights = task.msd.parts(s, task.teacher, task.target).weights
    assert weights[wrong].mean() < 0.5 * weights[~wrong].mean()
