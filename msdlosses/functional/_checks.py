"""Checks that the functions of logits at a temperature share."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import check_fits, check_number, check_pair, check_positive
from msdlosses._formulas.logits import Temperature


def check_tempered(student: Tensor, teacher: Tensor, temperature: Temperature, dim: int) -> None:
    """Check two tensors of logits and a temperature that fits them."""
    check_pair(student, teacher, dim=dim)
    if isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
        check_fits("temperature", temperature, student, dim)
    else:
        check_number("temperature", temperature, "(0, inf)")
