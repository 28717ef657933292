"""Recipes for autocast, compilers, function transforms, export, and tensordict."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from recipes import run
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, SAMPLES, PAD = 5, 6, 0


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, 8), nn.Embedding(10, 8)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        features = torch.cat([self.image(pixels), self.text(tokens).mean(1)], -1)
        return self.last(features.tanh())


def make_setting(device: str = "cpu") -> dict[str, Any]:
    torch.manual_seed(0)
    batches = [
        (
            {"pixels": torch.randn(SAMPLES, 4), "tokens": torch.randint(1, 10, (SAMPLES, 7))},
            torch.randint(CLASSES, (SAMPLES,)),
        )
        for _ in range(2)
    ]
    student, teacher = Student().to(device), Student().to(device)
    return {
        "PAD": PAD,
        "student": student,
        "teacher": teacher,
        "optimizer": torch.optim.SGD(student.parameters(), 0.1),
        "loader": [
            ({name: entry.to(device) for name, entry in batch.items()}, target.to(device))
            for batch, target in batches
        ],
    }


def with_loss(**setting: Any) -> dict[str, Any]:
    """Add the views and the loss of the page."""
    return run("torch", "Mixed precision", **setting)


def train_with_autocast(dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Return the student's parameters after the steps of the page."""
    setting = {**with_loss(**make_setting(device)), "device": device, "dtype": dtype}
    run("torch", ("Mixed precision", 1), **setting)
    return [p.detach() for p in setting["student"].parameters()]


def loss_of(setting: dict[str, Any], student: nn.Module, batch: Any, target: Tensor) -> Tensor:
    """Compute the loss of the page in eager code."""
    views, msd = setting["views"], setting["msd"]
    with torch.no_grad():
        t = views(setting["teacher"], batch)
    s = views(student, batch)
    return 0.5 * F.cross_entropy(s["full"], target) + 0.5 * msd(s, t, target)


def train_in_float32() -> list[Tensor]:
    """Return the student's parameters after the same steps without autocast."""
    setting = with_loss(**make_setting())
    for batch, target in setting["loader"]:
        setting["optimizer"].zero_grad()
        loss_of(setting, setting["student"], batch, target).backward()
        setting["optimizer"].step()
    return [p.detach() for p in setting["student"].parameters()]


no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=no_gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_close_to_float32(dtype: torch.dtype, device: str) -> None:
    start = [p.detach() for p in make_setting()["student"].parameters()]
    trained = train_with_autocast(dtype, device), train_in_float32()
    for before, actual, expected in zip(start, *trained, strict=True):
        assert actual.dtype == torch.float32
        change = (expected - before).norm()
        assert change > 0
        assert (actual.cpu() - expected).norm() < 0.02 * change


def gradients(loss: Tensor, student: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(student.parameters())))


def with_batch(setting: dict[str, Any]) -> dict[str, Any]:
    """Add the first batch and the teacher's logits on it."""
    batch, target = setting["loader"][0]
    with torch.no_grad():
        t = setting["views"](setting["teacher"], batch)
    return {**setting, "batch": batch, "target": target, "t": t}


@pytest.mark.parametrize("compiled", ["student", "loss", "both"])
def test_compiled_gradients_equal_eager(compiled: str, monkeypatch: Any) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(  # a backend that is faster to compile than the default
        torch, "compile", lambda *args, **options: compile_(*args, **options, backend="aot_eager")
    )
    recipe = run("torch", "Compiled", **with_batch(with_loss(**make_setting())))
    student, batch, t, target = (recipe[name] for name in ("student", "batch", "t", "target"))
    loss = recipe["loss"]
    if compiled != "both":
        model = recipe["fast_student"] if compiled == "student" else student
        msd = recipe["fast_msd"] if compiled == "loss" else recipe["msd"]
        s = recipe["views"](model, batch)
        loss = 0.5 * F.cross_entropy(s["full"], target) + 0.5 * msd(s, t, target)
    expected = loss_of(recipe, student, batch, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, student), gradients(expected, student))


def test_ensemble_gradients_equal_those_of_each_student() -> None:
    recipe = run("torch", "Ensembles", **with_batch(with_loss(**make_setting())))
    assert recipe["gradients"]["last.bias"].shape == (3, CLASSES)
    for i, student in enumerate(recipe["students"]):
        loss = loss_of(recipe, student, recipe["batch"], recipe["target"])
        actual = [gradient[i] for gradient in recipe["gradients"].values()]
        torch.testing.assert_close(actual, gradients(loss, student))


def test_exported_student_contains_the_learned_fill() -> None:
    setting = with_batch(with_loss(**make_setting()))
    recipe = run("torch", "Export", **setting)
    with torch.no_grad():  # as training would
        fill = recipe["learned_views"].maskers["image"].get_parameter("absent_pixels")
        fill.copy_(torch.randn(4))
    recipe = run("torch", ("Export", 1), **recipe)
    file = io.BytesIO()
    torch.export.save(recipe["program"], file)
    file.seek(0)
    program = torch.export.load(file).module()
    batch = {name: entry[:2] for name, entry in setting["batch"].items()}
    expected = recipe["learned_views"](setting["student"], batch)["text"]
    torch.testing.assert_close(program(**batch), expected)
    other_image = {**batch, "pixels": torch.randn(2, 4)}
    torch.testing.assert_close(program(**other_image), expected)


def test_tensordict_batches_equal_dict_batches() -> None:
    tensordict = pytest.importorskip("tensordict")
    setting = with_batch(with_loss(**make_setting()))
    expected = setting["views"](setting["student"], setting["batch"])
    for number in range(2):
        recipe = run("torch", "tensordict", *([("tensordict", 1)] if number else []), **setting)
        torch.testing.assert_close(recipe["s"], expected)
    nested = tensordict.TensorDict(
        {"a": setting["batch"], "more": {"b": torch.randn(SAMPLES, 2)}}, batch_size=[SAMPLES]
    )
    views = type(setting["views"])(
        image=recipe["Fill"](**{"a.pixels": 0.0}), text=recipe["Fill"](a={"tokens": PAD})
    )
    logits = views(lambda a, more: setting["student"](**a), nested)
    torch.testing.assert_close(logits, expected)
    assert torch.equal(nested["a", "pixels"], setting["batch"]["pixels"])
