"""Caches of some positions of each sample, without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from msdlosses import Fill, ModalityViews, TeacherCache
from msdlosses.cache import _writing

ABSENT = -100
views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0), ignore="labels")


def teacher(pixels: Tensor, tokens: Tensor) -> Tensor:
    """Three logits for each token."""
    return tokens.unsqueeze(-1) + pixels.unsqueeze(1)


def answers(batch: dict[str, Tensor]) -> Tensor:
    return batch["labels"] != ABSENT


def make_batch(rows: list[int], masks: list[list[bool]]) -> dict[str, Tensor]:
    """Number the kept tokens of each sample, so that they do not depend on padding."""
    mask = torch.tensor(masks)
    index = torch.tensor(rows)
    tokens = torch.where(mask, mask.cumsum(1), torch.nan)
    pixels = torch.tensor([[16.0, 32.0, 64.0]]) * (1.0 + index[:, None] % 4)
    labels = torch.where(mask, 1, ABSENT)
    return {"index": index, "pixels": pixels, "tokens": tokens, "labels": labels}


def build(path: Path, *batches: dict[str, Tensor], **options: Any) -> TeacherCache:
    options = {"fingerprint": "1", "positions": answers, **options}
    return TeacherCache.build(teacher, views, batches, path, **options)


def assert_right(cache: TeacherCache, batch: dict[str, Tensor]) -> None:
    mask = answers(batch)
    read = cache.read(batch["index"], mask)
    inputs = {name: entry for name, entry in batch.items() if name != "index"}
    for view, logits in views(teacher, inputs).items():
        zeros = torch.zeros_like(logits)
        assert torch.equal(read[view], torch.where(mask.unsqueeze(-1), logits, zeros)), view


A, B, C = [True, False, True, True], [False] * 4, [False, True, False, False]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_kept_positions_are_read_and_zeros_elsewhere(dtype: str, tmp_path: Path) -> None:
    batch = make_batch([5, 0, 2], [A, B, C])
    cache = build(tmp_path, batch, dtype=dtype)
    assert len(cache) == 3
    assert_right(cache, batch)
    assert_right(TeacherCache.open(tmp_path, verify=True), batch)


def test_padding_may_differ_when_reading(tmp_path: Path) -> None:
    cache = build(tmp_path, make_batch([5], [A]), make_batch([2], [[True]]))
    assert_right(
        cache, make_batch([2, 5], [[False] * 5 + [True], [True, True, False, False, True, False]])
    )


@pytest.mark.parametrize("index", [[5, 2], np.array([5, 2]), torch.tensor([5, 2])], ids=type)
def test_kinds_of_index(index: Any, tmp_path: Path) -> None:
    batch = make_batch([5, 2], [A, C])
    cache = build(tmp_path, batch)
    expected = cache.read(batch["index"], answers(batch))["text"]
    assert torch.equal(cache.read(index, answers(batch))["text"], expected)
    assert torch.equal(cache.read(5, answers(batch)[0])["text"], expected[0])
    assert cache.read(slice(0), torch.ones(0, 4).bool())["text"].shape == (0, 4, 3)


def test_values_without_a_class_axis(tmp_path: Path) -> None:
    mask = torch.tensor([A, C])
    scores = torch.rand(2, 4)
    cache = TeacherCache.build(
        lambda pixels, tokens: scores.repeat(3, 1),
        views,
        [make_batch([0, 1], [A, C])],
        tmp_path,
        positions=answers,
        dtype="float32",
    )
    assert torch.equal(cache.read([0, 1], mask)["image"], scores * mask)


def test_there_is_no_padding_on_disk(tmp_path: Path) -> None:
    """1,000 samples of 50 to 500 tokens: a position needs 60 bytes, and 32 to find and check it."""
    lengths = torch.randint(50, 501, (1000,))
    batches = []
    for rows in torch.arange(1000).split(100):
        mask = torch.arange(600) < lengths[rows].unsqueeze(1)
        batches.append(make_batch(rows.tolist(), mask.tolist()))
    cache = build(tmp_path, *batches)
    record = 3 * (3 * 2 + 4) + 2 + 4 * 8  # views of logits and a shift, padding, and counters
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size <= int(lengths.sum()) * record + 1000 * 16 + 4 * 4096
    assert_right(cache, batches[7])


masks = st.integers(1, 5).flatmap(
    lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1)
)


@given(masks=masks, size=st.integers(1, 4), shard=st.integers(1, 4000), data=st.data())
def test_any_positions_in_any_order(
    masks: list[list[bool]], size: int, shard: int, data: st.DataObject, tmp_path_factory: Any
) -> None:
    order = data.draw(st.permutations(range(len(masks))))
    batches = [
        make_batch([*rows], [masks[row] for row in rows])
        for rows in (order[start : start + size] for start in range(0, len(order), size))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_writing, "MAX_SHARD", shard)
        cache = build(tmp_path_factory.mktemp("cache"), *batches)
    rows = data.draw(st.lists(st.sampled_from(order), min_size=1))
    assert_right(cache, make_batch(rows, [masks[row] for row in rows]))


# Repeated samples, and resuming


def test_repeated_sample_must_be_the_same(tmp_path: Path) -> None:
    assert_right(
        build(tmp_path / "a", make_batch([5, 2], [A, C]), make_batch([5], [A])),
        make_batch([5], [A]),
    )
    with pytest.raises(ValueError, match="got 3 and 1 positions for 5"):
        build(tmp_path / "b", make_batch([5, 2], [A, A]), make_batch([5], [C]))
    other = make_batch([5], [A])
    other["pixels"] *= 2
    with pytest.raises(ValueError, match="different logits in `full` for 5"):
        build(tmp_path / "c", make_batch([5, 2], [A, A]), other)


class InterruptError(Exception):
    pass


def test_resumed_build_runs_incomplete_samples_again(tmp_path: Path) -> None:
    first, second = make_batch([5, 2], [C, A]), make_batch([1, 0], [A, B])

    def loader() -> Iterator[Any]:
        yield first
        yield second
        raise InterruptError

    with pytest.raises(InterruptError):
        TeacherCache.build(teacher, views, loader(), tmp_path, fingerprint="1", positions=answers)
    (shard,) = tmp_path.glob("*.records")
    content = shard.read_bytes()
    shard.write_bytes(content[:-8])  # the last of three positions of sample 2
    seen: list[int] = []

    def watched(pixels: Tensor, tokens: Tensor) -> Tensor:
        seen.append(len(pixels))
        return teacher(pixels, tokens)

    again = [make_batch([5], [C]), make_batch([2], [A]), second]
    cache = TeacherCache.build(watched, views, again, tmp_path, fingerprint="1", positions=answers)
    assert seen == [3, 6]  # of three views
    for batch in (first, second):
        assert_right(cache, batch)


def test_positions_are_part_of_what_a_resumed_build_compares(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        build(tmp_path, make_batch([5], [A]), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a change of `positions`"):
        build(tmp_path, make_batch([5], [A]), positions=lambda batch: batch["labels"] == 1)


# Errors


def test_the_other_way_of_reading_is_named(tmp_path: Path) -> None:
    batch = make_batch([0], [A])
    positions = build(tmp_path / "a", batch)
    with pytest.raises(TypeError, match=r"cache.read\(index, mask\)"):
        positions[0]
    batch["tokens"] = torch.zeros(1, 4)
    with pytest.raises(TypeError, match=r"cache\[index\]"):
        build(tmp_path / "b", batch, positions=None).read([0], answers(batch))


@pytest.mark.parametrize("mask", [[True] * 4, [False] * 4, C], ids=["more", "none", "fewer"])
def test_another_number_of_positions_names_the_sample(mask: list[bool], tmp_path: Path) -> None:
    cache = build(tmp_path, make_batch([5, 7, 9], [C, A, A]))
    with pytest.raises(ValueError, match=f"3 positions of sample 7 .* got {sum(mask)}"):
        cache.read([5, 7], torch.tensor([C, mask]))


READS: dict[str, tuple[Callable[[TeacherCache], Any], type[Exception], str]] = {
    "float": (lambda c: c.read([0], torch.ones(1, 4)), TypeError, "`mask` to be a boolean"),
    "rows": (lambda c: c.read([0], torch.ones(2, 4).bool()), ValueError, r"\(1, L\), got \(2, 4\)"),
    "axes": (lambda c: c.read([0], torch.ones(1).bool()), ValueError, r"\(1, L\), got \(1,\)"),
    "one": (lambda c: c.read(0, torch.ones(1, 4).bool()), ValueError, r"\(L,\), got \(1, 4\)"),
    "unknown": (lambda c: c.read([4], torch.ones(1, 4).bool()), IndexError, "got 4"),
    "index": (lambda c: c.read(0.5, torch.ones(4).bool()), TypeError, "`index`"),
}


@pytest.mark.parametrize("name", READS)
def test_rejects_invalid_reads(name: str, tmp_path: Path) -> None:
    call, error, message = READS[name]
    cache = build(tmp_path, make_batch([0], [A]))
    with pytest.raises(error, match=f"Expected .*{message}"):
        call(cache)


BUILDS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "top_k": ({"top_k": 2}, ValueError, "no `top_k` with `positions`"),
    "not callable": ({"positions": A}, TypeError, "`positions`"),
    "integers": ({"positions": lambda b: b["labels"]}, TypeError, "`positions` to be a boolean"),
    "one axis": ({"positions": lambda b: answers(b)[:, 0]}, ValueError, r"\(1, L\), got \(1,\)"),
    "length": ({"positions": lambda b: answers(b)[:, 1:]}, ValueError, r"\(1, 3\) in `full`"),
}


@pytest.mark.parametrize("name", BUILDS)
def test_rejects_invalid_positions(name: str, tmp_path: Path) -> None:
    options, error, message = BUILDS[name]
    with pytest.raises(error, match=f"Expected .*{message}"):
        build(tmp_path, make_batch([0], [A]), **options)


def test_flipped_byte_is_detected(tmp_path: Path) -> None:
    batch = make_batch([5, 2], [A, C])
    path = build(tmp_path, batch).path / "0000-0000.records"
    content = bytearray(path.read_bytes())
    for at in range(4096, len(content)):
        content[at] ^= 4
        path.write_bytes(content)
        with pytest.raises(ValueError, match="Expected"):
            TeacherCache.open(tmp_path).read([5, 2], answers(batch))
        content[at] ^= 4
