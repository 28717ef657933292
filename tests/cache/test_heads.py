"""Caches of hidden states, with their heads."""

from __future__ import annotations

import pickle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from linear import CLASSES, OPTIONS
from torch import Tensor, nn

from benchmarks.counters import largest_tensor
from msdlosses import Fill, KDLoss, LinearLogits, ModalityViews, TeacherCache

WIDTH = 6


class Decoder(nn.Module):
    """Hidden states (N, L, D)."""

    def __init__(self, classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.body = nn.Linear(3, WIDTH)
        self.lm_head = nn.Linear(WIDTH, classes, dtype=dtype)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.body(pixels.unsqueeze(1) + tokens.unsqueeze(-1)).tanh()


def views_of(model: Any, **options: Any) -> ModalityViews:
    def output(hidden: Tensor) -> LinearLogits:
        return LinearLogits(hidden, model.lm_head.weight, model.lm_head.bias, **options)

    return ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0), output=output)


def make_batch(size: int = 4) -> dict[str, Tensor]:
    return {"pixels": torch.randn(size, 3), "tokens": torch.randn(size, 5)}


def build(model: Decoder, path: Path, *batches: Any, **options: Any) -> TeacherCache:
    return TeacherCache.build(model, views_of(model), batches, path, **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "positions", [None, lambda batch: batch["tokens"] > 0], ids=["all", "some"]
)
def test_logits_equal_those_of_the_teacher(options: Any, positions: Any, tmp_path: Path) -> None:
    model, batch = Decoder(CLASSES + 2 if "classes" in options else CLASSES), make_batch()
    views = views_of(model, **options)
    cache = TeacherCache.build(
        model, views, [batch], tmp_path, positions=positions, dtype="float32"
    )
    mask = torch.ones(4, 5).bool() if positions is None else positions(batch)
    read = cache[:] if positions is None else cache.read(slice(4), mask)
    for view, expected in views(model, batch).items():
        assert isinstance(read[view], LinearLogits)
        assert read[view].shape == expected.shape
        assert torch.equal(read[view].hidden[mask], expected.hidden[mask])
        assert torch.equal(read[view].materialize()[mask], expected.materialize()[mask])
    assert read.modalities == ("image", "text")


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("dtype", "precision"), [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_losses_are_exact_up_to_rounding_at_every_temperature(
    temperature: float, dtype: str, precision: float, tmp_path: Path
) -> None:
    teacher, student, batch = Decoder(), Decoder(), make_batch()
    cached = build(teacher, tmp_path, batch, dtype=dtype)[:]["full"]
    logits, exact = (views_of(model)(model, batch)["full"] for model in (student, teacher))
    assert (cached.hidden - exact.hidden).abs().max() <= precision
    loss = KDLoss(temperature)
    torch.testing.assert_close(
        loss(logits, cached), loss(logits, exact), rtol=8 * precision, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_hidden_states_are_read_in_the_dtype_of_the_head(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = Decoder().to(dtype)
    batch = {name: entry.to(dtype) for name, entry in make_batch().items()}
    read = build(model, tmp_path, batch)[:]["text"]
    assert read.hidden.dtype == read.weight.dtype == dtype
    assert torch.equal(read.weight, model.lm_head.weight)
    torch.testing.assert_close(
        read.hidden, views_of(model)(model, batch)["text"].hidden, rtol=2**-7, atol=2**-9
    )


def test_one_integer_returns_one_sample(tmp_path: Path) -> None:
    model, batch = Decoder(), make_batch()
    cache = build(model, tmp_path, batch, dtype="float32")
    expected = views_of(model)(model, batch)["image"]
    assert torch.equal(cache[2]["image"].materialize(), expected[2].materialize())


def test_a_head_is_stored_once_for_all_views(tmp_path: Path) -> None:
    model = Decoder()
    model.lm_head.bias = None
    build(model, tmp_path, make_batch())
    assert len([*tmp_path.glob("*.head")]) == 1


def test_views_may_have_heads_of_their_own_or_none(tmp_path: Path) -> None:
    weights = {"full": torch.randn(4, 3), "text": torch.randn(7, 3)}

    class Views(ModalityViews):
        def forward(self, model: Any, batch: Any) -> dict[str, Any]:
            logits = super().forward(model, batch)
            return {
                v: LinearLogits(x, weights[v]) if v in weights else x for v, x in logits.items()
            }

    views = Views(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
    batch = {"pixels": torch.randn(2, 3), "tokens": torch.randn(2, 1)}
    cache = TeacherCache.build(lambda pixels, tokens: pixels + tokens, views, [batch], tmp_path)
    assert cache[:]["full"].shape == (2, 4)
    assert cache[:]["text"].shape == (2, 7)
    assert isinstance(cache[:]["image"], Tensor)


def test_gathered_weights_are_compared_by_value(tmp_path: Path) -> None:
    model = Decoder()
    views = ModalityViews(
        image=Fill(pixels=0.0),
        text=Fill(tokens=0.0),
        output=lambda hidden: LinearLogits(hidden, model.lm_head.weight.detach().clone()),
    )
    cache = TeacherCache.build(model, views, [make_batch(), make_batch()], tmp_path)
    assert len(cache) == 8
    assert len([*tmp_path.glob("*.head")]) == 1


def change(model: Decoder, how: str) -> Any:
    yield make_batch()
    if how == "tensor":
        model.lm_head = nn.Linear(WIDTH, CLASSES)
    elif how == "in place":
        model.lm_head.weight.data += 1
    elif how == "bias":
        model.lm_head.bias = None
    yield make_batch()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("tensor", "the same head for `full` as before"),
        ("bias", "the same head for `full` as before"),
        ("in place", "a change in place"),
    ],
)
def test_head_must_stay_the_same(how: str, message: str, tmp_path: Path) -> None:
    model = Decoder()
    with pytest.raises(ValueError, match=message):
        TeacherCache.build(model, views_of(model), change(model, how), tmp_path)
    with pytest.raises(FileNotFoundError):
        TeacherCache.open(tmp_path)


def test_rejects_top_k_of_hidden_states(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`top_k`.*LinearLogits"):
        build(Decoder(), tmp_path, make_batch(), top_k=2)


def test_rejects_hidden_states_that_cannot_be_stored(tmp_path: Path) -> None:
    model = Decoder()
    views = ModalityViews(
        image=Fill(pixels=0.0),
        text=Fill(tokens=0.0),
        output=lambda hidden: LinearLogits(1e5 * hidden, model.lm_head.weight),
    )
    with pytest.raises(ValueError, match="teacher hidden states of `full` of at most 65504"):
        TeacherCache.build(model, views, [make_batch()], tmp_path)


def test_build_and_reading_do_not_materialize_logits(tmp_path: Path) -> None:
    model, batch = Decoder(classes=1000), make_batch(50)
    cache: list[TeacherCache] = []
    assert largest_tensor(lambda: cache.append(build(model, tmp_path, batch))) <= 4 * WIDTH * 1000
    assert largest_tensor(lambda: cache[0][:]) <= 4 * WIDTH * 1000  # bytes of the head
    assert 4 * WIDTH * 1000 < 50 * 5 * 1000


# Files


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [100, 4096, -1], ids=["header", "first", "last"])
def test_flipped_byte_of_a_head_is_detected(at: int, tmp_path: Path) -> None:
    build(Decoder(), tmp_path, make_batch())
    for path in tmp_path.glob("*.head"):
        flip(path, at)
        with pytest.raises(ValueError, match=str(path)):
            TeacherCache.open(tmp_path)[0]
        with pytest.raises(ValueError, match=str(path)):
            TeacherCache.open(tmp_path, verify=True)
        flip(path, at)


def test_truncated_or_missing_head_is_detected_on_opening(tmp_path: Path) -> None:
    build(Decoder(), tmp_path, make_batch())
    path = next(tmp_path.glob("*.head"))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=str(path)):
        TeacherCache.open(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=str(path)):
        TeacherCache.open(tmp_path)


class InterruptError(Exception):
    pass


@pytest.mark.parametrize("damaged", [True, False])
def test_resumed_build_starts_again_if_its_head_is_damaged(damaged: bool, tmp_path: Path) -> None:
    model, batches = (
        Decoder(),
        [{**make_batch(), "index": torch.arange(4) + 4 * i} for i in range(3)],
    )

    def loader() -> Any:
        yield from batches
        raise InterruptError

    with pytest.raises(InterruptError):
        TeacherCache.build(model, views_of(model), loader(), tmp_path, fingerprint="1")
    if damaged:
        flip(next(tmp_path.glob("*.head")), -1)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    cache = build(model, tmp_path, *batches, fingerprint="1")
    assert len(calls) == (3 if damaged else 1)
    torch.testing.assert_close(cache[[0, 9]]["full"].weight, model.lm_head.weight)


def test_head_that_is_damaged_during_the_build(tmp_path: Path) -> None:
    model, batches = Decoder(), [{**make_batch(), "index": torch.arange(4) + 4 * i} for i in (0, 1)]

    def loader() -> Any:
        yield from batches
        flip(next(tmp_path.glob("*.head")), -1)

    with pytest.raises(OSError, match=r"each head in .* as it was written"):
        TeacherCache.build(model, views_of(model), loader(), tmp_path, fingerprint="1")
    assert len(build(model, tmp_path, *batches, fingerprint="1")) == 8


def test_head_without_records_does_not_disturb_the_next_build(tmp_path: Path) -> None:
    """The process ended before the first records were written."""
    model, batch = Decoder(), {**make_batch(), "index": torch.arange(4)}
    with pytest.raises(TypeError):
        build(model, tmp_path, batch, 3, fingerprint="1")
    next(tmp_path.glob("*.head"))
    model.lm_head.weight.data += 1
    cache = build(model, tmp_path, batch, fingerprint="1")
    assert torch.equal(cache[0]["full"].weight, model.lm_head.weight)


def test_resumed_build_of_another_head_is_refused(tmp_path: Path) -> None:
    batches = [{**make_batch(), "index": torch.arange(4) + 4 * i} for i in range(3)]
    with pytest.raises(TypeError):
        build(Decoder(), tmp_path, *batches[:2], 3, fingerprint="1")
    with pytest.raises(ValueError, match="the same head for `full` as before"):
        build(Decoder(), tmp_path, *batches, fingerprint="1")


def read_in_a_process(cache: TeacherCache, queue: Any) -> None:
    queue.put(cache[1]["full"].materialize().tolist())


def test_other_processes_load_the_head_from_disk(tmp_path: Path) -> None:
    cache = build(Decoder(classes=300), tmp_path, make_batch())
    assert len(pickle.dumps(cache)) < 1000
    context = get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=read_in_a_process, args=(cache, queue))
    process.start()
    read = torch.tensor(queue.get(timeout=120))
    torch.testing.assert_close(read, cache[1]["full"].materialize())
    process.join()


def test_head_is_loaded_once(tmp_path: Path) -> None:
    cache = build(Decoder(), tmp_path, make_batch())
    first, second = cache[0], cache[1]
    assert first["full"].weight is second["text"].weight


def test_reading_does_not_change_the_file(tmp_path: Path) -> None:
    cache = build(Decoder(), tmp_path, make_batch())
    before = cache[0]["full"].weight.clone()
    cache[0]["full"].weight.zero_()
    assert torch.equal(TeacherCache.open(tmp_path)[0]["full"].weight, before)
