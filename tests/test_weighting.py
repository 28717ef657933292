"""What each scheme makes of the teacher's logits, the target and the terms."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from groups import in_two
from hypothesis import given
from hypothesis import strategies as st
from schemes import CLASSES, SCHEMES, claiming, dynamic, every_scheme
from scipy.special import log_softmax, rel_entr, softmax
from strategies import DTYPES, KINDS, ViewBatch, generators, make_views, shapes, view_batches
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torchjd.scalarization import DWA, UW

import msdlosses
from msdlosses import (
    DynamicWeightAverage,
    FixedWeighting,
    KDLoss,
    MSDLoss,
    MultiLabelKDLoss,
    SaliencyWeighting,
    TeacherLossWeighting,
    UncertaintyWeighting,
    Weighting,
    WeightNet,
    modality_saliency,
)
from msdlosses.functional import kl_divergence, multilabel_kl_divergence

NAMES = ("full", "image", "text")


def terms_of(batch: ViewBatch) -> Tensor:
    return MSDLoss(KDLoss()).terms(batch.student, batch.teacher, valid=batch.valid)


def weigh(weighting: Weighting, batch: ViewBatch, **options: Tensor | None) -> Tensor:
    """The weights of a batch, one row for each sample."""
    terms = terms_of(batch)
    options = {"valid": batch.valid} | options
    weights = weighting(terms, batch.teacher, batch.target, names=batch.names, **options)
    return weights.expand_as(terms)


def scipy_kl(teacher: Tensor, student: Tensor) -> Tensor:
    p, q = softmax(teacher.double().numpy(), -1), softmax(student.double().numpy(), -1)
    return torch.from_numpy(rel_entr(p, q).sum(-1)).float()


def scipy_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    log_p = log_softmax(logits.double().numpy(), -1)
    return torch.from_numpy(-np.take_along_axis(log_p, target.numpy()[:, None], -1)[:, 0]).float()


# Laws of every scheme


def test_every_public_weighting_is_here() -> None:
    public = {getattr(msdlosses, name) for name in msdlosses.__all__}
    weightings = {kind for kind in public if inspect.isclass(kind) and issubclass(kind, Weighting)}
    assert weightings - {Weighting} <= {type(s.make(NAMES, CLASSES)) for s in SCHEMES.values()}


@pytest.mark.parametrize("scheme", claiming("bounded"))
@given(batch=view_batches(classes=CLASSES))
def test_weights_fit_the_terms_and_lie_between_0_and_1(scheme: str, batch: ViewBatch) -> None:
    weighting = SCHEMES[scheme].make(batch.names, CLASSES)
    terms = terms_of(batch)
    weights = weighting(terms, batch.teacher, batch.target, names=batch.names, valid=batch.valid)
    assert weights.shape in (terms.shape, terms.shape[1:])
    counting = weights.expand_as(terms)[batch.valid]
    assert ((counting >= 0) & (counting <= 1)).all()


@every_scheme
def test_weights_carry_a_gradient_only_where_they_are_learned(scheme: str) -> None:
    batch = make_views("image", "text")
    terms = terms_of(batch).requires_grad_()
    teacher = {view: logits.requires_grad_() for view, logits in batch.teacher.items()}
    weighting = SCHEMES[scheme].make(batch.names, CLASSES)
    weights = weighting(terms, teacher, batch.target, names=batch.names)
    learned = list(weighting.parameters())
    assert weights.requires_grad == bool(learned)
    if learned:
        weights.sum().backward()
        assert all(parameter.grad is not None for parameter in learned)
        assert terms.grad is None
        assert all(logits.grad is None for logits in teacher.values())


def test_a_divergence_or_task_loss_with_parameters_gives_detached_weights() -> None:
    batch = make_views("image", "text")
    scale = nn.Parameter(torch.ones(()))
    for weighting in (
        SaliencyWeighting(divergence=lambda s, t: scale * kl_divergence(s, t)),
        TeacherLossWeighting(task_loss=lambda x, y: scale * scipy_cross_entropy(x, y)),
    ):
        assert not weigh(weighting, batch).requires_grad


@pytest.mark.parametrize("scheme", claiming("symmetric"))
@given(batch=view_batches(classes=CLASSES), order=st.permutations(range(4)))
def test_the_order_of_the_views_does_not_matter(
    scheme: str, batch: ViewBatch, order: list[int]
) -> None:
    weighting = SCHEMES[scheme].make(batch.names, CLASSES)
    order = [k for k in order if k < len(batch.names)]
    names = [batch.names[k] for k in order]
    turned = ViewBatch(
        {view: batch.student[view] for view in names},
        dict(reversed(batch.teacher.items())),
        batch.target,
        batch.valid[:, order],
    )
    assert_close(weigh(weighting, turned), weigh(weighting, batch)[:, order], equal_nan=True)


@pytest.mark.parametrize("scheme", claiming("independent"))
@given(batch=view_batches(classes=CLASSES, min_batch=2))
def test_a_samples_weights_do_not_depend_on_the_others(scheme: str, batch: ViewBatch) -> None:
    weighting = SCHEMES[scheme].make(batch.names, CLASSES)
    alone = ViewBatch(
        {view: logits[:1] for view, logits in batch.student.items()},
        {view: logits[:1] for view, logits in batch.teacher.items()},
        batch.target[:1],
        batch.valid[:1],
    )
    valid = alone.valid
    assert_close(weigh(weighting, alone)[valid], weigh(weighting, batch)[:1][valid])


@st.composite
def any_views(draw: st.DrawFn, kinds: Sequence[str] = tuple(KINDS)) -> ViewBatch:
    """Whole samples whose logits are of any size and precision, or -inf for lacking classes."""
    shape = draw(shapes(min_batch=1, classes=(CLASSES,)))
    pairs = [KINDS[draw(st.sampled_from(kinds))](shape, draw(generators())) for _ in NAMES]
    dtype = draw(st.sampled_from(DTYPES))
    student, teacher = (
        {view: pair[side].to(dtype) for view, pair in zip(NAMES, pairs, strict=True)}
        for side in (0, 1)
    )
    target = torch.randint(CLASSES, shape[:-1], generator=draw(generators()))
    return ViewBatch(student, teacher, target, torch.ones(shape[0], 3, dtype=torch.bool))


@every_scheme
@given(batch=any_views(), masked=st.booleans())
def test_weights_are_finite_for_any_teacher(scheme: str, batch: ViewBatch, masked: bool) -> None:
    """One-hot, at +-6e4 in half precision, without some classes; and terms that are infinite."""
    weighting = SCHEMES[scheme].make(NAMES, CLASSES)
    terms = torch.rand(len(batch.target), 3)
    terms[0, 0] = float("inf")
    valid = batch.valid if masked else None
    weights = weighting(terms, batch.teacher, batch.target, names=NAMES, valid=valid)
    assert weights.isfinite().all()
    assert weights.dtype == terms.dtype
    learned = list(weighting.parameters())
    if learned:
        found = torch.autograd.grad(weights.sum(), learned)
        assert all(gradient.isfinite().all() for gradient in found)


@every_scheme
@given(batch=any_views(("ordinary", "near")), rng=generators())
def test_weights_see_neither_the_order_nor_a_shift_of_the_classes(
    scheme: str, batch: ViewBatch, rng: torch.Generator
) -> None:
    weighting = SCHEMES[scheme].make(NAMES, CLASSES)
    terms, order = torch.rand(len(batch.target), 3), torch.randperm(CLASSES, generator=rng)
    teacher = {view: x.double() for view, x in batch.teacher.items()}
    moved = {view: x[..., order] + 3 for view, x in teacher.items()}
    weights = weighting(terms, teacher, batch.target, names=NAMES)
    turned = weighting(terms, moved, order.argsort()[batch.target], names=NAMES)
    assert_close(turned, weights)


@every_scheme
@given(batch=view_batches(classes=CLASSES), rng=generators())
def test_the_order_of_the_samples_does_not_matter(
    scheme: str, batch: ViewBatch, rng: torch.Generator
) -> None:
    weighting = SCHEMES[scheme].make(batch.names, CLASSES)
    order = torch.randperm(len(batch.target), generator=rng)
    turned = ViewBatch(
        {view: x[order] for view, x in batch.student.items()},
        {view: x[order] for view, x in batch.teacher.items()},
        batch.target[order],
        batch.valid[order],
    )
    assert_close(weigh(weighting, turned), weigh(weighting, batch)[order], equal_nan=True)


def test_a_scheme_has_no_penalty_unless_it_says_so() -> None:
    assert SaliencyWeighting().penalty() == 0


# Fixed


def test_fixed_weights_follow_the_names() -> None:
    weighting = FixedWeighting(full=1, image=0.5, text=0.25)
    names = ("text", "full", "image")
    assert_close(weighting(torch.zeros(2, 3), {}, names=names), torch.tensor([0.25, 1.0, 0.5]))


def test_fixed_weights_take_any_view() -> None:
    weighting = FixedWeighting(**{"full": 1, "~image": 0.5})
    weights = weighting(torch.zeros(2, 2), {}, names=("full", "~image"))
    assert_close(weights, torch.tensor([1.0, 0.5]))


# Saliency


def test_saliency_of_two_modalities_agrees_with_scipy() -> None:
    teacher = make_views("image", "text").teacher
    saliency = modality_saliency(teacher)
    assert set(saliency) == {"image", "text"}
    assert_close(saliency["image"], scipy_kl(teacher["full"], teacher["text"]))
    assert_close(saliency["text"], scipy_kl(teacher["full"], teacher["image"]))


def test_saliency_of_three_modalities_agrees_with_scipy() -> None:
    teacher = make_views("image", "text", "audio").teacher
    saliency = modality_saliency(teacher)
    assert set(saliency) == {"image", "text", "audio"}
    for modality, values in saliency.items():
        assert_close(values, scipy_kl(teacher["full"], teacher[f"~{modality}"]))


def test_two_modalities_may_be_told_by_what_is_left() -> None:
    teacher = make_views("image", "text").teacher
    left = {"full": teacher["full"], "~text": teacher["image"], "~image": teacher["text"]}
    expected = modality_saliency(teacher)
    for modality, values in modality_saliency(left).items():
        assert torch.equal(values, expected[modality])


def test_saliency_is_0_for_what_the_teacher_ignores() -> None:
    teacher = make_views("image", "text").teacher
    teacher["image"] = teacher["full"].clone()  # nothing changes without the text
    assert not modality_saliency(teacher)["text"].any()


@pytest.mark.parametrize("divergence", [MultiLabelKDLoss(2.0), lambda s, t: s.sum(-1) - t.sum(-1)])
def test_saliency_by_another_divergence(divergence: Callable[..., Tensor]) -> None:
    teacher = make_views("image", "text").teacher
    expected = divergence(teacher["text"], teacher["full"])
    if isinstance(divergence, MultiLabelKDLoss):
        expected = multilabel_kl_divergence(teacher["text"], teacher["full"], temperature=2.0)
    assert_close(modality_saliency(teacher, divergence=divergence)["image"], expected)


def test_saliency_keeps_the_positions_of_a_sequence() -> None:
    teacher = make_views("image", "text", positions=(3,)).teacher
    assert modality_saliency(teacher)["text"].shape == (4, 3)


def test_saliency_weights_of_two_modalities() -> None:
    batch = make_views("image", "text")
    weights = weigh(SaliencyWeighting(alpha=0.5), batch)
    s = modality_saliency(batch.teacher)
    expected = [torch.ones(4), torch.tanh(0.5 * s["image"]), torch.tanh(0.5 * s["text"])]
    assert_close(weights, torch.stack(expected, dim=-1))


def test_saliency_weights_of_three_modalities_and_what_is_left() -> None:
    """A view that shows two modalities counts by what is lost without both of them."""
    batch = make_views("image", "text", "audio")
    t = batch.teacher
    names = ("full", "audio", "~audio")
    weights = SaliencyWeighting()(torch.zeros(4, 3), t, names=names)
    expected = [
        torch.ones(4),
        torch.tanh(scipy_kl(t["full"], t["~audio"])),
        torch.tanh(scipy_kl(t["full"], t["audio"])),
    ]
    assert_close(weights, torch.stack(expected, dim=-1))


def test_saliency_weights_of_a_sequence_use_the_mean_over_its_positions() -> None:
    batch = make_views("image", "text", positions=(3,))
    weights = SaliencyWeighting()(torch.zeros(4, 3), batch.teacher, names=NAMES)
    saliency = modality_saliency(batch.teacher)["image"].mean(1)
    assert_close(weights[:, 1], torch.tanh(saliency))


@pytest.mark.parametrize("modalities", [("image", "text"), ("image", "text", "audio")])
def test_a_saliency_that_is_not_known_gives_weight_1(modalities: tuple[str, ...]) -> None:
    batch = make_views(*modalities)
    lacks_text = torch.tensor([name == "image" for name in batch.names])
    valid = torch.stack([lacks_text] * 2 + [torch.ones_like(lacks_text)] * 2)
    whole = weigh(SaliencyWeighting(), batch, valid=None)
    weights = weigh(SaliencyWeighting(), batch, valid=valid)
    assert_close(weights[:2], torch.ones_like(weights[:2]))
    assert_close(weights[2:], whole[2:])


def test_without_the_full_view_among_the_terms_a_lacking_view_is_unknown() -> None:
    batch = make_views("image", "text")
    terms, names = torch.zeros(4, 2), ("image", "text")
    valid = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    whole = SaliencyWeighting()(terms, batch.teacher, names=names)
    weights = SaliencyWeighting()(terms, batch.teacher, names=names, valid=valid)
    assert_close(weights[1:3], torch.ones(2, 2))
    assert_close(weights[[0, 3]], whole[[0, 3]])


@pytest.mark.parametrize("modalities", [("image", "text"), ("image", "text", "audio")])
def test_population_saliency_is_the_mean_of_the_samples_weights(
    modalities: tuple[str, ...],
) -> None:
    batch = make_views(*modalities, samples=7)
    parts = [{v: x[k : k + 3] for v, x in batch.teacher.items()} for k in (0, 3, 6)]
    expected = weigh(SaliencyWeighting(2.0), batch).mean(0)
    for data in (batch.teacher, parts, iter(parts)):
        fitted = SaliencyWeighting(2.0, population=True).fit(data)
        weights = fitted(torch.zeros(7, len(batch.names)), {}, names=batch.names)
        assert_close(weights, expected)


def test_population_saliency_is_saved_with_the_module() -> None:
    names = ("full", "image", "~image")
    fitted = SaliencyWeighting(population=True).fit(make_views("image", "text").teacher)
    student = nn.Linear(2, 2)
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"student": student, "weighting": fitted}).state_dict(), file)
    file.seek(0)
    fresh = SaliencyWeighting(population=True)
    saved = nn.ModuleDict({"student": student, "weighting": fresh})
    saved.load_state_dict(torch.load(file, weights_only=True))
    terms = torch.zeros(2, 3)
    assert torch.equal(fresh(terms, {}, names=names), fitted(terms, {}, names=names))


def test_population_saliency_takes_names_with_dots() -> None:
    first, second = "camera.left", "camera.right"
    teacher = make_views(first, second).teacher
    weighting = SaliencyWeighting(population=True).fit(teacher)
    weights = weighting(torch.zeros(4, 2), {}, names=(first, second))
    assert_close(weights[0], torch.tanh(modality_saliency(teacher)[first]).mean())


def test_population_saliency_can_be_fitted_anew() -> None:
    first, second = (make_views("image", "text", seed=seed).teacher for seed in (1, 2))
    again = SaliencyWeighting(population=True).fit(first).fit(second)
    once = SaliencyWeighting(population=True).fit(second)
    assert torch.equal(
        again(torch.zeros(1, 3), {}, names=NAMES), once(torch.zeros(1, 3), {}, names=NAMES)
    )


# Teacher loss


def test_teacher_loss_weights_agree_with_scipy() -> None:
    batch = make_views("image", "text")
    weights = weigh(TeacherLossWeighting(alpha=0.5), batch)
    losses = [scipy_cross_entropy(batch.teacher[view], batch.target) for view in NAMES]
    assert_close(weights, torch.exp(-0.5 * torch.stack(losses, dim=-1)))


def test_teacher_loss_weights_fall_where_the_teacher_is_wrong() -> None:
    right, wrong = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    teacher = {"full": right, "text": wrong}
    weights = TeacherLossWeighting()(
        torch.zeros(1, 2), teacher, torch.tensor([0]), names=tuple(teacher)
    )
    assert weights[0, 0] > 0.99
    assert weights[0, 1] < 0.01


def test_teacher_loss_weights_of_a_sequence_use_the_mean_over_its_positions() -> None:
    batch = make_views("image", "text", positions=(3,))
    weights = TeacherLossWeighting()(torch.zeros(4, 3), batch.teacher, batch.target, names=NAMES)
    losses = [F.cross_entropy(batch.teacher["image"][n], batch.target[n]) for n in range(4)]
    assert_close(weights[:, 1], torch.exp(-torch.stack(losses)))


def binary_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def test_teacher_loss_weights_of_multi_label_targets() -> None:
    batch = make_views("image", "text")
    target = torch.rand(4, CLASSES)
    weighting = TeacherLossWeighting(0.1, task_loss=binary_loss)
    weights = weighting(torch.zeros(4, 3), batch.teacher, target, names=NAMES)
    p = torch.sigmoid(batch.teacher["text"])
    loss = -(target * p.log() + (1 - target) * (1 - p).log()).sum(-1)
    assert_close(weights[:, 2], torch.exp(-0.1 * loss))


# Uncertainty


def test_uncertainty_starts_as_equal_weights_without_a_penalty() -> None:
    batch = make_views("image", "text")
    weighting = UncertaintyWeighting(NAMES)
    assert torch.equal(weigh(weighting, batch), torch.ones(4, 3))
    assert weighting.penalty().item() == 0


def test_uncertainty_agrees_with_torchjd() -> None:
    """Which has half of each weight, as for regression: the terms count twice there."""
    batch = make_views("image", "text")
    weighting, other = UncertaintyWeighting(NAMES), UW(3)
    values = torch.tensor([0.5, -1.0, 2.0])
    weighting.log_variance.data, other.log_var.data = values.clone(), values.clone()
    loss = MSDLoss(KDLoss(), weighting)(batch.student, batch.teacher)
    expected = other(2 * terms_of(batch).mean(0))
    assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert_close(weighting.log_variance.grad, other.log_var.grad)


def test_uncertainty_settles_where_the_variance_is_twice_the_term() -> None:
    """The minimum of s -> exp(-s) L + s / 2, whatever the order of the views."""
    terms = torch.tensor([[0.1, 1.0, 4.0]])
    weighting = UncertaintyWeighting(("text", "full", "image"))
    optimizer = torch.optim.SGD(weighting.parameters(), 0.5)
    for _ in range(500):
        weights = weighting(terms, {}, names=NAMES)
        optimizer.zero_grad()
        ((weights * terms).sum() + weighting.penalty()).backward()
        optimizer.step()
    assert_close(weighting(terms, {}, names=NAMES), 0.5 / terms[0], rtol=1e-3, atol=1e-4)


# Dynamic weight average


def test_dynamic_weights_agree_with_torchjd() -> None:
    weighting, other = DynamicWeightAverage(NAMES, temperature=1.5), DWA(1.5)
    for _ in range(4):
        for _ in range(3):
            terms = torch.rand(4, 3)
            weights = weighting(terms, {}, names=NAMES)
            assert_close((weights * terms.mean(0)).sum(), other(terms.mean(0)))
        weighting.step()
        other.step()


def test_dynamic_weights_by_hand() -> None:
    weighting = DynamicWeightAverage(("full", "text"), temperature=2.0)
    for full, text in ((4.0, 4.0), (2.0, 4.0)):
        weights = weighting(torch.tensor([[full, text]]), {}, names=("full", "text"))
        assert_close(weights, torch.ones(2))
        weighting.step()
    first, second = math.exp(0.5 / 2), math.exp(1.0 / 2)
    expected = torch.tensor([2 * second, 2 * first]) / (first + second)
    assert_close(weighting(torch.zeros(1, 2), {}, names=("text", "full")), expected)


def test_dynamic_weights_count_what_is_valid_and_finite() -> None:
    weighting = DynamicWeightAverage(NAMES)
    nan, inf = float("nan"), float("inf")
    terms = torch.tensor([[1.0, 2.0, nan], [3.0, inf, 5.0]])
    valid = torch.tensor([[True, True, False], [True, True, False]])
    weighting(terms, {}, names=NAMES, valid=valid)
    weighting.step()
    assert_close(weighting.last, torch.tensor([2.0, 2.0, 0.0]))
    weighting(terms + 1, {}, names=NAMES, valid=valid)
    weighting.step()
    weights = weighting(terms, {}, names=NAMES)
    ratios = torch.tensor([1.5, 1.5, 1.0])  # no one had a text
    assert_close(weights, 3 * torch.softmax(ratios / 2, 0))


def test_dynamic_weights_do_not_move_in_evaluation() -> None:
    weighting = dynamic(NAMES).eval()
    before = weighting.state_dict()
    weighting(torch.rand(4, 3), {}, names=NAMES)
    assert_close(weighting.state_dict(), before)


def test_dynamic_weights_go_on_from_a_checkpoint_within_an_epoch() -> None:
    runs = []
    for interrupted in (False, True):
        torch.manual_seed(1)
        weighting = dynamic(NAMES)
        weighting(torch.rand(4, 3), {}, names=NAMES)
        if interrupted:
            file = io.BytesIO()
            torch.save(weighting.state_dict(), file)
            file.seek(0)
            weighting = DynamicWeightAverage(NAMES)
            weighting.load_state_dict(torch.load(file, weights_only=True))
        weighting(torch.rand(4, 3), {}, names=NAMES)
        weighting.step()
        runs.append(weighting(torch.zeros(1, 3), {}, names=NAMES))
    assert torch.equal(runs[1], runs[0])


def _epochs(terms: Tensor, rank: int | None) -> Tensor:
    """The weights after the last; the ranks see different samples, of different number."""
    rows = {None: slice(None), 0: slice(2), 1: slice(2, None)}[rank]
    weighting = DynamicWeightAverage(NAMES)
    for epoch in terms:
        weighting(epoch[rows], {}, names=NAMES)
        weighting.step()
    return weighting(terms.new_zeros(1, 3), {}, names=NAMES)


def test_dynamic_weights_are_those_of_the_whole_data_on_every_rank(tmp_path: Path) -> None:
    terms = torch.rand(2, 6, 3)
    expected = _epochs(terms, None)
    for found in in_two(partial(_epochs, terms), tmp_path):
        assert_close(found, expected)


# WeightNet


def make_net(**options: object) -> WeightNet:
    return WeightNet(NAMES, num_classes=CLASSES, **options)


def test_cues_by_hand() -> None:
    batch = make_views("image", "text")
    terms, t = terms_of(batch), batch.teacher
    cues = make_net().cues(terms, t, batch.target)
    flat = torch.zeros(4, CLASSES)
    for k, view in enumerate(NAMES):
        loss = scipy_cross_entropy(t[view], batch.target)
        sure, apart = scipy_kl(t[view], flat), scipy_kl(t["full"], t[view])
        expected = torch.stack([terms[:, k], loss, sure, apart], dim=-1)
        assert_close(cues[:, k], torch.log1p(expected / math.log(CLASSES)))


def test_cues_that_need_a_target_are_0_without_one() -> None:
    batch = make_views("image", "text")
    net, terms = make_net(), terms_of(batch)
    with_target, without = (net.cues(terms, batch.teacher, y) for y in (batch.target, None))
    assert not without[..., 1].any()
    assert_close(without[..., [0, 2, 3]], with_target[..., [0, 2, 3]])


def test_cues_of_multi_label_targets() -> None:
    batch = make_views("image", "text")
    net = make_net(divergence=MultiLabelKDLoss(), task_loss=binary_loss)
    target = torch.rand(4, CLASSES)
    cues = net.cues(terms_of(batch), batch.teacher, target)
    t = batch.teacher
    expected = [
        binary_loss(t["text"], target),
        multilabel_kl_divergence(torch.zeros(4, CLASSES), t["text"]),
        multilabel_kl_divergence(t["text"], t["full"]),
    ]
    assert_close(cues[:, 2, 1:], torch.log1p(torch.stack(expected, -1) / math.log(CLASSES)))


@given(batch=view_batches(classes=CLASSES, min_batch=1), rng=generators())
def test_normalised_weights_have_mean_1_over_what_is_valid(
    batch: ViewBatch, rng: torch.Generator
) -> None:
    net = WeightNet(batch.names, num_classes=CLASSES)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    assert_close(weigh(net, batch)[batch.valid].mean(), torch.tensor(1.0))
    whole = make_views(*batch.names[1:], samples=3)
    assert_close(weigh(net, whole, valid=None).mean(), torch.tensor(1.0))


def test_normalised_weights_of_a_net_that_shuts_everything_off_are_finite() -> None:
    net, batch = make_net(), make_views("image", "text")
    net.network[-1].bias.data.fill_(-1e4)
    weights = weigh(net, batch)
    weights.sum().backward()
    assert weights.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_weights_follow_the_cues() -> None:
    """Which of the views the net prefers can differ from sample to sample."""
    weights = weigh(make_net(normalize=False), make_views("image", "text"))
    assert not torch.allclose(weights[0], weights[1], atol=1e-4)


def test_the_students_gradient_does_not_pass_through_the_weights() -> None:
    batch = make_views("image", "text")
    student = {view: logits.requires_grad_() for view, logits in batch.student.items()}
    net = make_net()
    parts = MSDLoss(KDLoss(), net).parts(student, batch.teacher, batch.target)
    held = (parts.weights.detach() * parts.terms).sum() / 4
    actual, expected = (
        torch.autograd.grad(loss, list(student.values()), retain_graph=True)
        for loss in (parts.loss, held)
    )
    assert_close(actual, expected)
    parts.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_net_runs_under_autocast(dtype: torch.dtype) -> None:
    batch = make_views("image", "text")
    half = {view: logits.to(dtype) for view, logits in batch.teacher.items()}
    net, terms = make_net(), terms_of(batch)
    with torch.autocast("cpu", dtype):
        weights = net(terms, half, batch.target, names=NAMES)
    assert weights.dtype == torch.float32
    assert_close(weights, net(terms, half, batch.target, names=NAMES), rtol=2e-2, atol=1e-2)


def test_the_net_needs_no_full_view_among_the_terms() -> None:
    """Its cues compare with the teacher's full view, known where no view is lacking."""
    batch = make_views("image", "text")
    net = WeightNet(("image", "text"), num_classes=CLASSES)
    teacher = dict(batch.teacher)
    teacher["full"] = teacher["full"].index_fill(0, torch.tensor([1]), float("nan"))
    teacher["text"] = teacher["text"].index_fill(0, torch.tensor([1]), float("nan"))
    valid = torch.ones(4, 2, dtype=torch.bool)
    valid[1, 1] = False
    terms = torch.rand(4, 2)
    weights = net(terms, teacher, batch.target, names=net.names, valid=valid)
    weights[valid].sum().backward()
    assert weights.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_reprs_tell_the_options() -> None:
    assert repr(SaliencyWeighting(2.0)) == "SaliencyWeighting(alpha=2.0, population=False)"
    assert repr(TeacherLossWeighting(2.0)) == "TeacherLossWeighting(alpha=2.0)"
    assert f"names={NAMES}, num_classes=5, normalize=True" in repr(make_net())
    assert repr(UncertaintyWeighting(NAMES)) == f"UncertaintyWeighting(names={NAMES})"
    assert f"names={NAMES}, temperature=2.0" in repr(DynamicWeightAverage(NAMES))


def test_kl_is_what_saliency_uses_unless_told() -> None:
    teacher = make_views("image", "text").teacher
    expected = kl_divergence(teacher["text"], teacher["full"])
    assert torch.equal(modality_saliency(teacher)["image"], expected)
    assert torch.equal(modality_saliency(teacher, divergence=KDLoss())["image"], expected)
