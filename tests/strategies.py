"""Hypothesis strategies for logits, masks, and views.

They draw a seed and a kind of values instead of single elements, which would be slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

INF = float("inf")
HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float64, torch.float32, *HALF)

Pair = tuple[Tensor, Tensor]
"""The logits of a student and a teacher."""


def generators() -> st.SearchStrategy[torch.Generator]:
    return st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


def _normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def _uniform(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=rng, dtype=torch.float64)


def _ordinary(shape: Sequence[int], rng: torch.Generator) -> Pair:
    return 2 * _normal(shape, rng), 2 * _normal(shape, rng)


def _confident(shape: Sequence[int], rng: torch.Generator) -> Pair:
    return 30 * _normal(shape, rng), 30 * _normal(shape, rng)


def _near(shape: Sequence[int], rng: torch.Generator) -> Pair:
    teacher = _normal(shape, rng)
    return teacher + 1e-3 * _normal(shape, rng), teacher


def _identical(shape: Sequence[int], rng: torch.Generator) -> Pair:
    teacher = 10 * _normal(shape, rng)
    return teacher.clone(), teacher


def _constant(shape: Sequence[int], rng: torch.Generator) -> Pair:
    return _normal((), rng).expand(shape).clone(), _normal((), rng).expand(shape).clone()


def _huge(shape: Sequence[int], rng: torch.Generator) -> Pair:
    """Up to 6e4 in magnitude. The student's logits are all at the bounds."""
    signs = (_uniform(shape, rng) < 0.5).double() * 2 - 1
    return 6e4 * signs, 6e4 * (2 * _uniform(shape, rng) - 1)


def _one_hot(shape: Sequence[int], rng: torch.Generator) -> Pair:
    """The teacher's logits are -inf for all classes but one."""
    classes = torch.randint(shape[-1], tuple(shape[:-1]), generator=rng)
    hot = F.one_hot(classes, shape[-1]).bool()
    return 2 * _normal(shape, rng), torch.zeros(tuple(shape)).double().masked_fill(~hot, -INF)


def _missing(shape: Sequence[int], rng: torch.Generator) -> Pair:
    """Both have logits of -inf for missing classes. The first class is never missing."""
    missing = _uniform(shape, rng) < 0.5
    missing[..., 0] = False
    student, teacher = _ordinary(shape, rng)
    return student.masked_fill(missing, -INF), teacher.masked_fill(missing, -INF)


SMOOTH = {"ordinary": _ordinary, "near": _near, "constant": _constant}
"""Kinds of logits at which finite differences approximate the derivatives."""
FINITE = SMOOTH | {"confident": _confident, "identical": _identical, "huge": _huge}
"""Kinds of finite logits."""
KINDS = FINITE | {"one_hot": _one_hot, "missing": _missing}
"""All kinds of logits, some with -inf."""

CLASSES = (1, 2, 3, 7, 23)


@st.composite
def shapes(
    draw: st.DrawFn,
    *,
    min_batch: int = 0,
    sequences: bool = True,
    classes: Sequence[int] = CLASSES,
) -> tuple[int, ...]:
    """Draw a shape (N, C) or (N, L, C)."""
    batch = draw(st.integers(min_batch, 5))
    positions = draw(st.sampled_from([(), (1,), (3,)] if sequences else [()]))
    return (batch, *positions, draw(st.sampled_from(classes)))


@st.composite
def logit_pairs(
    draw: st.DrawFn,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    dtypes: Sequence[torch.dtype] = DTYPES,
    min_batch: int = 0,
    sequences: bool = True,
    classes: Sequence[int] = CLASSES,
) -> Pair:
    """Draw the logits of a student and a teacher, with the same shape and dtype."""
    shape = draw(shapes(min_batch=min_batch, sequences=sequences, classes=classes))
    student, teacher = KINDS[draw(st.sampled_from(kinds))](shape, draw(generators()))
    dtype = draw(st.sampled_from(dtypes))
    return student.to(dtype), teacher.to(dtype)


@st.composite
def masks(draw: st.DrawFn, shape: Sequence[int]) -> Tensor:
    """Draw a mask that is all True, all False, or mixed."""
    probability = draw(st.sampled_from([0.0, 0.5, 1.0]))
    return _uniform(shape, draw(generators())) < probability


@dataclass(frozen=True)
class ViewBatch:
    """The arguments of an `MSDLoss`."""

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    target: Tensor
    valid: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.student)


MODALITIES = ("image", "text", "audio")


@st.composite
def view_batches(
    draw: st.DrawFn, *, min_batch: int = 0, sequences: bool = False, classes: int | None = None
) -> ViewBatch:
    """Draw views of two or three modalities. Samples may miss some of them, but never all.

    Logits of a view that shows a missing modality are NaN, for the student and the teacher.
    """
    modalities = MODALITIES[: draw(st.sampled_from([2, 3]))]
    shape = draw(shapes(min_batch=min_batch, sequences=sequences))
    shape = (*shape[:-1], classes or max(shape[-1], 2))
    rng = draw(generators())
    present = draw(presences(shape[0], modalities))
    return _views(modalities, shape, present, rng)


@st.composite
def presences(draw: st.DrawFn, samples: int, modalities: Sequence[str]) -> dict[str, Tensor]:
    """Draw which modalities each sample has, at least one."""
    sizes = range(1, len(modalities) + 1)
    subsets = [set(c) for c in chain.from_iterable(combinations(modalities, n) for n in sizes)]
    complete = draw(st.booleans())
    choice = st.just(subsets[-1]) if complete else st.sampled_from(subsets)
    present = draw(st.lists(choice, min_size=samples, max_size=samples))
    return {
        m: torch.tensor([m in subset for subset in present], dtype=torch.bool) for m in modalities
    }


def shown(view: str, modalities: Sequence[str]) -> tuple[str, ...]:
    """Return the modalities that a view shows."""
    if view == "full":
        return tuple(modalities)
    if view.startswith("~"):
        return tuple(modality for modality in modalities if modality != view[1:])
    return (view,)


def _views(
    modalities: Sequence[str],
    shape: Sequence[int],
    present: dict[str, Tensor],
    rng: torch.Generator,
) -> ViewBatch:
    names = ("full", *modalities)
    extra = tuple(f"~{modality}" for modality in modalities) if len(modalities) > 2 else ()
    valid = {
        view: torch.stack([present[modality] for modality in shown(view, modalities)]).all(0)
        for view in (*names, *extra)
    }

    def logits(view: str) -> Tensor:
        values = _normal(shape, rng).float()
        invalid = ~valid[view].reshape(-1, *[1] * (len(shape) - 1))
        return values.masked_fill(invalid, float("nan"))

    return ViewBatch(
        student={view: logits(view) for view in names},
        teacher={view: logits(view) for view in (*names, *extra)},
        target=torch.randint(shape[-1], tuple(shape[:-1]), generator=rng),
        valid=torch.stack([valid[view] for view in names], dim=-1),
    )


def make_views(
    *modalities: str,
    samples: int = 4,
    classes: int = 5,
    positions: Sequence[int] = (),
    seed: int = 0,
) -> ViewBatch:
    """Make views of samples without missing modalities."""
    present = {m: torch.ones(samples, dtype=torch.bool) for m in modalities}
    rng = torch.Generator().manual_seed(seed)
    return _views(modalities, (samples, *positions, classes), present, rng)
