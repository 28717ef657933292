"""Properties that all weightings share."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from schemes import CLASSES, SCHEMES, claiming, every_scheme
from strategies import DTYPES, KINDS, ViewBatch, generators, make_views, shapes, view_batches
from torch.testing import assert_close
from weights import VIEWS, compute_terms, compute_weights

import msdlosses
from msdlosses import SaliencyWeighting, Weighting


@st.composite
def complete_batches(draw: st.DrawFn, kinds: Sequence[str] = tuple(KINDS)) -> ViewBatch:
    """Samples without missing modalities, with logits of any size and dtype.

    The logits of missing classes are -inf.
    """
    shape = draw(shapes(min_batch=1, classes=(CLASSES,)))
    pairs = [KINDS[draw(st.sampled_from(kinds))](shape, draw(generators())) for _ in VIEWS]
    dtype = draw(st.sampled_from(DTYPES))
    student, teacher = (
        {view: pair[side].to(dtype) for view, pair in zip(VIEWS, pairs, strict=True)}
        for side in (0, 1)
    )
    target = torch.randint(CLASSES, shape[:-1], generator=draw(generators()))
    return ViewBatch(student, teacher, target, torch.ones(shape[0], 3, dtype=torch.bool))


def test_every_public_weighting_is_tested() -> None:
    public = {getattr(msdlosses, name) for name in msdlosses.__all__}
    weightings = {kind for kind in public if inspect.isclass(kind) and issubclass(kind, Weighting)}
    assert weightings - {Weighting} <= {type(s.make(VIEWS, CLASSES)) for s in SCHEMES.values()}


def test_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Weighting()


def test_default_penalty_is_zero() -> None:
    assert SaliencyWeighting().penalty(("full",)) == 0


@pytest.mark.parametrize("scheme", claiming("bounded"))
@given(batch=view_batches(classes=CLASSES))
def test_weights_have_the_shape_of_the_terms_and_lie_in_0_1(scheme: str, batch: ViewBatch) -> None:
    weighting = SCHEMES[scheme].make(batch.names, CLASSES)
    terms = compute_terms(batch)
    weights = weighting(terms, batch.teacher, batch.target, names=batch.names, valid=batch.valid)
    assert weights.shape in (terms.shape, terms.shape[1:])
    valid_weights = weights.expand_as(terms)[batch.valid]
    assert ((valid_weights >= 0) & (valid_weights <= 1)).all()


@every_scheme
def test_only_learned_weights_carry_a_gradient(scheme: str) -> None:
    batch = make_views("image", "text")
    terms = compute_terms(batch).requires_grad_()
    teacher = {view: logits.requires_grad_() for view, logits in batch.teacher.items()}
    weighting = SCHEMES[scheme].make(batch.names, CLASSES)
    weights = weighting(terms, teacher, batch.target, names=batch.names)
    parameters = list(weighting.parameters())
    assert weights.requires_grad == bool(parameters)
    if parameters:
        weights.sum().backward()
        assert all(parameter.grad is not None for parameter in parameters)
        assert terms.grad is None
        assert all(logits.grad is None for logits in teacher.values())


@every_scheme
@given(batch=complete_batches(), masked=st.booleans())
def test_weights_are_finite_for_any_logits_and_an_infinite_term(
    scheme: str, batch: ViewBatch, masked: bool
) -> None:
    weighting = SCHEMES[scheme].make(VIEWS, CLASSES)
    terms = torch.rand(len(batch.target), 3)
    terms[0, 0] = float("inf")
    valid = batch.valid if masked else None
    weights = weighting(terms, batch.teacher, batch.target, names=VIEWS, valid=valid)
    assert weights.isfinite().all()
    assert weights.dtype == terms.dtype
    parameters = list(weighting.parameters())
    if parameters:
        gradients = torch.autograd.grad(weights.sum(), parameters)
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("scheme", claiming("symmetric"))
@given(batch=view_batches(classes=CLASSES), order=st.permutations(range(4)))
def test_permuting_the_views_permutes_the_weights(
    scheme: str, batch: ViewBatch, order: list[int]
) -> None:
    weighting = SCHEMES[scheme].make(batch.names, CLASSES)
    order = [k for k in order if k < len(batch.names)]
    permuted = ViewBatch(
        {batch.names[k]: batch.student[batch.names[k]] for k in order},
        dict(reversed(batch.teacher.items())),
        batch.target,
        batch.valid[:, order],
    )
    weights = compute_weights(weighting, batch)
    assert_close(compute_weights(weighting, permuted), weights[:, order], equal_nan=True)


@every_scheme
@given(batch=view_batches(classes=CLASSES), rng=generators())
def test_permuting_the_samples_permutes_the_weights(
    scheme: str, batch: ViewBatch, rng: torch.Generator
) -> None:
    weighting = SCHEMES[scheme].make(batch.names, CLASSES)
    order = torch.randperm(len(batch.target), generator=rng)
    permuted = ViewBatch(
        {view: logits[order] for view, logits in batch.student.items()},
        {view: logits[order] for view, logits in batch.teacher.items()},
        batch.target[order],
        batch.valid[order],
    )
    weights = compute_weights(weighting, batch)
    assert_close(compute_weights(weighting, permuted), weights[order], equal_nan=True)


@every_scheme
@given(batch=complete_batches(("ordinary", "near")), rng=generators())
def test_weights_are_invariant_to_the_order_of_classes_and_shifts_of_logits(
    scheme: str, batch: ViewBatch, rng: torch.Generator
) -> None:
    weighting = SCHEMES[scheme].make(VIEWS, CLASSES)
    terms, order = torch.rand(len(batch.target), 3), torch.randperm(CLASSES, generator=rng)
    teacher = {view: logits.double() for view, logits in batch.teacher.items()}
    changed = {view: logits[..., order] + 3 for view, logits in teacher.items()}
    expected = weighting(terms, teacher, batch.target, names=VIEWS)
    weights = weighting(terms, changed, order.argsort()[batch.target], names=VIEWS)
    assert_close(weights, expected)


@pytest.mark.parametrize("scheme", claiming("independent"))
@given(batch=view_batches(classes=CLASSES, min_batch=2))
def test_weights_of_a_sample_do_not_depend_on_other_samples(scheme: str, batch: ViewBatch) -> None:
    weighting = SCHEMES[scheme].make(batch.names, CLASSES)
    first = ViewBatch(
        {view: logits[:1] for view, logits in batch.student.items()},
        {view: logits[:1] for view, logits in batch.teacher.items()},
        batch.target[:1],
        batch.valid[:1],
    )
    valid = first.valid
    assume(scheme != "saliency" or bool(valid.all()))  # incomplete samples get a mean
    expected = compute_weights(weighting, batch)[:1]
    assert_close(compute_weights(weighting, first)[valid], expected[valid])
