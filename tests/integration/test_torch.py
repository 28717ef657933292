"""Precision, compilers, transforms and batches of tensordict: equal to the plain step."""

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
        self.picture, self.words = nn.Linear(4, 8), nn.Embedding(10, 8)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        features = torch.cat([self.picture(pixels), self.words(tokens).mean(1)], -1)
        return self.last(features.tanh())


def given(device: str = "cpu") -> dict[str, Any]:
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


def prepared(**setting: Any) -> dict[str, Any]:
    """With the page's views and loss."""
    return run("torch", "Mixed precision", **setting)


def stepped(dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """The student after the page's steps, in some precision."""
    setting = {**prepared(**given(device)), "device": device, "dtype": dtype}
    run("torch", ("Mixed precision", 1), **setting)
    return [p.detach() for p in setting["student"].parameters()]


def loss_of(setting: dict[str, Any], student: nn.Module, batch: Any, target: Tensor) -> Tensor:
    """The loss, plainly."""
    views, msd = setting["views"], setting["msd"]
    with torch.no_grad():
        t = views(setting["teacher"], batch)
    s = views(student, batch)
    return 0.5 * F.cross_entropy(s["full"], target) + 0.5 * msd(s, t, target)


def plain() -> list[Tensor]:
    """The student after the same steps, in single precision, by hand."""
    setting = prepared(**given())
    for batch, target in setting["loader"]:
        setting["optimizer"].zero_grad()
        loss_of(setting, setting["student"], batch, target).backward()
        setting["optimizer"].step()
    return [p.detach() for p in setting["student"].parameters()]


no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=no_gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_in_half_precision_are_near_to_those_in_single(
    dtype: torch.dtype, device: str
) -> None:
    start = [p.detach() for p in given()["student"].parameters()]
    for before, found, expected in zip(start, stepped(dtype, device), plain(), strict=True):
        assert found.dtype == torch.float32
        moved = (expected - before).norm()
        assert moved > 0
        assert (found.cpu() - expected).norm() < 0.02 * moved


def gradients(loss: Tensor, student: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(student.parameters())))


def batch_of(setting: dict[str, Any]) -> dict[str, Any]:
    """The first batch, and what the teacher says of it."""
    batch, target = setting["loader"][0]
    with torch.no_grad():
        t = setting["views"](setting["teacher"], batch)
    return {**setting, "batch": batch, "target": target, "t": t}


@pytest.mark.parametrize("what", ["student", "loss", "both"])
def test_compiled_parts_give_the_same_gradients(what: str, monkeypatch: Any) -> None:
    whole = torch.compile
    monkeypatch.setattr(  # what the default makes of the graphs is its own matter, and slow
        torch, "compile", lambda *args, **options: whole(*args, **options, backend="aot_eager")
    )
    found = run("torch", "Compiled", **batch_of(prepared(**given())))
    student, batch, t, target = (found[name] for name in ("student", "batch", "t", "target"))
    loss = found["loss"]
    if what != "both":
        model = found["fast_student"] if what == "student" else student
        msd = found["fast_msd"] if what == "loss" else found["msd"]
        s = found["views"](model, batch)
        loss = 0.5 * F.cross_entropy(s["full"], target) + 0.5 * msd(s, t, target)
    expected = loss_of(found, student, batch, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, student), gradients(expected, student))


def test_an_ensemble_has_the_gradients_of_its_students() -> None:
    found = run("torch", "Ensembles", **batch_of(prepared(**given())))
    assert found["gradients"]["last.bias"].shape == (3, CLASSES)
    for i, student in enumerate(found["students"]):
        loss = loss_of(found, student, found["batch"], found["target"])
        of_one = [gradient[i] for gradient in found["gradients"].values()]
        torch.testing.assert_close(of_one, gradients(loss, student))


def test_an_exported_student_fills_in_what_it_learned() -> None:
    setting = batch_of(prepared(**given()))
    found = run("torch", "Export", **setting)
    with torch.no_grad():  # as if it had learned
        found["learned_views"].maskers["image"].get_parameter("absent_pixels").copy_(torch.randn(4))
    found = run("torch", ("Export", 1), **found)
    file = io.BytesIO()
    torch.export.save(found["program"], file)
    file.seek(0)
    program = torch.export.load(file).module()
    few = {name: entry[:2] for name, entry in setting["batch"].items()}
    expected = found["learned_views"](setting["student"], few)["text"]
    torch.testing.assert_close(program(**few), expected)
    other = {**few, "pixels": torch.randn(2, 4)}
    torch.testing.assert_close(program(**other), expected)


def test_batches_of_tensordict_are_batches() -> None:
    tensordict = pytest.importorskip("tensordict")
    setting = batch_of(prepared(**given()))
    expected = setting["views"](setting["student"], setting["batch"])
    for number in range(2):
        found = run("torch", "tensordict", *([("tensordict", 1)] if number else []), **setting)
        torch.testing.assert_close(found["s"], expected)
    nested = tensordict.TensorDict(
        {"a": setting["batch"], "more": {"b": torch.randn(SAMPLES, 2)}}, batch_size=[SAMPLES]
    )
    views = type(setting["views"])(
        image=found["Fill"](**{"a.pixels": 0.0}), text=found["Fill"](a={"tokens": PAD})
    )
    logits = views(lambda a, more: setting["student"](**a), nested)
    torch.testing.assert_close(logits, expected)
    assert torch.equal(nested["a", "pixels"], setting["batch"]["pixels"])
