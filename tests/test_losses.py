"""What `KDLoss` and `MSDLoss` are, beyond the laws that every loss keeps."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from laws import LOSSES, LossCase
from schemes import CLASSES, Names, every_weighting, make_weighting
from strategies import ViewBatch, make_views, view_batches
from torch import Tensor, nn
from torch.testing import assert_close

from msdlosses import (
    DistillationLoss,
    FixedWeighting,
    KDLoss,
    MSDLoss,
    MSDParts,
    MultiLabelKDLoss,
    SaliencyWeighting,
    Weighting,
    WeightNet,
)
from msdlosses.functional import kl_divergence, multilabel_kl_divergence

NAN = float("nan")


class Given(Weighting):
    """Weights that are handed in, learned or not."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Names,
        valid: Tensor | None = None,
    ) -> Tensor:
        return self.weights


def require_grad(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {view: values.detach().clone().requires_grad_() for view, values in logits.items()}


def gradients(loss: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    return dict(zip(inputs, found, strict=True))


def make_msd(scheme: str, names: Names, **options: str) -> MSDLoss:
    torch.manual_seed(3)  # the same weights for each network
    return MSDLoss(KDLoss(2.0), make_weighting(scheme, names), **options)


# KDLoss


def test_kd_by_hand() -> None:
    student = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    second = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert_close(KDLoss(reduction="none")(student, teacher), torch.tensor([first, second]))
    assert_close(KDLoss()(student, teacher), torch.tensor((first + second) / 2))


def test_multilabel_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    one = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert_close(MultiLabelKDLoss()(student, teacher), torch.tensor(one))


def test_mean_does_not_divide_by_the_classes() -> None:
    student, teacher = torch.randn(2, 8, 3)
    no_more = torch.full((8, 1000), -1e4)  # classes of probability 0 change nothing
    wide = KDLoss()(torch.cat([student, no_more], 1), torch.cat([teacher, no_more], 1))
    assert_close(wide, KDLoss()(student, teacher))
    assert_close(wide, kl_divergence(student, teacher).mean())


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    student, teacher = torch.randn(2, 1, 6, dtype=torch.float64)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(KDLoss(1e4)(student, teacher), student)
    apart = (student - teacher).detach()
    assert_close(gradient, (apart - apart.mean()) / 6, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("masked", [1, 2, 3], ids=["samples", "rows", "pixels"])
def test_a_mask_covers_the_first_axes(masked: int) -> None:
    student, teacher = torch.randn(2, 3, 3, 3, 3)  # (N, C, H, W), each of one length
    valid = torch.rand(3, 3, 3)[(...,) + (0,) * (3 - masked)] < 0.5
    everywhere = valid.reshape(valid.shape + (1,) * (3 - masked)).expand(3, 3, 3)
    rows = kl_divergence(student, teacher, dim=1)
    spoilt = [x.masked_fill(~everywhere.unsqueeze(1), NAN) for x in (student, teacher)]
    loss = KDLoss(dim=1)
    assert_close(loss(*spoilt, valid=valid), rows[everywhere].mean())


def test_a_single_sample_without_a_batch_axis() -> None:
    student, teacher = torch.randn(2, 5)
    assert_close(KDLoss()(student, teacher), KDLoss()(student[None], teacher[None]))


def test_reprs_tell_the_options() -> None:
    assert repr(KDLoss(2.0, dim=1)) == "KDLoss(temperature=2.0, dim=1, reduction='mean')"
    msd = repr(MSDLoss(KDLoss(), FixedWeighting(full=1), reduction="sum"))
    assert "reduction='sum'" in msd
    assert "FixedWeighting(full)" in msd


class LabelledLoss(DistillationLoss):
    """A loss as a user writes it: it needs the target, and is not 0 for logits of 0."""

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        assert target is not None
        return (student - teacher).square().sum(-1) + target + 1


def test_a_loss_of_ones_own() -> None:
    student, teacher = torch.randn(2, 4, 5)
    target, valid = torch.arange(4), torch.tensor([True, False, True, False])
    expected = (student - teacher).square().sum(-1) + target + 1
    assert_close(LabelledLoss()(student, teacher, target), expected.mean())
    spoilt = student.masked_fill(~valid[:, None], NAN)
    assert_close(LabelledLoss()(spoilt, teacher, target, valid=valid), expected[valid].mean())
    msd = MSDLoss(LabelledLoss())
    terms = msd.terms({"full": spoilt}, {"full": teacher}, target, valid=valid[:, None])
    assert_close(terms[:, 0], expected * valid)


# MSDLoss: terms and their sum


def test_terms_are_the_rows_of_each_view_in_the_students_order() -> None:
    batch = make_views("image", "text")
    student = {view: batch.student[view] for view in ("text", "full", "image")}
    terms = MSDLoss(KDLoss(2.0)).terms(student, batch.teacher)
    expected = [kl_divergence(student[v], batch.teacher[v], temperature=2.0) for v in student]
    assert_close(terms, torch.stack(expected, dim=-1))


def test_parts_say_what_the_loss_is_made_of() -> None:
    batch = make_views("image", "text")
    msd = MSDLoss(KDLoss(), FixedWeighting(full=1.0, image=0.5, text=0.25))
    parts = msd.parts(batch.student, batch.teacher)
    assert isinstance(parts, MSDParts)
    assert parts.names == ("full", "image", "text")
    assert parts.count.item() == 4
    assert_close(parts.weights, torch.tensor([1.0, 0.5, 0.25]).expand(4, 3))
    assert_close(parts.terms, msd.terms(batch.student, batch.teacher))
    assert_close(parts.loss, (parts.weights * parts.terms).sum() / 4)
    assert_close(msd(batch.student, batch.teacher), parts.loss)


def test_msd_by_hand() -> None:
    three, even = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
    student = {"full": even, "text": three}
    teacher = {"full": three, "text": even}
    full = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    text = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2)
    msd = MSDLoss(KDLoss(), FixedWeighting(full=1.0, text=0.5))
    assert_close(msd(student, teacher), torch.tensor(full + 0.5 * text))


def test_only_the_full_view_weighted_is_kd() -> None:
    batch = make_views("image", "text")
    msd = MSDLoss(KDLoss(2.0), FixedWeighting(full=1, image=0, text=0))
    kd = KDLoss(2.0)(batch.student["full"], batch.teacher["full"])
    assert torch.equal(msd(batch.student, batch.teacher), kd)


def test_a_criterion_per_view() -> None:
    batch = make_views("image", "text")
    criterion = {"full": KDLoss(4.0), "image": KDLoss(1.0), "text": MultiLabelKDLoss(2.0)}
    terms = MSDLoss(criterion).terms(batch.student, batch.teacher)
    s, t = batch.student, batch.teacher
    expected = [
        kl_divergence(s["full"], t["full"], temperature=4.0),
        kl_divergence(s["image"], t["image"]),
        multilabel_kl_divergence(s["text"], t["text"], temperature=2.0),
    ]
    assert_close(terms, torch.stack(expected, dim=-1))


def test_only_the_rows_of_a_criterion_are_used() -> None:
    batch = make_views("image", "text")
    mean, total = (MSDLoss(KDLoss(reduction=name)) for name in ("mean", "sum"))
    assert torch.equal(mean(batch.student, batch.teacher), total(batch.student, batch.teacher))


@given(batch=view_batches(classes=CLASSES))
def test_sum_is_count_times_mean(batch: ViewBatch) -> None:
    mean, total, rows = (
        MSDLoss(KDLoss(), reduction=name).parts(batch.student, batch.teacher, valid=batch.valid)
        for name in ("mean", "sum", "none")
    )
    assert rows.loss.shape == (len(batch.valid),)
    assert_close(total.loss, rows.loss.sum())
    assert_close(mean.loss * mean.count, total.loss)


def test_the_teachers_further_views_are_cues_and_no_terms() -> None:
    batch = make_views("image", "text", "audio")
    assert set(batch.teacher) > set(batch.student)
    assert MSDLoss(KDLoss()).terms(batch.student, batch.teacher).shape == (4, 4)
    msd = MSDLoss(KDLoss(), SaliencyWeighting())
    assert msd(batch.student, batch.teacher).isfinite()


@every_weighting
def test_the_teacher_gets_no_gradient(scheme: str) -> None:
    batch = make_views("image", "text")
    student, teacher = require_grad(batch.student), require_grad(batch.teacher)
    make_msd(scheme, batch.names)(student, teacher, batch.target).backward()
    assert all(logits.grad is not None for logits in student.values())
    assert all(logits.grad is None for logits in teacher.values())


# MSDLoss: weights


def test_a_weight_of_zero_adds_nothing_and_keeps_the_sample() -> None:
    batch = make_views("image", "text", samples=2)
    weights = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    parts = MSDLoss(KDLoss(), Given(weights)).parts(batch.student, batch.teacher)
    assert parts.count.item() == 2
    assert_close(parts.loss, parts.terms[0].sum() / 2)


@pytest.mark.parametrize("shape", [(4, 3), (3,)], ids=["per sample", "population"])
def test_a_learned_weight_of_zero_still_learns(shape: tuple[int, ...]) -> None:
    batch = make_views("image", "text")
    weights = nn.Parameter(torch.zeros(shape))
    parts = MSDLoss(KDLoss(), Given(weights)).parts(batch.student, batch.teacher)
    assert parts.loss.item() == 0
    (gradient,) = torch.autograd.grad(parts.loss, weights)
    expected = parts.terms / 4
    assert_close(gradient, expected if len(shape) == 2 else expected.sum(0))


class Priced(Given):
    """Weights for which a price is paid."""

    def penalty(self) -> Tensor:
        return 10 * self.weights.sum()


def test_a_penalty_is_added_once() -> None:
    batch = make_views("image", "text")
    weights = nn.Parameter(torch.ones(3))
    for reduction in ("mean", "sum"):
        free = MSDLoss(KDLoss(), Given(weights), reduction=reduction)
        priced = MSDLoss(KDLoss(), Priced(weights), reduction=reduction)
        extra = priced(batch.student, batch.teacher) - free(batch.student, batch.teacher)
        assert_close(extra, torch.tensor(30.0))
        (gradient,) = torch.autograd.grad(extra, weights)
        assert_close(gradient, torch.full((3,), 10.0))


def test_a_learned_weighting_is_part_of_the_module() -> None:
    network = WeightNet(("full", "text"), num_classes=CLASSES)
    msd = MSDLoss({"full": KDLoss(), "text": KDLoss(2.0)}, network)
    parameters = nn.ModuleDict({"msd": msd}).state_dict()
    assert "msd.weighting.network.0.weight" in parameters
    assert msd.to(torch.float64).weighting is network
    assert network.network[0].weight.dtype == torch.float64


class Confident(Weighting):
    """Weights as a user writes them, without a thought of the graph."""

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Names,
        valid: Tensor | None = None,
    ) -> Tensor:
        return torch.stack([teacher[view].softmax(-1).amax(-1) for view in names], dim=-1)


def test_the_teacher_gets_no_gradient_through_weights_of_ones_own() -> None:
    batch = make_views("image", "text")
    student, teacher = require_grad(batch.student), require_grad(batch.teacher)
    MSDLoss(KDLoss(), Confident())(student, teacher).backward()
    assert all(logits.grad is None for logits in teacher.values())


def test_a_penalty_is_not_paid_where_nothing_counts() -> None:
    batch = make_views("image", "text")
    msd = MSDLoss(KDLoss(), Priced(nn.Parameter(torch.ones(3))))
    nothing = torch.zeros(4, 3, dtype=torch.bool)
    assert msd(batch.student, batch.teacher, valid=nothing).item() == 0


@every_weighting
@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_every_loss_goes_with_every_weighting(case: LossCase, scheme: str) -> None:
    """And with one of its own for each view."""
    batch = make_views("image", "text")
    torch.manual_seed(3)
    weighting = make_weighting(scheme, batch.names)
    terms = []
    for criterion in (case.make(), {view: case.make() for view in batch.names}):
        student = require_grad(batch.student)
        msd = MSDLoss(criterion, weighting)
        parts = msd.parts(student, batch.teacher, batch.target)
        assert all(
            gradient.isfinite().all() for gradient in gradients(parts.loss, student).values()
        )
        terms.append(parts.terms)
    rows = [case.make().rows(batch.student[v], batch.teacher[v]) for v in batch.names]
    assert_close(terms[0], torch.stack(rows, -1))
    assert_close(terms[1], terms[0])


# MSDLoss: what is not valid


def test_a_view_that_a_sample_lacks_is_left_out() -> None:
    batch = make_views("image", "text")
    valid = torch.tensor([[True, True, True], [False, True, False], [False] * 3, [True] * 3])
    parts = MSDLoss(KDLoss()).parts(batch.student, batch.teacher, valid=valid)
    terms = MSDLoss(KDLoss()).terms(batch.student, batch.teacher)
    assert parts.count.item() == 3
    assert torch.equal(parts.terms, terms * valid)
    assert torch.equal(parts.weights, valid.float())
    assert_close(parts.loss, terms[valid].sum() / 3)


@every_weighting
@given(batch=view_batches(classes=CLASSES))
def test_nan_where_a_modality_lacks_changes_nothing(scheme: str, batch: ViewBatch) -> None:
    """Neither the value, nor the student's gradient, nor that of the weighting."""
    msd = make_msd(scheme, batch.names)
    spoilt = require_grad(batch.student)
    filled = require_grad({v: x.nan_to_num(1.0) for v, x in batch.student.items()})
    teacher = {v: x.nan_to_num(-1.0) for v, x in batch.teacher.items()}
    learned = {name: weight for name, weight in msd.named_parameters()}

    value = msd(spoilt, batch.teacher, batch.target, valid=batch.valid)
    expected = msd(filled, teacher, batch.target, valid=batch.valid)
    assert value.isfinite()
    assert_close(value, expected)
    found = gradients(value, spoilt | learned)
    wanted = gradients(expected, filled | learned)
    for name in found:
        assert found[name].isfinite().all()
        assert_close(found[name], wanted[name])
    for view, valid in zip(batch.names, batch.valid.unbind(-1), strict=True):
        assert not found[view][~valid].any()


@every_weighting
@pytest.mark.parametrize("samples", [0, 1, 4])
def test_nothing_valid_is_a_joined_zero(scheme: str, samples: int) -> None:
    batch = make_views("image", "text", samples=samples)
    spoilt = {view: torch.full_like(logits, NAN) for view, logits in batch.student.items()}
    student, valid = require_grad(spoilt), torch.zeros(samples, 3, dtype=torch.bool)
    msd = make_msd(scheme, batch.names)
    loss = msd(student, dict(spoilt), batch.target, valid=valid)
    assert loss.item() == 0
    for gradient in gradients(loss, student | dict(msd.named_parameters())).values():
        assert torch.equal(gradient, torch.zeros_like(gradient))


@every_weighting
def test_an_empty_batch_is_a_joined_zero(scheme: str) -> None:
    batch = make_views("image", "text", samples=0)
    student = require_grad(batch.student)
    msd = make_msd(scheme, batch.names)
    loss = msd(student, batch.teacher, batch.target)
    assert loss.item() == 0
    for gradient in gradients(loss, student | dict(msd.named_parameters())).values():
        assert torch.equal(gradient, torch.zeros_like(gradient))


# MSDLoss: sequences and images


@every_weighting
@given(batch=view_batches(classes=CLASSES, sequences=True, min_batch=1))
def test_a_term_of_a_sequence_is_the_mean_over_its_positions(scheme: str, batch: ViewBatch) -> None:
    msd = make_msd(scheme, batch.names)
    parts = msd.parts(batch.student, batch.teacher, batch.target, valid=batch.valid)
    assert parts.loss.isfinite()
    for n, view in batch.valid.nonzero().tolist():
        student, teacher = batch.student[batch.names[view]], batch.teacher[batch.names[view]]
        rows = kl_divergence(student[n], teacher[n], temperature=2.0)
        assert_close(parts.terms[n, view], rows.mean())


def test_masked_positions_are_left_out_of_a_samples_mean() -> None:
    batch = make_views("image", "text", positions=(3,))
    valid = torch.rand(4, 3, 3) < 0.6
    valid[0] = False  # a sample without any position
    valid[1] = torch.tensor([True, False, False])  # one that only has the full view
    names = batch.names
    spoilt = {
        view: logits.masked_fill(~valid[..., k, None], NAN)
        for k, (view, logits) in enumerate(batch.student.items())
    }
    parts = MSDLoss(KDLoss()).parts(spoilt, batch.teacher, valid=valid)
    for n in range(4):
        for k, view in enumerate(names):
            rows = kl_divergence(batch.student[view][n], batch.teacher[view][n])[valid[n, :, k]]
            assert_close(parts.terms[n, k], rows.sum() / max(len(rows), 1))
    assert parts.count.item() == 3
    assert_close(parts.loss, parts.terms.sum() / 3)


def test_positions_lie_behind_the_classes_of_images() -> None:
    batch = make_views("image", "text", positions=(2, 3))
    first = [
        {view: logits.movedim(-1, 1) for view, logits in side.items()}
        for side in (batch.student, batch.teacher)
    ]
    msd, pixels = MSDLoss(KDLoss()), MSDLoss(KDLoss(dim=1))
    for valid in (None, torch.rand(4, 3) < 0.5, torch.rand(4, 2, 3, 3) < 0.5):
        expected = msd(batch.student, batch.teacher, valid=valid)
        assert_close(pixels(*first, valid=valid), expected)


def test_a_sequence_without_positions_counts_nothing() -> None:
    batch = make_views("image", "text", positions=(0,))
    assert MSDLoss(KDLoss())(batch.student, batch.teacher).item() == 0


# MSDLoss: composition


@every_weighting
def test_survives_copies(scheme: str) -> None:
    batch = make_views("image", "text")
    msd = make_msd(scheme, batch.names)
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"msd": msd}).state_dict(), file)
    file.seek(0)
    other = {
        "population saliency": SaliencyWeighting(population=True),
        "fixed": FixedWeighting(full=0, image=0, text=0),
    }.get(scheme, make_weighting(scheme, batch.names))
    loaded = MSDLoss(KDLoss(2.0), other)
    nn.ModuleDict({"msd": loaded}).load_state_dict(torch.load(file, weights_only=True))
    expected = msd(batch.student, batch.teacher, batch.target)
    for twin in (loaded, copy.deepcopy(msd), pickle.loads(pickle.dumps(msd))):
        assert torch.equal(twin(batch.student, batch.teacher, batch.target), expected)


@every_weighting
def test_computes_in_float64_when_moved_there(scheme: str) -> None:
    batch = make_views("image", "text")
    student, teacher = (
        {view: logits.double() for view, logits in side.items()}
        for side in (batch.student, batch.teacher)
    )
    msd = make_msd(scheme, batch.names)
    expected = msd(batch.student, batch.teacher, batch.target)
    loss = msd.to(torch.float64)(student, teacher, batch.target)
    assert loss.dtype == torch.float64
    assert_close(loss.float(), expected)


@every_weighting
def test_half_precision_logits_give_a_loss_in_float32(scheme: str) -> None:
    batch = make_views("image", "text")
    student, teacher = (
        {view: logits.to(torch.bfloat16) for view, logits in side.items()}
        for side in (batch.student, batch.teacher)
    )
    msd = make_msd(scheme, batch.names)
    loss = msd(student, teacher, batch.target)
    widened = [{v: x.float() for v, x in side.items()} for side in (student, teacher)]
    assert loss.dtype == torch.float32
    assert_close(loss, msd(*widened, batch.target))


@every_weighting
def test_autocast_keeps_float32(scheme: str) -> None:
    batch = make_views("image", "text")
    student = nn.Linear(CLASSES, CLASSES)
    msd = make_msd(scheme, batch.names)
    with torch.autocast("cpu", torch.bfloat16):
        logits = {view: student(values) for view, values in batch.student.items()}
        loss = msd(logits, batch.teacher, batch.target)
    assert logits["full"].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    widened = {view: values.float() for view, values in logits.items()}
    # The weight net's layers run in bfloat16, as autocast wants it.
    assert_close(loss, msd(widened, batch.teacher, batch.target), rtol=1e-2, atol=1e-3)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


@every_weighting
def test_compiled_without_a_graph_break_equals_eager(scheme: str) -> None:
    batch = make_views("image", "text")
    msd = make_msd(scheme, batch.names)
    torch.compiler.reset()
    compiled = torch.compile(msd, fullgraph=True, backend="aot_eager")
    valid = torch.tensor([[True] * 3, [False, True, False], [False, False, True], [False] * 3])
    for mask in (None, valid):
        student = require_grad(batch.student)
        inputs = student | dict(msd.named_parameters())
        losses = [f(student, batch.teacher, batch.target, valid=mask) for f in (msd, compiled)]
        assert_close(losses[1], losses[0])
        eager, other = (gradients(loss, inputs) for loss in losses)
        assert_close(other, eager)


def test_gradients_are_right_to_second_order() -> None:
    """The student's and the weighting's, as a meta-learner takes them."""
    batch = make_views("image", "text", samples=2, classes=3)
    names = batch.names
    student = [logits.double().requires_grad_() for logits in batch.student.values()]
    teacher = {view: logits.double() for view, logits in batch.teacher.items()}
    weights = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)

    def loss(weights: Tensor, *logits: Tensor) -> Tensor:
        msd = MSDLoss(KDLoss(2.0), Given(weights))
        return msd(dict(zip(names, logits, strict=True)), teacher)

    assert torch.autograd.gradcheck(loss, (weights, *student))
    assert torch.autograd.gradgradcheck(loss, (weights, *student))


def test_works_in_torch_func() -> None:
    batch = make_views("image", "text")
    msd = MSDLoss(KDLoss(), SaliencyWeighting())

    def loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        return msd(
            {v: x[None] for v, x in student.items()}, {v: x[None] for v, x in teacher.items()}
        )

    rows = torch.func.vmap(loss)(batch.student, batch.teacher)
    assert_close(rows.mean(), msd(batch.student, batch.teacher))
    per_sample = torch.func.vmap(torch.func.grad(loss))(batch.student, batch.teacher)
    student = require_grad(batch.student)
    expected = gradients(msd(student, batch.teacher), student)
    assert_close({view: g / 4 for view, g in per_sample.items()}, expected)
