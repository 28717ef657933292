"""`MSDLoss` in compiled code, under `torch.func`, in other dtypes, and after copies."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from laws import LOSSES, LossCase
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


BATCH_SIZES = (8, 5, 3, 16, 7, 11, 2, 9, 64, 33)


def count_graphs(msd: MSDLoss, dynamic: bool | None) -> int:
    """Compile a loss, run it on batches of many sizes, and return the number of graphs."""
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(msd, fullgraph=True, dynamic=dynamic, backend=backend)
    for samples in BATCH_SIZES:
        batch = make_views("image", "text", samples=samples)
        student = require_grad(batch.student)
        loss = compiled(student, batch.teacher, batch.target)
        assert_close(loss, msd(batch.student, batch.teacher, batch.target))
        loss.backward()
    return len(graphs)


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_criterion_is_compiled_once_for_all_batch_sizes(case: LossCase) -> None:
    assert count_graphs(MSDLoss(case.make()), dynamic=True) <= 2


@every_weighting
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
def test_weighting_is_compiled_once_for_all_batch_sizes(scheme: str, dynamic: bool | None) -> None:
    assert count_graphs(make_msd(scheme, ("full", "image", "text")), dynamic) <= 2


@every_weighting
def test_marked_batch_axis_is_compiled_once(scheme: str) -> None:
    torch.compiler.reset()
    msd = make_msd(scheme, ("full", "image", "text"))
    compiled = torch.compile(msd, fullgraph=True, backend="eager")
    for samples in BATCH_SIZES:
        batch = make_views("image", "text", samples=samples)
        for tensor in (*batch.student.values(), *batch.teacher.values(), batch.target):
            torch._dynamo.mark_dynamic(tensor, 0)  # raises an error if the size would be fixed
        loss = compiled(batch.student, batch.teacher, batch.target)
        assert_close(loss, msd(batch.student, batch.teacher, batch.target))


@every_weighting
def test_exported_with_a_dynamic_batch(scheme: str) -> None:
    batch = make_views("image", "text", samples=8)
    msd = make_msd(scheme, batch.names)
    size = torch.export.Dim("batch", min=2)
    views = {view: {0: size} for view in batch.names}
    arguments = (batch.student, batch.teacher, batch.target)
    program = torch.export.export(msd, arguments, dynamic_shapes=(views, views, {0: size}))
    for samples in (3, 20):
        other = make_views("image", "text", samples=samples)
        other_arguments = (other.student, other.teacher, other.target)
        assert_close(program.module()(*other_arguments), msd(*other_arguments))


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
