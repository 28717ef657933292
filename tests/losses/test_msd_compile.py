"""`MSDLoss` in compiled code, under `torch.func`, in other dtypes, and after copies."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from msd_helpers import ConstantWeighting, gradients, make_msd, require_grad
from schemes import CLASSES, every_weighting, make_weighting
from strategies import make_views
from torch import Tensor, nn
from torch.testing import assert_close

from msdlosses import FixedWeighting, KDLoss, MSDLoss, SaliencyWeighting


@every_weighting
def test_compiled_without_graph_break_equals_eager(scheme: str) -> None:
    batch = make_views("image", "text")
    msd = make_msd(scheme, batch.names)
    torch.compiler.reset()
    compiled = torch.compile(msd, fullgraph=True, backend="aot_eager")
    mask = torch.tensor([[True] * 3, [False, True, False], [False, False, True], [False] * 3])
    for valid in (None, mask):
        student = require_grad(batch.student)
        inputs = student | dict(msd.named_parameters())
        eager_loss, compiled_loss = (
            function(student, batch.teacher, batch.target, valid=valid)
            for function in (msd, compiled)
        )
        assert_close(compiled_loss, eager_loss)
        assert_close(gradients(compiled_loss, inputs), gradients(eager_loss, inputs))


def test_gradients_match_finite_differences_to_second_order() -> None:
    """A meta-learner needs them, for the student's logits and for the weights."""
    batch = make_views("image", "text", samples=2, classes=3)
    student = [logits.double().requires_grad_() for logits in batch.student.values()]
    teacher = {view: logits.double() for view, logits in batch.teacher.items()}
    weights = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)

    def loss(weights: Tensor, *logits: Tensor) -> Tensor:
        msd = MSDLoss(KDLoss(2.0), ConstantWeighting(weights))
        return msd(dict(zip(batch.names, logits, strict=True)), teacher)

    assert torch.autograd.gradcheck(loss, (weights, *student))
    assert torch.autograd.gradgradcheck(loss, (weights, *student))


def test_vmap_over_samples_equals_a_batch() -> None:
    batch = make_views("image", "text")
    msd = MSDLoss(KDLoss(), SaliencyWeighting())

    def loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        return msd(
            {v: x[None] for v, x in student.items()}, {v: x[None] for v, x in teacher.items()}
        )

    values = torch.func.vmap(loss)(batch.student, batch.teacher)
    assert_close(values.mean(), msd(batch.student, batch.teacher))
    per_sample = torch.func.vmap(torch.func.grad(loss))(batch.student, batch.teacher)
    student = require_grad(batch.student)
    expected = gradients(msd(student, batch.teacher), student)
    assert_close({view: g / 4 for view, g in per_sample.items()}, expected)


# Dtypes


@every_weighting
def test_computes_in_float64_after_a_move_to_float64(scheme: str) -> None:
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
def test_half_precision_logits_are_upcast_to_float32(scheme: str) -> None:
    batch = make_views("image", "text")
    student, teacher = (
        {view: logits.to(torch.bfloat16) for view, logits in side.items()}
        for side in (batch.student, batch.teacher)
    )
    msd = make_msd(scheme, batch.names)
    loss = msd(student, teacher, batch.target)
    upcast = [{v: x.float() for v, x in side.items()} for side in (student, teacher)]
    assert loss.dtype == torch.float32
    assert_close(loss, msd(*upcast, batch.target))


@every_weighting
def test_loss_is_float32_under_autocast(scheme: str) -> None:
    batch = make_views("image", "text")
    student = nn.Linear(CLASSES, CLASSES)
    msd = make_msd(scheme, batch.names)
    with torch.autocast("cpu", torch.bfloat16):
        logits = {view: student(values) for view, values in batch.student.items()}
        loss = msd(logits, batch.teacher, batch.target)
    assert logits["full"].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    upcast = {view: values.float() for view, values in logits.items()}
    # Autocast runs the layers of the weight net in bfloat16.
    assert_close(loss, msd(upcast, batch.teacher, batch.target), rtol=1e-2, atol=1e-3)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


# Copies


@every_weighting
def test_copies_equal_the_original(scheme: str) -> None:
    batch = make_views("image", "text")
    msd = make_msd(scheme, batch.names)
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"msd": msd}).state_dict(), file)
    file.seek(0)
    # A new weighting that is not fitted, or has other weights, to load the state dict into.
    weighting = {
        "population saliency": SaliencyWeighting(population=True),
        "fixed": FixedWeighting(full=0, image=0, text=0),
    }.get(scheme, make_weighting(scheme, batch.names))
    loaded = MSDLoss(KDLoss(2.0), weighting)
    nn.ModuleDict({"msd": loaded}).load_state_dict(torch.load(file, weights_only=True))
    expected = msd(batch.student, batch.teacher, batch.target)
    for other in (loaded, copy.deepcopy(msd), pickle.loads(pickle.dumps(msd))):
        assert torch.equal(other(batch.student, batch.teacher, batch.target), expected)
