"""Random calls return numbers and never NaN, or raise an error "Expected X, got Y."."""

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


def mostly(right: st.SearchStrategy[Any], *wrong: Any) -> st.SearchStrategy[Any]:
    """Draw one of the wrong values in one of ten cases."""
    return st.integers(0, 9).flatmap(lambda k: st.sampled_from(wrong) if k == 9 else right)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    axes = draw(mostly(st.sampled_from([1, 2]), 0, 3))
    batch = tuple(draw(st.integers(0, 4)) for _ in range(axes))
    return (*batch, draw(mostly(st.sampled_from([1, 2, 5]), 0)))


@st.composite
def logits(draw: st.DrawFn, shape: Sequence[int]) -> Any:
    """Draw finite logits up to 6e4, or sometimes something else."""
    if draw(st.integers(0, 29)) == 29:
        return draw(st.sampled_from([None, 3, [1.0], torch.ones(2, 5, dtype=torch.long)]))
    if 0 in shape:
        return torch.zeros(shape)
    kind = draw(st.sampled_from(sorted(FINITE)))
    values = FINITE[kind](shape, draw(generators()))[draw(st.integers(0, 1))]
    return values.to(draw(st.sampled_from(DTYPES)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    """Draw the logits of a student and a teacher, mostly of one shape."""
    shape = draw(shapes())
    other = draw(mostly(st.just(shape), (*shape[:-1], 3), (4, 5), ()))
    return draw(logits(shape)), draw(logits(other))


@st.composite
def temperatures(draw: st.DrawFn, samples: int) -> tuple[Any, float]:
    """Draw a temperature, and return it with the number that its values equal."""
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
    "learn_temperature": st.sampled_from([None, (0.1, 100.0)]),
    "projection": mostly(st.sampled_from([None, nn.Linear(5, 3)]), "linear", nn.Linear(3, 5)),
}


def draw_options(data: st.DataObject, call: Callable[..., Any], samples: int) -> tuple[Any, float]:
    """Draw options that a function or a loss has, and return them with the temperature."""
    names = set(inspect.signature(call).parameters)
    options = {
        name: data.draw(VALUES[name], label=name)
        for name in sorted(names & set(VALUES))
        if data.draw(st.booleans())
    }
    tau = 1.0
    if "temperature" in names:
        options["temperature"], tau = data.draw(temperatures(samples), label="temperature")
    return options, tau


def result_or_none(call: Callable[[], Any]) -> Any:
    """Return the result of a call, or None if it raises an error, and test the message."""
    try:
        return call()
    except ERRORS as error:
        message = str(error.args[0])
    assert re.match(r"(?s)Expected .*, got ", message), message
    return None


def assert_no_nan(value: Any, inputs: Sequence[Any]) -> None:
    """Assert that neither a value nor its gradients are NaN."""
    if value is None:
        return
    assert not value.isnan().any()
    if value.requires_grad:
        leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        for gradient in torch.autograd.grad(value.sum(), leaves, allow_unused=True):
            assert gradient is None or not gradient.isnan().any()


def scale_down(values: Any, tau: float) -> Any:
    """Scale logits so that dividing them by a small temperature does not overflow."""
    return values * min(tau, 1.0) if isinstance(values, Tensor) else values


def require_grad(values: Any) -> Any:
    floating = isinstance(values, Tensor) and values.is_floating_point()
    return values.detach().requires_grad_() if floating else values


def count_samples(values: Any) -> int:
    return len(values) if isinstance(values, Tensor) and values.ndim else 1


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@given(data=st.data())
def test_function_returns_numbers_or_raises(
    function: Callable[..., Tensor], data: st.DataObject
) -> None:
    student, teacher = data.draw(pairs())
    options, tau = draw_options(data, function, count_samples(student))
    student, teacher = require_grad(scale_down(student, tau)), scale_down(teacher, tau)
    shape = tuple(student.shape) if isinstance(student, Tensor) and student.ndim else (1,)
    arguments = [student, teacher]
    if "target" in inspect.signature(function).parameters:
        arguments.append(data.draw(targets(shape[:-1], shape[-1])))
    if "valid" in inspect.signature(function).parameters:
        options["valid"] = data.draw(masks(shape[:-1]))
    assert_no_nan(result_or_none(lambda: function(*arguments, **options)), [student])


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_loss_returns_numbers_or_raises(kind: type[DistillationLoss], data: st.DataObject) -> None:
    student, teacher = data.draw(pairs())
    options, tau = draw_options(data, kind, count_samples(student))
    loss = result_or_none(lambda: kind(**options))
    if loss is None:
        return
    student, teacher = require_grad(scale_down(student, tau)), scale_down(teacher, tau)
    shape = tuple(student.shape) if isinstance(student, Tensor) and student.ndim else (1,)
    target = data.draw(targets(shape[:-1], shape[-1]))
    valid = data.draw(masks(shape[:-1]))
    if isinstance(loss, HintLoss) and loss.projection is not None:
        fits = isinstance(student, Tensor) and student.dtype == torch.float32 and student.ndim
        if not fits or student.shape[-1] != loss.projection.in_features:
            return  # the user's projection would raise its own error
    assert_no_nan(result_or_none(lambda: loss(student, teacher, target, valid=valid)), [student])


@st.composite
def view_mappings(draw: st.DrawFn) -> tuple[Any, Any, tuple[int, ...]]:
    """Draw the logits of a student and a teacher by view, which mostly fit each other."""
    shape = draw(shapes().filter(lambda shape: len(shape) > 1))
    names = draw(mostly(st.just(NAMES), ("full", "text"), ("text",), ()))

    def draw_views(names: Sequence[str]) -> dict[str, Any]:
        return {view: draw(logits(draw(mostly(st.just(shape), (4, 5), (3,))))) for view in names}

    student, teacher = draw_views(names), draw_views(draw(mostly(st.just(NAMES), ("full",), ())))
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
        return result_or_none(lambda: kind(**{name: data.draw(weights) for name in names}))
    options = {
        name: data.draw(WEIGHTING_OPTIONS[name], label=name)
        for name in inspect.signature(kind).parameters
        if name in WEIGHTING_OPTIONS
    }
    return result_or_none(lambda: kind(**options))


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_msd_loss_returns_numbers_or_raises(
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
    msd = result_or_none(lambda: MSDLoss(criterion, weighting, **options))
    if msd is None:
        return
    student = {view: require_grad(values) for view, values in student.items()}
    target = data.draw(targets(shape[:-1], shape[-1]))
    valid = data.draw(masks((*shape[:-1], max(len(student), 1))))
    value = result_or_none(lambda: msd(student, teacher, target, valid=valid))
    assert_no_nan(value, [*student.values(), *msd.parameters()])


@given(data=st.data())
def test_saliency_returns_numbers_or_raises(data: st.DataObject) -> None:
    _, teacher, shape = data.draw(view_mappings())
    report = result_or_none(lambda: F.modality_saliency(teacher))
    for values in (report or {}).values():
        assert not values.isnan().any()
    valid = data.draw(masks((*shape[:-1], 3)))
    fitted = result_or_none(lambda: SaliencyWeighting(population=True).fit(teacher, valid=valid))
    if fitted is not None:
        assert all(not value.isnan().any() for value in fitted.buffers())
