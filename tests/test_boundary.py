"""Random nested batches: each sample of each view is the one that was put in."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from typing import Any

import torch
from batches import FILL, MODALITIES, Case, Memory, containers, get, make_case
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from msdlosses import Fill, ModalityDropout, ModalityViews, TeacherCache

NAMES = ("full", "image", "text", "~image", "~text")

# A case takes about three milliseconds, so the thorough profile tries many.
EXAMPLES = settings.default.max_examples
many = settings(max_examples=EXAMPLES * (120 if EXAMPLES > 100 else 4))
cached = settings(max_examples=EXAMPLES * (20 if EXAMPLES > 100 else 1))  # writes files
cases = st.integers(0, 2**32 - 1).map(make_case)


def make_views(case: Case, **options: Any) -> ModalityViews:
    """Mask the image by `Fill`, and the text by a function that works in place."""

    def mask_text(batch: Any) -> Any:
        for leaf in case.of("text"):
            leaf.mask_in_place(batch)
        return batch

    image = Fill({leaf.name: FILL for leaf in case.of("image")})
    return ModalityViews(image=image, text=mask_text, **case.options, **options)


def hidden_in(view: str) -> set[str]:
    if view.startswith("~"):
        return {view[1:]}
    return set() if view == "full" else set(MODALITIES) - {view}


def destroy(case: Case, batch: Any) -> None:
    """Write to whatever can be written to, except shared entries."""
    for leaf in case.leaves:
        entry = get(batch, leaf.path)
        if leaf.shared:
            continue
        if isinstance(entry, Tensor):
            entry.zero_()
        elif isinstance(entry, list):
            entry.clear()
        elif isinstance(entry, Memory):
            entry.seen.append(1)


def assert_same_containers(case: Case, actual: Any, expected: Any) -> None:
    for leaf in case.leaves:
        pairs = zip(containers(actual, leaf.path), containers(expected, leaf.path), strict=True)
        for one, other in list(pairs)[1:]:
            assert type(one) is type(other)
            assert one is not other


def assert_untouched(case: Case) -> None:
    for n in range(case.size):
        assert case.sample(case.batch, n) == case.expected(n, set())


@many
@given(
    case=cases,
    names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    step=st.sampled_from([None, 1, 2]),
)
def test_model_gets_every_sample_of_every_view(
    case: Case, names: list[str], step: int | None
) -> None:
    """The model then destroys its input, which neither later views nor the batch may notice."""
    seen: list[list[Any]] = []

    def model(batch: Any) -> Tensor:
        rows = len(batch["pixels"])
        seen.extend(
            [copy.deepcopy(case.sample(batch, n, view)) for n in range(case.size)]
            for view in range(rows // case.size)
        )
        assert_same_containers(case, batch, case.batch)
        destroy(case, batch)
        return torch.zeros(rows, 1009)  # no multiple of the rows, as similarities would have

    views = make_views(case, views=names, views_per_forward=step, unpack=False)
    views(model, case.batch)
    for view, samples in zip(names, seen, strict=True):
        assert samples == [case.expected(n, hidden_in(view)) for n in range(case.size)], view
    assert_untouched(case)


@many
@given(case=cases)
def test_inputs_are_those_of_separate_views_and_own_their_entries(case: Case) -> None:
    for view, batch in make_views(case, views=NAMES).inputs(case.batch).items():
        for n in range(case.size):
            assert case.sample(batch, n) == case.expected(n, hidden_in(view)), view
        assert type(batch) is type(case.batch)
        assert_same_containers(case, batch, case.batch)
        destroy(case, batch)
    assert_untouched(case)


@many
@given(case=cases, p=st.sampled_from([0.0, 0.3, 0.9, 1.0]), data=st.data())
def test_dropout_gives_each_sample_one_of_its_views(
    case: Case, p: float, data: st.DataObject
) -> None:
    columns = data.draw(
        st.tuples(*[st.lists(st.booleans(), min_size=case.size, max_size=case.size)] * 2)
    )
    present = data.draw(st.sampled_from([None, dict(zip(MODALITIES, columns, strict=True))]))
    masks = present and {m: torch.tensor(column) for m, column in present.items()}
    batch = ModalityDropout(make_views(case), p)(case.batch, present=masks)
    assert type(batch) is type(case.batch)
    for n in range(case.size):
        has = {m for m in MODALITIES if present is None or present[m][n]}
        may_drop = [set(), *({m} for m in MODALITIES if has == set(MODALITIES) and p > 0)]
        if p == 1.0 and len(may_drop) > 1:
            may_drop = may_drop[1:]
        assert case.sample(batch, n) in [case.expected(n, hidden) for hidden in may_drop]
    assert_untouched(case)


def digest(sample: Any) -> list[float]:
    """Return eight numbers that are different for different samples."""
    return [byte / 16 for byte in hashlib.sha256(spell(sample).encode()).digest()[:8]]


def spell(value: Any) -> str:
    """Write a value, and equal numbers of different types alike."""
    if isinstance(value, list):
        return str([spell(item) for item in value])
    return repr(complex(value)) if isinstance(value, int | float | complex) else repr(value)


@cached
@given(
    case=cases,
    names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    step=st.sampled_from([None, 1, 2]),
    rows=st.lists(st.integers(0, 99), min_size=4, max_size=4, unique=True),
)
def test_cache_holds_what_the_teacher_predicts_on_every_view_of_a_sample(
    case: Case, names: list[str], step: int | None, rows: list[int]
) -> None:
    for leaf in case.leaves:
        if isinstance(leaf.value, Memory):
            leaf.samples = ["memory"] * case.size
            leaf.read = lambda entry, view, n: "memory"

    class Teacher(nn.Module):
        def forward(self, batch: Any) -> Tensor:
            views = range(len(batch["pixels"]) // case.size)
            samples = [case.sample(batch, n, view) for view in views for n in range(case.size)]
            logits = torch.tensor([[*digest(sample), *[0.0] * 1001] for sample in samples])
            destroy(case, batch)
            return logits

    rows = rows[: case.size]
    batch = copy.copy(case.batch)
    batch["index"] = torch.tensor(rows)
    views = make_views(case, views=names, views_per_forward=step, unpack=False)
    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache.build(Teacher(), views, [batch], folder)
        assert len(cache) == case.size
        for view, logits in cache[rows].items():
            expected = [digest(case.expected(n, hidden_in(view))) for n in range(case.size)]
            assert logits[:, :8].tolist() == expected
