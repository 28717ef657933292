"""Teachers of any kind run in evaluation mode."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cache_helpers import make_data, make_views
from torch import Tensor, nn

from msdlosses import TeacherCache


class Dropout(nn.Module):
    """Logits that only evaluation mode returns unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(pixels)
        return logits

    def predict(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.forward(pixels, tokens)


class Service:
    """Holds a model, and is none."""

    def __init__(self, model: Any) -> None:
        self.parts = {"models": [(model,)]}

    def __call__(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.predict(pixels, tokens)

    def predict(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.parts["models"][0][0](pixels, tokens)
        return logits


class Slotted:
    __slots__ = ("model",)

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels, tokens)
        return logits


class OfClass:
    model: Any = None

    def __call__(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels, tokens)
        return logits


class Hidden(nn.Module):
    """Holds a model in a list, which torch does not register."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.models = [model]

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.models[0](pixels, tokens)
        return logits


MODEL = Dropout()
BOX = SimpleNamespace(model=MODEL)


def use_global(pixels: Tensor, tokens: Tensor) -> Tensor:
    return helper(pixels, tokens)


def helper(pixels: Tensor, tokens: Tensor) -> Tensor:
    return next(MODEL(x, tokens) for x in [pixels])


def use_default(pixels: Tensor, tokens: Tensor, model: Any = MODEL) -> Tensor:
    logits: Tensor = model(pixels, tokens)
    return logits


def call(model: Any, pixels: Tensor, tokens: Tensor) -> Tensor:
    logits: Tensor = model(pixels, tokens)
    return logits


def of_class(model: Any) -> Any:
    OfClass.model = model
    return OfClass()


def decorate(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **entries: Any) -> Any:
        return function(*args, **entries)

    return wrapper


def unset_variable(model: Any) -> Any:
    """A function that refers to a variable without a value."""
    if model is None:
        unset = model
    return lambda pixels, tokens: model(pixels, tokens) if model else unset


TEACHERS: dict[str, Callable[[Any], Any]] = {
    "module": lambda model: model,
    "bound method": lambda model: model.predict,
    "partial": lambda model: functools.partial(call, model),
    "partial keyword": lambda model: functools.partial(
        lambda pixels, tokens, model: model(pixels, tokens), model=model
    ),
    "closure": lambda model: lambda pixels, tokens: model(pixels, tokens),
    "nested closure": lambda model: lambda **batch: (lambda: model(**batch))(),
    "decorated": lambda model: decorate(functools.partial(call, model)),
    "global": lambda _: use_global,
    "global attribute": lambda _: lambda pixels, tokens: BOX.model(pixels, tokens),
    "default": lambda _: use_default,
    "object": Service,
    "method of an object": lambda model: Service(model).predict,
    "slots": Slotted,
    "class attribute": of_class,
    "unregistered": Hidden,
    "unset variable": unset_variable,
    "cached": lambda model: functools.lru_cache(functools.partial(call, model)),
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_every_module_that_can_be_found_is_evaluated(kind: str, tmp_path: Path) -> None:
    MODEL.train()
    MODEL.inner[1].eval()
    data = make_data(20)
    cache = TeacherCache.build(TEACHERS[kind](MODEL), make_views(), [data], tmp_path)
    torch.testing.assert_close(cache[:]["full"], data["pixels"], rtol=2**-11, atol=0)
    assert [module.training for module in MODEL.modules()] == [True, True, True, False]


def test_function_that_calls_torch_does_not_warn(tmp_path: Path) -> None:
    def teacher(pixels: Tensor, tokens: Tensor) -> Tensor:
        return pixels + torch.arange(3)

    TeacherCache.build(teacher, make_views(), [make_data(2)], tmp_path)


def test_warns_about_a_teacher_that_cannot_be_looked_into(tmp_path: Path) -> None:
    views = make_views(unpack=False)
    with pytest.warns(UserWarning, match="Found no modules in the teacher"):
        TeacherCache.build(operator.itemgetter("pixels"), views, [make_data(2)], tmp_path)


def test_cycles_of_objects_end(tmp_path: Path) -> None:
    service = Service(MODEL)
    service.parts["service"] = [service]  # type: ignore[list-item]
    assert len(TeacherCache.build(service, make_views(), [make_data(2)], tmp_path)) == 2
