"""The laws of `laws.py`, for each loss that satisfies them."""

from __future__ import annotations

import inspect

import laws
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import LOSSES, LossCase
from strategies import DTYPES, FINITE, HALF, INF, Pair, generators, logit_pairs, masks
from torch import Tensor

import msdlosses
from msdlosses import DistillationLoss

FULL = (torch.float64, torch.float32)
DOUBLE = (torch.float64,)


def claiming(*claims: str) -> pytest.MarkDecorator:
    """Parametrize by the losses whose flags are all set."""
    cases = [case for case in LOSSES if all(getattr(case, claim) for claim in claims)]
    return pytest.mark.parametrize("case", cases, ids=str)


every_loss = claiming()


def test_every_public_loss_has_a_function() -> None:
    public = [c.name for c in LOSSES if type(c.make()).__name__ in msdlosses.__all__]
    without = [c.name for c in LOSSES if c.name in public and c.function is None]
    assert not without, "name the function in the `LossCase`"


finite_pairs = logit_pairs(kinds=tuple(FINITE))
full_pairs = logit_pairs(kinds=tuple(FINITE), dtypes=FULL)


@st.composite
def masked_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Draw logits, and which of their samples or positions are valid."""
    student, teacher = draw(full_pairs)
    return student, teacher, draw(masks(student.shape[:-1]))


def test_all_public_losses_are_tested() -> None:
    tested = {kind for case in LOSSES for kind in type(case.make()).__mro__}
    public = {getattr(msdlosses, name) for name in msdlosses.__all__}
    assert {value for value in public if is_loss(value)} <= tested


def is_loss(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, DistillationLoss)


@claiming("divergence")
@given(pair=finite_pairs)
def test_zero_at_equality(case: LossCase, pair: Pair) -> None:
    laws.zero_at_equality(case, pair[0])


@claiming("divergence")
@given(pair=finite_pairs)
def test_never_negative(case: LossCase, pair: Pair) -> None:
    laws.never_negative(case, *pair)


@claiming("divergence")
@pytest.mark.parametrize("classes", [2, 23])
def test_not_negative_near_equality(case: LossCase, classes: int) -> None:
    laws.not_negative_near_equality(case, classes)


@claiming("shift_invariant")
@given(pair=logit_pairs(kinds=("ordinary", "near", "confident"), dtypes=DOUBLE), rng=generators())
def test_shift_invariant(case: LossCase, pair: Pair, rng: torch.Generator) -> None:
    laws.shift_invariant(case, *pair, rng)


@claiming("permutation_invariant")
@given(pair=finite_pairs, rng=generators())
def test_permutation_invariant(case: LossCase, pair: Pair, rng: torch.Generator) -> None:
    laws.permutation_invariant(case, *pair, rng)


@claiming("samples_independent")
@given(masked=masked_pairs())
def test_samples_independent(case: LossCase, masked: tuple[Tensor, ...]) -> None:
    laws.samples_independent(case, *masked)


@every_loss
@given(pair=finite_pairs, rng=generators())
def test_permuted_batch_permutes_values(case: LossCase, pair: Pair, rng: torch.Generator) -> None:
    laws.permuted_batch_permutes_values(case, *pair, rng)


@every_loss
@given(pair=finite_pairs)
def test_positions_are_samples(case: LossCase, pair: Pair) -> None:
    laws.positions_are_samples(case, *pair)


@every_loss
@given(masked=masked_pairs(), fill=st.sampled_from([laws.NAN, INF, -INF, 7.0]))
def test_invalid_logits_do_not_matter(
    case: LossCase, masked: tuple[Tensor, ...], fill: float
) -> None:
    laws.invalid_logits_do_not_matter(case, *masked, fill)


@every_loss
@given(masked=masked_pairs())
def test_sum_is_count_times_mean(case: LossCase, masked: tuple[Tensor, ...]) -> None:
    laws.sum_is_count_times_mean(case, *masked)


@every_loss
@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 3), (2, 0, 3)])
def test_empty_batch_gives_zero_with_gradient(case: LossCase, shape: tuple[int, ...]) -> None:
    laws.zero_without_valid_samples(case, torch.zeros(shape), torch.zeros(shape), None)


@every_loss
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (4, 2, 3)])
def test_empty_mask_gives_zero_with_gradient(case: LossCase, shape: tuple[int, ...]) -> None:
    logits = torch.full(shape, laws.NAN)
    valid = torch.zeros(shape[:-1], dtype=torch.bool)
    laws.zero_without_valid_samples(case, logits, logits.clone(), valid)


@claiming("oracle")
@given(data=st.data())
def test_agrees_with_oracle(case: LossCase, data: st.DataObject) -> None:
    laws.agrees_with_oracle(case, *data.draw(logit_pairs(kinds=case.oracle_kinds, dtypes=DOUBLE)))


@every_loss
@given(pair=logit_pairs(kinds=tuple(FINITE), dtypes=HALF))
def test_half_precision_is_computed_in_float32(case: LossCase, pair: Pair) -> None:
    laws.half_precision_is_computed_in_float32(case, *pair)


@every_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_finite_logits_give_finite_derivatives(
    case: LossCase, dtype: torch.dtype, data: st.DataObject
) -> None:
    narrow = dtype == torch.float16 and not case.bounded_gradient
    kinds = [kind for kind in FINITE if kind != "huge" or not narrow]
    laws.finite(case, *data.draw(logit_pairs(kinds=kinds, dtypes=(dtype,))))


@claiming("missing")
@given(data=st.data())
def test_logits_of_minus_infinity_give_finite_derivatives(
    case: LossCase, data: st.DataObject
) -> None:
    laws.finite(case, *data.draw(logit_pairs(kinds=case.missing)))


@claiming("missing", "divergence")
@given(data=st.data())
def test_logits_of_minus_infinity_can_be_equal(case: LossCase, data: st.DataObject) -> None:
    student, teacher = data.draw(logit_pairs(kinds=case.missing))
    laws.never_negative(case, student, teacher)
    laws.zero_at_equality(case, teacher)


@claiming("missing", "samples_independent")
@given(pair=logit_pairs(kinds=("missing",), dtypes=FULL, sequences=False))
def test_missing_classes_do_not_matter(case: LossCase, pair: Pair) -> None:
    laws.missing_classes_do_not_matter(case, *pair)


@claiming("missing", "oracle", "samples_independent")
@given(data=st.data())
def test_logits_of_minus_infinity_agree_with_oracle(case: LossCase, data: st.DataObject) -> None:
    laws.agrees_with_oracle(case, *data.draw(logit_pairs(kinds=case.missing, dtypes=DOUBLE)))


@every_loss
@given(pair=logit_pairs(kinds=tuple(FINITE), dtypes=FULL))
def test_teacher_gets_no_gradient(case: LossCase, pair: Pair) -> None:
    laws.teacher_gets_no_gradient(case, *pair)


@claiming("function")
@given(pair=finite_pairs)
def test_module_equals_function(case: LossCase, pair: Pair) -> None:
    laws.module_equals_function(case, *pair)


@every_loss
@settings(max_examples=8)
@given(data=st.data())
def test_derivatives_match_finite_differences(case: LossCase, data: st.DataObject) -> None:
    small = {"min_batch": 1, "sequences": False, "classes": (1, 2, 3, 5)}
    pairs = logit_pairs(kinds=case.smooth, dtypes=DOUBLE, **small)
    laws.derivatives_match_finite_differences(case, *data.draw(pairs))


@every_loss
@given(data=st.data())
def test_gradient_equals_that_of_the_operators(case: LossCase, data: st.DataObject) -> None:
    kinds = (*FINITE, *case.missing)
    laws.gradient_equals_that_of_the_operators(
        case, *data.draw(logit_pairs(kinds=kinds, dtypes=FULL))
    )


@every_loss
@given(data=st.data(), rng=generators())
def test_forward_mode_equals_backward_mode(
    case: LossCase, data: st.DataObject, rng: torch.Generator
) -> None:
    student, teacher = data.draw(logit_pairs(kinds=case.oracle_kinds, dtypes=FULL))
    tangent = torch.randn(student.shape, generator=rng, dtype=student.dtype)
    laws.forward_mode_equals_backward_mode(case, student, teacher, tangent)


@every_loss
def test_vmap_equals_loop(case: LossCase) -> None:
    student, teacher = torch.randn(2, 3, 4, 5)
    laws.vmap_equals_loop(case, student, teacher, torch.rand(3, 4) < 0.5)


@every_loss
def test_compiled_equals_eager(case: LossCase) -> None:
    student, teacher = torch.randn(2, 6, 5)
    laws.compiled_equals_eager(case, student, teacher, torch.rand(6) < 0.5)


@every_loss
def test_copies_equal_the_original(case: LossCase) -> None:
    laws.copies_equal_the_original(case, *torch.randn(2, 4, 5))
