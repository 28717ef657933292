"""Calls that are drawn at random: a number, or an error that says what was wrong, never a NaN."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, FINITE, generators
from torch import Tensor, nn

import msdlosses
from msdlosses import DistillationLoss, HintLoss, MSDLoss, SaliencyWeighting, Weighting
from msdlosses import functional as F

NAMES = ("full", "image", "text")
TAUS = (0.1, 0.5, 1.0, 4.0, 100.0)
ERRORS = (TypeError, ValueError, KeyError, IndexError)
NAN = float("nan")

LOSSES = [
    value
    for name in msdlosses.__all__
    if inspect.isclass(value := getattr(msdlosses, name))
    and issubclass(value, DistillationLoss)
    and value is not DistillationLoss
]
FUNCTIONS = [
    getattr(F, name)
    for name in F.__all__
    if "student" in inspect.signature(getattr(F, name)).parameters
]


def mostly(good: st.SearchStrategy[Any], *wrong: Any) -> st.SearchStrategy[Any]:
    """What fits, and now and then what does not."""
    return st.integers(0, 9).flatmap(lambda k: st.sampled_from(wrong) if k == 9 else good)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    axes = draw(mostly(st.sampled_from([1, 2]), 0, 3))
    batch = tuple(draw(st.integers(0, 4)) for _ in range(axes))
    return (*batch, draw(mostly(st.sampled_from([1, 2, 5]), 0)))


@st.composite
def logits(draw: st.DrawFn, shape: Sequence[int]) -> Any:
    """Finite, up to 6e4."""
    if draw(st.integers(0, 29)) == 29:
        return draw(st.sampled_from([None, 3, [1.0], torch.ones(2, 5, dtype=torch.long)]))
    if 0 in shape:
        return torch.zeros(shape)
    kind = draw(st.sampled_from(sorted(FINITE)))
    values = FINITE[kind](shape, draw(generators()))[draw(st.integers(0, 1))]
    return values.to(draw(st.sampled_from(DTYPES)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    """A student's and a teacher's, mostly of one shape."""
    shape = draw(shapes())
    other = draw(mostly(st.just(shape), (*shape[:-1], 3), (4, 5), ()))
    return draw(logits(shape)), draw(logits(other))


@st.composite
def temperatures(draw: st.DrawFn, samples: int) -> tuple[Any, float]:
    """What is handed in as temperature, and the least of its values."""
    tau = draw(st.sampled_from(TAUS))
    form = draw(mostly(st.sampled_from(["number", "number", "tensor", "samples"]), "wrong"))
    if form == "wrong":
        wrong = [0, -1.0, NAN, "2", None, True, torch.zeros(()), torch.ones(7), torch.tensor(2)]
        return draw(st.sampled_from(wrong)), tau
    if form == "number":
        return tau, tau
    return torch.full((samples,) if form == "samples" else (), tau), tau


@st.composite
def masks(draw: st.DrawFn, shape: Sequence[int]) -> Any:
    if draw(st.booleans()):
        return None
    shape = draw(mostly(st.just(tuple(shape)), (3,), ()))
    shape = shape[: draw(st.integers(1, max(len(shape), 1)))]
    mask = torch.rand(shape, generator=draw(generators())) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return draw(mostly(st.just(mask), mask.float(), [True]))


@st.composite
def targets(draw: st.DrawFn, shape: Sequence[int], classes: int) -> Any:
    if draw(st.integers(0, 3)) == 3:
        return None
    indices = torch.randint(max(classes, 1), tuple(shape), generator=draw(generators()))
    wrong = (indices - 1, indices + 1, indices.float(), indices.bool(), indices.flatten()[:1], "y")
    return draw(mostly(st.just(indices), *wrong))


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "skew": mostly(st.sampled_from([0.0, 0.1, 0.5]), 1.0, -0.1, NAN, "0.1"),
    "beta": mostly(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), 8.0, -1.0, NAN, None),
    "alpha": mostly(st.sampled_from([0.0, 1.0, 3.0]), -1.0, NAN, "1"),
    "inter": mostly(st.sampled_from([0.0, 1.0]), -1.0, NAN, None),
    "intra": mostly(st.sampled_from([0.0, 1.0]), -1.0, NAN, None),
    "distance": mostly(st.sampled_from([0.0, 1.0]), -1.0, NAN, "1"),
    "angle": mostly(st.sampled_from([0.0, 2.0]), -1.0, NAN, "1"),
    "dim": mostly(st.sampled_from([-1, -1, 1, 0]), 7, 0.5, "C"),
    "ignore_index": mostly(st.sampled_from([None, None, 1, -100]), 0.5, "pad"),
    "reduction": mostly(st.sampled_from(["mean", "sum", "none"]), "avg", None, 3),
    "standardize": st.booleans(),
    "rescale": st.booleans(),
    "normalize": st.booleans(),
    "learn_temperature": st.booleans(),
    "projection": mostly(st.sampled_from([None, nn.Linear(5, 3)]), "linear", nn.Linear(3, 5)),
}


def draw_options(data: st.DataObject, call: Callable[..., Any], samples: int) -> tuple[Any, float]:
    """Options that a function or a loss has, and the least temperature among them."""
    names = set(inspect.signature(call).parameters)
    if inspect.isclass(call):
        names |= {n for base in call.__mro__ for n in inspect.signature(base.__init__).parameters}
    options = {
        name: data.draw(VALUES[name], label=name)
        for name in sorted(names & set(VALUES))
        if data.draw(st.booleans())
    }
    tau = 1.0
    if "temperature" in names:
        options["temperature"], tau = data.draw(temperatures(samples), label="temperature")
    return options, tau


def told(call: Callable[[], Any]) -> Any:
    """What a call gives; None where it says what was wrong with it, in the one form."""
    try:
        return call()
    except ERRORS as error:
        message = str(error.args[0])
    assert re.match(r"(?s)Expected .*, got ", message), message
    return None


def no_nan(value: Any, leaves: Sequence[Any]) -> None:
    """Neither in the value nor, where there is one, in the gradient."""
    if value is None:
        return
    assert not value.isnan().any()
    if value.requires_grad:
        wanted = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
        for gradient in torch.autograd.grad(value.sum(), wanted, allow_unused=True):
            assert gradient is None or not gradient.isnan().any()


def shrink(values: Any, tau: float) -> Any:
    """So that over tau it stays within what it was."""
    return values * min(tau, 1.0) if isinstance(values, Tensor) else values


def leaf(values: Any) -> Any:
    floating = isinstance(values, Tensor) and values.is_floating_point()
    return values.detach().requires_grad_() if floating else values


def samples_of(values: Any) -> int:
    return len(values) if isinstance(values, Tensor) and values.ndim else 1


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@given(data=st.data())
def test_a_function_gives_numbers_or_says_what_is_wrong(
    function: Callable[..., Tensor], data: st.DataObject
) -> None:
    student, teacher = data.draw(pairs())
    options, tau = draw_options(data, function, samples_of(student))
    student, teacher = (
        x * min(tau, 1.0) if isinstance(x, Tensor) else x for x in (student, teacher)
    )
    student = leaf(student)
    shape = tuple(student.shape) if isinstance(student, Tensor) and student.ndim else (1,)
    arguments = [student, teacher]
    if "target" in inspect.signature(function).parameters:
        arguments.append(data.draw(targets(shape[:-1], shape[-1])))
    if "valid" in inspect.signature(function).parameters:
        options["valid"] = data.draw(masks(shape[:-1]))
    no_nan(told(lambda: function(*arguments, **options)), [student])


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_loss_gives_numbers_or_says_what_is_wrong(
    kind: type[DistillationLoss], data: st.DataObject
) -> None:
    student, teacher = data.draw(pairs())
    options, tau = draw_options(data, kind, samples_of(student))
    loss = told(lambda: kind(**options))
    if loss is None:
        return
    student, teacher = (
        x * min(tau, 1.0) if isinstance(x, Tensor) else x for x in (student, teacher)
    )
    student = leaf(student)
    shape = tuple(student.shape) if isinstance(student, Tensor) and student.ndim else (1,)
    target = data.draw(targets(shape[:-1], shape[-1]))
    valid = data.draw(masks(shape[:-1]))
    if isinstance(loss, HintLoss) and loss.projection is not None:
        fits = isinstance(student, Tensor) and student.dtype == torch.float32 and student.ndim
        if not fits or student.shape[-1] != loss.projection.in_features:
            return  # the projection is the user's own, and so are its errors
    no_nan(told(lambda: loss(student, teacher, target, valid=valid)), [student])


@st.composite
def view_mappings(draw: st.DrawFn) -> tuple[Any, Any, tuple[int, ...]]:
    """A student's and a teacher's logits by view, which fit each other most of the time."""
    shape = draw(shapes().filter(lambda shape: len(shape) > 1))
    other = st.just(shape)
    names = draw(mostly(st.just(NAMES), ("full", "text"), ("text",), ()))

    def side(names: Sequence[str]) -> dict[str, Any]:
        drawn = (draw(logits(draw(mostly(other, (4, 5), (3,))))) for _ in names)
        return dict(zip(names, drawn, strict=True))

    student, teacher = side(names), side(draw(mostly(st.just(NAMES), ("full",), ())))
    if draw(st.integers(0, 19)) == 19:
        teacher = draw(st.sampled_from([None, torch.ones(4, 5)]))
    return student, teacher, shape


WEIGHTING_OPTIONS: Mapping[str, st.SearchStrategy[Any]] = {
    "alpha": mostly(st.sampled_from([0.1, 1.0, 10.0]), 0.0, NAN, "1"),
    "temperature": mostly(st.sampled_from([0.5, 2.0]), 0.0, NAN, None),
    "num_classes": mostly(st.sampled_from([1, 2, 5]), 0, 2.5),
    "hidden": mostly(st.sampled_from([1, 8]), 0, None),
    "normalize": st.booleans(),
    "names": mostly(st.just(NAMES), ("full", "text"), (), "full", ("full", "full"), 3),
}
WEIGHTINGS = [
    value
    for name in msdlosses.__all__
    if inspect.isclass(value := getattr(msdlosses, name))
    and issubclass(value, Weighting)
    and value is not Weighting
]


def draw_weighting(data: st.DataObject) -> Any:
    kind = data.draw(st.sampled_from([None, *WEIGHTINGS]))
    if kind is None:
        return None
    if kind is msdlosses.FixedWeighting:
        weights = mostly(st.sampled_from([0.0, 0.5, 2.0]), -1.0, NAN, "1")
        names = data.draw(mostly(st.just(NAMES), ("full",), ()))
        return told(lambda: kind(**{name: data.draw(weights) for name in names}))
    options = {
        name: data.draw(WEIGHTING_OPTIONS[name], label=name)
        for name in inspect.signature(kind).parameters
        if name in WEIGHTING_OPTIONS
    }
    return told(lambda: kind(**options))


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_an_msd_loss_gives_numbers_or_says_what_is_wrong(
    kind: type[DistillationLoss], data: st.DataObject
) -> None:
    student, teacher, shape = data.draw(view_mappings())
    weighting = draw_weighting(data)
    options = {
        "reduction": data.draw(VALUES["reduction"]),
        "average": data.draw(mostly(st.sampled_from(["sample", "batch"]), "all", None)),
    }
    criterion = kind(ignore_index=data.draw(st.sampled_from([None, None, 1])))
    if data.draw(st.booleans()):
        criterion = dict.fromkeys(data.draw(mostly(st.just(NAMES), ("full",), ())), criterion)
    msd = told(lambda: MSDLoss(criterion, weighting, **options))
    if msd is None:
        return
    student = {view: leaf(values) for view, values in student.items()}
    target = data.draw(targets(shape[:-1], shape[-1]))
    valid = data.draw(masks((*shape[:-1], max(len(student), 1))))
    value = told(lambda: msd(student, teacher, target, valid=valid))
    no_nan(value, [*student.values(), *msd.parameters()])


@given(data=st.data())
def test_a_report_of_saliencies_gives_numbers_or_says_what_is_wrong(data: st.DataObject) -> None:
    _, teacher, shape = data.draw(view_mappings())
    report = told(lambda: F.modality_saliency(teacher))
    for values in (report or {}).values():
        assert not values.isnan().any()
    valid = data.draw(masks((*shape[:-1], 3)))
    fitted = told(lambda: SaliencyWeighting(population=True).fit(teacher, valid=valid))
    if fitted is not None:
        assert all(not value.isnan().any() for value in fitted.buffers())
