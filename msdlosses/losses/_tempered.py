"""The base class of losses at a temperature."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from msdlosses._checks import check_fits, check_number, check_positive, check_that
from msdlosses._formulas.closed_form import ClosedForm, Formula
from msdlosses._formulas.logits import Temperature, at_temperature
from msdlosses._linear import Logits
from msdlosses.losses._base import DistillationLoss
from msdlosses.losses._temperature import LearnedTemperature


class Options(TypedDict, total=False):
    """Options of every loss."""

    dim: int
    ignore_index: int | None
    reduction: str
    chunk_size: int | None


class TemperedLoss(DistillationLoss):
    """Base class of losses between predictions at a temperature.

    A subclass implements `divergence`. It gets logits in float32 or wider that are divided by the
    temperature, the teacher's without gradient, and returns one value per sample. If the gradient
    is known, `_derivative` returns it as well.
    """

    standardize = False
    """First shift and scale the logits to mean 0 and standard deviation 1."""

    _derivative: Any = None
    """None, or a method `(student, teacher) -> (values, derivative by the student's logits)`.

    Its values are those of `divergence`. It runs without a graph and must not change its arguments.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        names = {"divergence", "_derivative"}
        owner = next(base for base in cls.__mro__ if names & vars(base).keys())
        if "_derivative" not in vars(owner):  # the inherited one is that of another divergence
            cls._derivative = None

    def __init__(
        self,
        temperature: Temperature,
        learn_temperature: tuple[float, float] | None,
        rescale: bool,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        several = isinstance(temperature, Tensor) and temperature.ndim > 0
        whole = self.chunk_size is None
        check_that("one `temperature` with `chunk_size`", whole or not several, "several")
        _check_temperature(temperature)
        self.learned_temperature: LearnedTemperature | None = None
        self.rescale = rescale
        self.fixed_temperature: Temperature
        if learn_temperature is not None:
            self.learned_temperature = LearnedTemperature(temperature, learn_temperature)
        elif isinstance(temperature, Tensor):
            self.register_buffer("fixed_temperature", temperature.clone())
        else:
            self.fixed_temperature = temperature

    @property
    def temperature(self) -> Temperature:
        """tau: a number or a tensor, which can be set; a learned one carries its graph."""
        if self.learned_temperature is not None:
            learned: Tensor = self.learned_temperature()
            return learned
        return self.fixed_temperature

    @temperature.setter
    def temperature(self, temperature: Temperature) -> None:
        _check_temperature(temperature)
        if self.learned_temperature is not None:
            self.learned_temperature.set(temperature)
        elif isinstance(self.fixed_temperature, Tensor):
            self.fixed_temperature.copy_(torch.as_tensor(temperature))
        else:
            check_number("temperature", temperature)  # it was a number, and is not a buffer
            self.fixed_temperature = temperature

    @abstractmethod
    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return one value per sample, of logits divided by the temperature."""

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return self._formula(target, valid)(student, teacher)

    def _formula(self, target: Tensor | None = None, valid: Tensor | None = None) -> Formula:
        return at_temperature(
            partial(self.divergence, target=target, valid=valid),
            self.temperature,
            rescale=self.rescale,
            dim=self.dim,
            standardize=self.standardize,
            derivative=self._derivative,
        )

    def _of_views(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor | None:
        """Return the losses (N, K) of logits (N, C) in one step; None if there is no such step."""
        if type(self).per_sample is not TemperedLoss.per_sample or self.chunk_size is not None:
            return None
        formula = self._formula()
        return formula.of_views(students, teachers) if isinstance(formula, ClosedForm) else None

    def _require_fit(self, student: Logits) -> None:
        if self.learned_temperature is None and isinstance(self.fixed_temperature, Tensor):
            check_fits("temperature", self.fixed_temperature, student, self.dim)

    def _check_linear(self) -> None:
        super()._check_linear()
        one = self.learned_temperature is not None or not getattr(self.fixed_temperature, "ndim", 0)
        check_that("one `temperature` with LinearLogits", one, "several")

    def extra_repr(self) -> str:
        value: object = self.temperature
        if isinstance(value, Tensor):
            one = value.numel() == 1 and not value.is_meta
            value = value.item() if one else tuple(value.shape)
        rescale = "" if self.rescale else ", rescale=False"
        return f"temperature={value}{rescale}, {super().extra_repr()}"


def _check_temperature(temperature: Temperature) -> None:
    if not isinstance(temperature, Tensor):
        check_number("temperature", temperature, "(0, inf)")
        return
    what, advice = "`temperature` without gradient", "Set `learn_temperature`: it stays positive."
    check_that(what, not temperature.requires_grad, "one that requires it", advice, TypeError)
    check_positive("temperature", temperature)
