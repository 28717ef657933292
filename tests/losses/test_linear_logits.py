"""Losses of `LinearLogits`: the values and derivatives of the same logits as tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from laws import LOSSES, LossCase
from linear import CLASSES, OPTIONS, Model, make_model, make_models
from torch import Tensor, nn
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.testing import assert_close

from msdlosses import (
    DistillationLoss,
    DISTLoss,
    DKDLoss,
    HintLoss,
    JSDLoss,
    KDLoss,
    LinearLogits,
    MSDLoss,
    RKDLoss,
    SaliencyWeighting,
    SPLoss,
    functional,
)

NAN = float("nan")
CASES = [case for case in LOSSES if not case.make().relational]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
some_cases = pytest.mark.parametrize(
    "make", [partial(KDLoss, 2.0), partial(JSDLoss, beta=0.3)], ids=["kd", "jsd"]
)
exact = partial(assert_close, rtol=1e-10, atol=1e-12)
SIDES = {"both": (True, True), "student": (True, False), "teacher": (False, True)}


def logits_of(model: Model, linear: bool) -> Tensor | LinearLogits:
    return model.linear() if linear else model.plain()


def chunked(make: Callable[..., DistillationLoss], size: int | None = 3) -> DistillationLoss:
    """Make a loss with a chunk size, if it has that option."""
    loss = make(reduction="none")
    loss.chunk_size = size
    return loss


# Values and gradients


@every_case
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("shape", [(7,), (2, 4), (0,), ()], ids=str)
def test_values_and_gradients_equal_those_of_tensors(
    case: LossCase, sides: tuple[bool, bool], shape: tuple[int, ...]
) -> None:
    models = make_models(*shape)
    loss = chunked(case.make)
    values = loss(*map(logits_of, models, sides))
    expected = loss.__class__.forward(chunked(case.make, None), *(m.plain() for m in models))
    exact(values, expected)
    above = torch.randn_like(values)
    tensors = models[0].tensors
    exact(grad(values, tensors, above), grad(expected, tensors, above))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("size", [None, 1, 5])
@pytest.mark.parametrize("per_position", [True, False])
def test_options_and_masks(options: dict[str, Any], size: int | None, per_position: bool) -> None:
    """Invalid hidden states may be NaN."""
    student, teacher = make_models(3, 4, options=options)
    valid = torch.tensor([True, False, True])
    if per_position:
        valid = valid.unsqueeze(1) & (torch.arange(4) < 2)
    plain = student.plain(), teacher.plain()
    expected = KDLoss(2.0)(*plain, valid=valid)
    tensors = student.tensors
    expected_gradients = grad(expected, tensors)
    with torch.no_grad():
        student.hidden[~valid], teacher.hidden[~valid] = NAN, NAN
    loss = KDLoss(2.0, chunk_size=size)(student.linear(), teacher.linear(), valid=valid)
    exact(loss, expected)
    exact(grad(loss, tensors), expected_gradients)


def test_ignored_targets_are_left_out() -> None:
    student, teacher = make_models(2, 4)
    target = torch.tensor([[0, -100, 4, 2], [-100, -100, 1, -100]])
    loss = DKDLoss(2.0, ignore_index=-100)
    values = loss(student.linear(), teacher.linear(), target)
    expected = loss(student.plain(), teacher.plain(), target)
    exact(values, expected)
    exact(grad(values, student.tensors), grad(expected, student.tensors))


def test_ignored_positions_are_not_multiplied() -> None:
    rows: list[int] = []

    class Recorded(KDLoss):
        def per_sample(self, student: Tensor, *others: Any, **options: Any) -> Tensor:
            rows.append(student.shape[:-1].numel())
            return super().per_sample(student, *others, **options)

    student, teacher = make_models(2, 8)
    valid = torch.arange(16).reshape(2, 8) % 4 == 0
    Recorded(chunk_size=3)(student.linear(), teacher.linear(), valid=valid)
    assert rows == [3, 1]


@every_case
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_without_valid_samples_is_a_zero_with_zero_gradients(
    case: LossCase, reduction: str
) -> None:
    student, teacher = make_models(2, 3)
    valid = torch.zeros(2, dtype=torch.bool)
    loss = case.make(reduction=reduction)(student.linear(), teacher.linear(), valid=valid)
    assert loss.item() == 0
    for gradient in grad(loss, student.tensors):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_target_of_the_samples_only() -> None:
    """Rows are then whole sequences, also with a mask of positions; or nothing can be split."""

    class Targeted(KDLoss):
        def per_sample(self, s: Tensor, t: Tensor, target: Any = None, **options: Any) -> Tensor:
            return super().per_sample(s, t, **options) * target.sum()

    student, teacher = make_models(3, 4)
    valid = torch.rand(3, 4) < 0.5
    for target in (torch.ones(3).double(), torch.ones(7).double()):
        loss = Targeted(chunk_size=4)
        whole = Targeted() if len(target) == 7 else KDLoss()
        values = loss(student.linear(), teacher.linear(), target, valid=valid)
        exact(values, whole(student.plain(), teacher.plain(), target, valid=valid))
        assert grad(values, student.weight)[0].isfinite().all()


def test_shapes_do_not_depend_on_the_mask_where_that_would_wait_for_a_device() -> None:
    """The meta device refuses everything that reads values."""
    student, teacher = (model.linear().to("meta") for model in make_models(3, 4))
    valid = torch.ones(3, 4, dtype=torch.bool, device="meta")
    msd = MSDLoss(KDLoss(chunk_size=5), SaliencyWeighting())
    views = [dict.fromkeys(("full", "image", "text"), logits) for logits in (student, teacher)]
    loss = msd(*views, valid=torch.stack([valid] * 3, -1))
    assert [g.shape for g in grad(loss, student.tensors)] == [x.shape for x in student.tensors]


def test_gradients_that_are_not_needed_are_not_computed() -> None:
    student, teacher = make_models(5)
    expected = grad(KDLoss()(student.plain(), teacher.plain()), student.tensors)
    for i, frozen in enumerate(student.tensors):
        frozen.requires_grad_(False)
        others = [x for x in student.tensors if x.requires_grad]
        exact(
            grad(KDLoss()(student.linear(), teacher.linear()), others),
            tuple(g for k, g in enumerate(expected) if k != i),
        )
        frozen.requires_grad_()


def test_tied_head_sums_both_gradients() -> None:
    """The embedding of the hidden states is the weight of the head."""
    embedding, ids = torch.randn(CLASSES, 4, dtype=torch.float64, requires_grad=True), [0, 2, 2]
    teacher = make_model(3, student=False)

    def loss(student: Any) -> Tensor:
        return KDLoss(2.0, chunk_size=2)(student, teacher.plain())

    linear = loss(LinearLogits(embedding[ids].tanh(), embedding))
    exact(grad(linear, embedding), grad(loss(embedding[ids].tanh() @ embedding.T), embedding))


def test_one_head_for_student_and_teacher() -> None:
    model = make_model(3)
    teacher = LinearLogits(model.hidden.detach().cos(), model.weight)
    student = LinearLogits(model.hidden, model.weight)
    expected = KDLoss()(model.hidden @ model.weight.T, teacher.materialize().detach())
    exact(grad(KDLoss()(student, teacher), model.weight), grad(expected, model.weight))


def test_only_the_student_gets_a_gradient() -> None:
    student, teacher = make_models(4)
    for tensor in teacher.tensors:
        tensor.requires_grad_()
    tensors = (*student.tensors, *teacher.tensors)
    gradients = grad(KDLoss()(student.linear(), teacher.linear()), tensors, allow_unused=True)
    assert [g is None for g in gradients] == [False] * 3 + [True] * 3
    evaluation = KDLoss().eval()
    assert not evaluation(student.linear().detach(), teacher.linear()).requires_grad
    with pytest.raises(ValueError, match="Did you swap them"):
        KDLoss()(student.linear().detach(), teacher.linear())


def test_teacher_of_inference_mode() -> None:
    student, teacher = make_models(4)
    with torch.inference_mode():
        inference = LinearLogits(teacher.hidden * 1, teacher.weight * 1)
    expected = KDLoss()(student.plain(), teacher.hidden @ teacher.weight.T)
    loss = KDLoss()(student.linear(), inference)
    exact(grad(loss, student.tensors), grad(expected, student.tensors))


def test_learned_temperature_and_projection_get_gradients() -> None:
    models = make_models(5, dtype=torch.float32)
    losses = (
        KDLoss(2.0, learn_temperature=(1, 8)),
        HintLoss(nn.Linear(CLASSES, CLASSES)),
    )
    for loss in losses:
        parameters = list(loss.parameters())
        values = (loss(*(m.linear() for m in models)), loss(*(m.plain() for m in models)))
        assert_close(*(grad(x, [*parameters, *models[0].tensors]) for x in values))
        frozen = [m.linear().detach() for m in models]
        value, expected = loss(*frozen), loss(*(logits.materialize() for logits in frozen))
        assert_close(*(grad(x, parameters) for x in (value, expected)))


def test_infinite_terms_with_zero_gradient_do_not_reach_the_head() -> None:
    student, teacher = make_models(2)
    with torch.no_grad():
        student.hidden[0] = 1e308  # its logits overflow
    values = KDLoss(reduction="none")(student.linear(), teacher.linear())
    for gradient in grad(values[1], student.tensors):
        assert gradient.isfinite().all()


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    student, teacher = make_models(9, dtype=dtype)
    loss = KDLoss(2.0, chunk_size=2)(student.linear(), teacher.linear())
    assert loss.dtype == torch.float32
    expected = KDLoss(2.0)(*(m.linear().materialize() for m in (student, teacher)))
    assert_close(loss, expected)
    gradients = grad(loss, student.tensors)
    assert {gradient.dtype for gradient in gradients} == {dtype}
    assert_close(gradients, grad(expected, student.tensors), rtol=2e-2, atol=2e-3)


def test_sums_over_many_chunks_are_exact_in_half_precision() -> None:
    """Added up in bfloat16, equal summands would be lost from the 256th on."""
    hidden = torch.ones(2048, 1, dtype=torch.bfloat16)
    weight = torch.tensor([[0.0], [0.0]], dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.tensor([[1.0, -1.0]]).expand(2048, 2)
    loss = KDLoss(reduction="sum", chunk_size=1)(LinearLogits(hidden, weight), teacher)
    share = torch.softmax(teacher[0], 0) - 0.5
    assert_close(grad(loss, weight)[0].float(), -2048 * share[:, None], rtol=1e-2, atol=0)


def test_autocast() -> None:
    student, teacher = make_models(9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = KDLoss(2.0, chunk_size=2)(student.linear(), teacher.linear())
        products = [nn.functional.linear(*m.tensors) for m in (student, teacher)]
        expected = KDLoss(2.0)(*products)
    assert products[0].dtype == torch.bfloat16
    assert_close(loss, expected)
    gradients = grad(loss, student.tensors)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert_close(gradients, grad(expected, student.tensors), rtol=2e-2, atol=2e-3)


def test_autocast_does_not_lose_the_gradient_of_later_uses() -> None:
    student, teacher = make_models(3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        KDLoss()(student.linear(), teacher.linear())
        assert nn.functional.linear(student.hidden.detach(), student.weight).requires_grad


# Higher derivatives and transforms


@every_case
def test_derivatives_match_finite_differences(case: LossCase) -> None:
    student, teacher = make_models(3, options={"softcap": 4.0})
    loss = chunked(case.make, 2)

    def values(*tensors: Tensor) -> Tensor:
        return loss(LinearLogits(*tensors, softcap=4.0), teacher.linear())

    assert gradcheck(values, student.tensors, check_forward_ad=True)
    assert gradgradcheck(values, student.tensors)


def test_third_derivative() -> None:
    student, teacher = make_models(3)

    def third(logits: Any) -> Any:
        result = KDLoss(2.0, chunk_size=2)(logits, teacher.linear()).square()
        for _ in range(3):
            (first, second) = grad(result, (student.hidden, student.weight), create_graph=True)
            result = first.sin().sum() + second.cos().sum()
        return result

    exact(third(student.linear()), third(student.plain()))


def test_second_derivative_of_a_linear_loss_is_zero() -> None:
    class Linear(DistillationLoss):
        def per_sample(self, s: Tensor, t: Tensor, *args: Any, **options: Any) -> Tensor:
            return (s * t).sum(-1)

    student, teacher = make_models(3)
    (first,) = grad(Linear()(student.linear(), teacher.linear()), student.bias, create_graph=True)
    (second,) = grad(first.sum(), student.bias)
    assert torch.equal(second, torch.zeros_like(second))


@some_cases
def test_batches_of_gradients_and_forward_over_reverse(
    make: Callable[..., DistillationLoss],
) -> None:
    student, teacher = make_models(3)
    valid = torch.tensor([True, False, True])

    def values(*tensors: Tensor) -> Tensor:
        return make(chunk_size=2)(LinearLogits(*tensors), teacher.linear(), valid=valid)

    assert gradcheck(values, student.tensors, check_batched_grad=True)
    assert gradgradcheck(values, student.tensors, check_fwd_over_rev=True)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "hessian"])
@pytest.mark.parametrize("masked", [False, True])
def test_works_in_torch_func(transform: str, masked: bool) -> None:
    student, teacher = make_models(3)
    valid = torch.tensor([True, False, True]) if masked else None
    loss = KDLoss(2.0, chunk_size=2)
    hidden, *head = (x.detach() for x in student.tensors)

    def of_linear(hidden: Tensor) -> Tensor:
        return loss(LinearLogits(hidden, *head), teacher.linear(), valid=valid)

    def of_tensor(hidden: Tensor) -> Tensor:
        return loss(hidden @ head[0].T + head[1], teacher.plain(), valid=valid)

    calls: dict[str, Callable[[Any], Any]] = {
        "grad": lambda f: torch.func.grad(f)(hidden),
        "vmap": lambda f: torch.vmap(f)(torch.stack([hidden, hidden.cos()])),
        "jvp": lambda f: torch.func.jvp(f, (hidden,), (hidden.cos(),)),
        "hessian": lambda f: torch.func.hessian(f)(hidden),
    }
    exact(calls[transform](of_linear), calls[transform](of_tensor))


def test_tangents_of_the_head_and_of_the_gradient_from_above() -> None:
    student, teacher = make_models(5)
    factors, direction = torch.rand(5).double(), torch.randn_like(student.weight)
    tangents = []
    for call in (Model.linear, Model.plain):
        with forward_ad.dual_level():
            weight: Any = forward_ad.make_dual(student.weight, direction)
            dual = Model(student.hidden, weight, student.bias)
            above: Any = forward_ad.make_dual(factors, factors.cos())
            values = KDLoss(reduction="none", chunk_size=2)(call(dual), call(teacher)) * above
            gradients = grad(values.sum(), (student.hidden, student.bias))
            tangents.append([forward_ad.unpack_dual(x).tangent for x in gradients])
    exact(*tangents)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_code_breaks_its_graph() -> None:
    student, teacher = make_models(3)
    torch.compiler.reset()
    compiled = torch.compile(KDLoss(2.0), backend="eager")
    loss, expected = (f(student.linear(), teacher.linear()) for f in (compiled, KDLoss(2.0)))
    exact(loss, expected)
    exact(grad(loss, student.tensors), grad(expected, student.tensors))
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"(?i)graph|dynamo"):
        torch.compile(KDLoss(2.0), backend="eager", fullgraph=True)(
            student.linear(), teacher.linear()
        )


# Changes between the forward and the backward pass


def test_backward_detects_an_overwritten_head() -> None:
    student, teacher = make_models(3)
    loss = KDLoss()(student.linear(), teacher.linear())
    with torch.no_grad():
        student.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Errors


@pytest.mark.parametrize("loss", [DISTLoss(), RKDLoss(), SPLoss()], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_relational_losses_name_the_way_out(
    loss: DistillationLoss, sides: tuple[bool, bool]
) -> None:
    with pytest.raises(TypeError, match=r"compares samples .*\.materialize\(\)"):
        loss(*map(logits_of, make_models(3), sides))


def test_what_needs_all_samples_at_once_is_refused() -> None:
    student, teacher = make_models(3)
    pair = student.linear(), teacher.linear()
    with pytest.raises(ValueError, match="BatchNorm"):
        HintLoss(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)))(*pair)
    with pytest.raises(ValueError, match="one `temperature` with LinearLogits"):
        KDLoss(torch.tensor([1.0, 2.0, 3.0]))(*pair)
    with pytest.raises(ValueError, match="`dim` to be -1"):
        KDLoss(dim=1)(*pair)


def test_shapes_and_targets_are_checked() -> None:
    student, teacher = make_models(3)
    with pytest.raises(ValueError, match=r"one shape .* got \(3, 5\) and \(3, 7\)"):
        KDLoss()(student.linear(), make_model(3, options={"classes": 7}, student=False).linear())
    with pytest.raises(IndexError, match=r"`target` in \[0, 5\)"):
        DKDLoss()(student.linear(), teacher.linear(), torch.tensor([0, 1, 5]))
    with pytest.raises(ValueError, match="`valid` of shape"):
        KDLoss()(student.linear(), teacher.linear(), valid=torch.ones(4, dtype=torch.bool))


def test_functions_take_tensors_only() -> None:
    student, teacher = make_models(3)
    with pytest.raises(
        TypeError, match="`student` to be a floating-point tensor, got LinearLogits"
    ):
        functional.kl_divergence(student.linear(), teacher.linear())
