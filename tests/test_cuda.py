"""On a GPU: the same results as on the CPU, and no assumptions about devices."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from msdlosses import (
    Fill,
    FixedWeighting,
    KDLoss,
    MetaLearner,
    ModalityDropout,
    ModalityViews,
    MSDLoss,
    MultiLabelKDLoss,
    SaliencyWeighting,
    TeacherCache,
    TeacherLossWeighting,
    Weighting,
    WeightNet,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NAMES = ("full", "image", "text")
DEVICES = ("cpu", "cuda")

StepData = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


class Student(nn.Module):
    """A linear encoder, and an LSTM, for which cuDNN has no second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(4, 8)
        self.text = nn.LSTM(3, 8, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        text = self.text(words)[0].mean(1)
        return self.head(torch.cat([self.image(pixels), text], dim=-1).tanh())


def make_batch(device: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"pixels": torch.randn(6, 4).to(device), "words": torch.randn(6, 7, 3).to(device)}


def make_views() -> ModalityViews:
    return ModalityViews(image=Fill(pixels=torch.full((4,), 0.5)), text=Fill(words=0.0))


@pytest.mark.parametrize("loss", [KDLoss(2.0), MultiLabelKDLoss()], ids=lambda loss: str(loss))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_equal_the_cpu(loss: nn.Module, dtype: torch.dtype) -> None:
    student, teacher = torch.randn(2, 64, 23, dtype=dtype)
    assert_close(loss(student.cuda(), teacher.cuda()).cpu(), loss(student, teacher))


@pytest.mark.parametrize(
    "weighting",
    [
        FixedWeighting(full=1.0, image=0.5, text=0.25),
        SaliencyWeighting(1.0),
        TeacherLossWeighting(1.0),
        WeightNet(NAMES, num_classes=5),
    ],
    ids=lambda weighting: type(weighting).__name__,
)
def test_msd_loss_moves_with_its_weighting(weighting: Weighting) -> None:
    msd = MSDLoss(KDLoss(2.0), weighting)
    student, teacher = ({name: torch.randn(6, 5) for name in NAMES} for _ in range(2))
    target, valid = torch.randint(5, (6,)), torch.rand(6, 3) < 0.7
    expected = msd(student, teacher, target, valid=valid)
    student, teacher = ({k: v.cuda() for k, v in views.items()} for views in (student, teacher))
    actual = msd.cuda()(student, teacher, target.cuda(), valid=valid.cuda())
    assert_close(actual.cpu(), expected)
    msd.cpu()


def test_rejects_maskers_on_another_device() -> None:
    views, model = make_views(), Student().cuda()
    with pytest.raises(ValueError, match=r"on cuda:0, got cpu\. Move the views"):
        views(model, make_batch("cuda"))
    assert views.cuda()(model, make_batch("cuda"))["full"].is_cuda


def test_modality_dropout_stays_on_the_device_of_the_batch() -> None:
    drop = ModalityDropout(make_views().cuda(), 0.5)
    assert all(entry.is_cuda for entry in drop(make_batch("cuda")).values())


def test_cache_returns_logits_on_the_device_of_the_index(tmp_path: Path) -> None:
    teacher, views = Student().cuda(), make_views().cuda()
    cache = TeacherCache.build(teacher, views, [make_batch("cuda")], tmp_path)
    logits = cache[torch.arange(6, device="cuda")]
    with torch.no_grad():
        assert_close(logits, views(teacher, make_batch("cuda")), rtol=1e-3, atol=1e-3)


def test_cache_is_built_from_pinned_batches(tmp_path: Path) -> None:
    torch.manual_seed(1)
    entries = {"pixels": torch.randn(50, 4), "words": torch.randn(50, 7, 3)}
    samples = [{"index": i, **{k: v[i] for k, v in entries.items()}} for i in range(50)]
    loader = DataLoader(samples, batch_size=8, shuffle=True, pin_memory=True)
    teacher, views = Student(), make_views()
    expected = views(teacher, entries)
    cache = TeacherCache.build(teacher.cuda(), views.cuda(), loader, tmp_path, device="cuda")
    actual = cache[torch.arange(50)]
    assert_close(actual, {k: v.detach() for k, v in expected.items()}, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "NaN"), (70000.0, "65504")], ids=["NaN", "too large"]
)
def test_cache_rejects_logits_that_fp16_cannot_hold(
    value: float, message: str, tmp_path: Path
) -> None:
    batch = {**make_batch("cuda"), "pixels": torch.full((6, 4), value, device="cuda")}
    with pytest.raises(ValueError, match=message):
        TeacherCache.build(lambda pixels, words: pixels, make_views().cuda(), [batch], tmp_path)


class LateFusion(nn.Module):
    """Two linear encoders and a fusion head, without random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(4, 8)
        self.text = nn.Linear(21, 8)
        self.last = nn.Linear(16, 5)

    def towers(self, pixels: Tensor, words: Tensor) -> dict[str, Tensor]:
        return {"image": self.image(pixels).tanh(), "text": self.text(words.flatten(1)).tanh()}

    def head(self, image: Tensor, text: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.cat([image, text], dim=-1))
        return logits

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        return self.head(**self.towers(pixels, words))


@pytest.mark.parametrize("late", [False, True], ids=["stacked views", "late fusion"])
def test_training_step_can_be_captured_in_a_cuda_graph(late: bool) -> None:
    """Replays take the same steps as eager code: views, losses, weights, backward, optimizer."""
    torch.manual_seed(0)
    student, views = LateFusion().cuda(), make_views().cuda()
    msd = MSDLoss(KDLoss(2.0), SaliencyWeighting(1.0))
    eager_student = deepcopy(student)
    batches = [step_data(seed) for seed in range(4)]
    static = deepcopy(batches[0])

    def step(model: LateFusion, optimizer: torch.optim.Optimizer, data: StepData) -> None:
        batch, teacher, target = data
        s = views.late_fusion(model.towers, model.head, batch) if late else views(model, batch)
        (F.cross_entropy(s["full"], target) + msd(s, teacher)).backward()
        optimizer.step()

    replay = capture(student, lambda optimizer: step(student, optimizer, static))
    with torch.no_grad():
        for parameter, initial in zip(
            student.parameters(), eager_student.parameters(), strict=True
        ):
            parameter.copy_(initial)  # the warm-up changed it
    optimizer = torch.optim.SGD(eager_student.parameters(), 0.1)
    for data in batches:
        optimizer.zero_grad()
        step(eager_student, optimizer, data)
        for old, new in zip(tree_leaves(static), tree_leaves(data), strict=True):
            old.copy_(new)
        replay()
    for parameter, expected in zip(student.parameters(), eager_student.parameters(), strict=True):
        assert_close(parameter, expected, rtol=1e-4, atol=1e-5)


def step_data(seed: int) -> StepData:
    generator = torch.Generator().manual_seed(seed)
    batch = {
        name: torch.randn(value.shape, generator=generator).cuda()
        for name, value in make_batch("cpu").items()
    }
    teacher = {name: torch.randn(6, 5, generator=generator).cuda() for name in NAMES}
    return batch, teacher, torch.randint(5, (6,), generator=generator).cuda()


def capture(
    student: nn.Module, step: Callable[[torch.optim.Optimizer], None]
) -> Callable[[], None]:
    """Capture a step of SGD in a graph, and return a function that replays it."""
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.zero_grad()
            step(optimizer)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad()  # the graph allocates gradients, and each replay overwrites them
    with torch.cuda.graph(graph):
        step(optimizer)
    replay: Callable[[], None] = graph.replay
    return replay


@pytest.mark.parametrize("engine", ["forward", "double-backward", "higher"])
@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_meta_learner_equals_the_cpu(mode: str, engine: str) -> None:
    expected, actual = (train(device, mode=mode, engine=engine) for device in DEVICES)
    assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", ["forward", "double-backward"])
def test_meta_learner_in_float16_is_close_to_float32(engine: str) -> None:
    expected = train("cuda", engine=engine)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    with torch.autocast("cuda", torch.float16):
        actual = train("cuda", engine=engine, scaler=scaler)
    assert_close(actual, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("engine", ["forward", "double-backward"])
def test_meta_learner_draws_the_same_dropout_masks_in_each_pass(engine: str) -> None:
    """The random state to restore is that of the student's device. Forward mode checks it."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 5)).cuda()
    weighting, x = nn.Linear(1, 1).cuda(), torch.randn(8, 4, device="cuda")
    optimizer = torch.optim.AdamW(student.parameters(), 0.01, fused=True)
    weighting_optimizer = torch.optim.SGD(weighting.parameters(), 0.1)
    learner = MetaLearner(student, optimizer, weighting, weighting_optimizer, engine=engine)
    for _ in range(3):
        step = learner.step(
            lambda model: weighting(model(x).square().sum(1, keepdim=True)).mean(),
            lambda model: model(x).square().mean(),
        )
    assert step.inner.isfinite()


def train(device: str, **options: Any) -> list[Tensor]:
    """The parameters of the student and the weighting after three steps."""
    torch.manual_seed(0)
    student, weighting = Student().to(device), WeightNet(NAMES, num_classes=5).to(device)
    views, msd = make_views().to(device), MSDLoss(KDLoss(), weighting)
    batch, teacher = make_batch(device), {name: torch.eye(6, 5).to(device) for name in NAMES}
    learner = MetaLearner(
        student,
        torch.optim.SGD(student.parameters(), 0.1, momentum=0.9),
        weighting,
        torch.optim.SGD(weighting.parameters(), 1.0),
        **options,
    )
    for _ in range(3):
        learner.step(
            lambda model: msd(views(model, batch), teacher),
            lambda model: F.mse_loss(views(model, batch)["full"], teacher["full"]),
        )
    return [p.detach().cpu() for p in (*student.parameters(), *weighting.parameters())]
