"""On a GPU: the same numbers as on the CPU, and no device taken for granted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

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


class Student(nn.Module):
    """Two linear towers and an LSTM, whose second derivatives cuDNN lacks."""

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
def test_losses_equal_those_of_the_cpu(loss: nn.Module, dtype: torch.dtype) -> None:
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
def test_msd_moves_with_its_weighting(weighting: Weighting) -> None:
    msd = MSDLoss(KDLoss(2.0), weighting)
    student, teacher = ({name: torch.randn(6, 5) for name in NAMES} for _ in range(2))
    target, valid = torch.randint(5, (6,)), torch.rand(6, 3) < 0.7
    expected = msd(student, teacher, target, valid=valid)
    student, teacher = ({k: v.cuda() for k, v in views.items()} for views in (student, teacher))
    actual = msd.cuda()(student, teacher, target.cuda(), valid=valid.cuda())
    assert_close(actual.cpu(), expected)
    msd.cpu()


def test_views_say_when_a_masker_was_not_moved() -> None:
    views, model = make_views(), Student().cuda()
    with pytest.raises(ValueError, match=r"on cuda:0, got cpu: move the views"):
        views(model, make_batch("cuda"))
    assert views.cuda()(model, make_batch("cuda"))["full"].is_cuda


def test_dropout_draws_where_the_batch_is() -> None:
    drop = ModalityDropout(make_views().cuda(), 0.5)
    assert all(entry.is_cuda for entry in drop(make_batch("cuda")).values())


def test_a_cache_is_read_to_where_its_index_is(tmp_path: Path) -> None:
    teacher, views = Student().cuda(), make_views().cuda()
    cache = TeacherCache.build(teacher, views, [make_batch("cuda")], tmp_path)
    logits = cache[torch.arange(6, device="cuda")]
    with torch.no_grad():
        assert_close(logits, views(teacher, make_batch("cuda")), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_a_learner_takes_the_same_steps(mode: str) -> None:
    expected, actual = (learned(device, mode) for device in DEVICES)
    assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def learned(device: str, mode: str) -> list[Tensor]:
    """The parameters of student and weighting after three steps."""
    torch.manual_seed(0)
    student, weighting = Student().to(device), WeightNet(NAMES, num_classes=5).to(device)
    views, msd = make_views().to(device), MSDLoss(KDLoss(), weighting)
    batch, teacher = make_batch(device), {name: torch.eye(6, 5).to(device) for name in NAMES}
    learner = MetaLearner(
        student,
        torch.optim.SGD(student.parameters(), 0.1, momentum=0.9),
        weighting,
        torch.optim.SGD(weighting.parameters(), 1.0),
        mode=mode,
    )
    for _ in range(3):
        learner.step(
            lambda model: msd(views(model, batch), teacher),
            lambda model: F.mse_loss(views(model, batch)["full"], teacher["full"]),
        )
    return [p.detach().cpu() for p in (*student.parameters(), *weighting.parameters())]
