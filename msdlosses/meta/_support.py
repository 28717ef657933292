"""Checks that the look-ahead can differentiate a student and its optimizer exactly."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from msdlosses._checks import (
    check_choice,
    check_integer,
    check_number,
    check_that,
    check_type,
    describe,
    expected,
    join_names,
)
from msdlosses._torch import (
    backward_hooks,
    has_forward_hooks,
    has_step_hooks,
    is_compiled,
    unwrap_compiled,
)
from msdlosses.meta._lookahead import parameters_of, trainable
from msdlosses.meta._optimizers import STEPS
from msdlosses.meta._sharding import is_sharded

ENGINES = ("auto", "forward", "double-backward", "difference", "higher")
UNROLLING = ("auto", "higher")
WRAPPERS = (DistributedDataParallel, nn.DataParallel)


def unwrap(student: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """Return the module that losses are called with, and its DDP wrapper, if there is one.

    A compiled module is not unwrapped: it runs uncompiled where it is differentiated.
    """
    inner = unwrap_compiled(student)
    if isinstance(inner, DistributedDataParallel):
        return inner.module, inner
    return student, None


def check_problem(
    student: nn.Module, optimizer: Optimizer, weighting: nn.Module, engine: str
) -> None:
    """Check what `MetaLearner` and `meta_gradient` differentiate."""
    check_student(student, engine)
    check_optimizer(optimizer, engine)
    check_type("weighting", weighting, nn.Module, "a module")
    check_that("`weighting` to have parameters to learn", trainable(weighting))
    what, advice = "no parameters of `weighting` in `optimizer`", "They would minimize `inner`."
    check_that(what, not _overlap(optimizer, weighting), "some", advice)


def check_engine(engine: str, steps: int, max_norm: float | None) -> None:
    """Check how `MetaLearner` and `meta_gradient` differentiate."""
    check_choice("engine", engine, ENGINES)
    check_integer("steps", steps, least=1)
    check_that(f"`steps` of 1 with engine={engine!r}", steps == 1 or engine in UNROLLING, steps)
    if max_norm is not None:
        check_number("max_norm", max_norm, "(0, inf)")


def check_student(student: nn.Module, engine: str = "auto") -> None:
    """Check for a module with plain parameters and without hooks on its gradients."""
    check_type("student", student, nn.Module, "a module")
    bare, _ = unwrap(student)
    wrapped = [name for name, module in bare.named_modules() if isinstance(module, WRAPPERS)]
    _check_none("DistributedDataParallel around the whole student", wrapped, TypeError)
    _check_none("`student` without hooks on gradients, which are not seen", backward_hooks(bare))
    trained = [(name, p) for name, p in bare.named_parameters() if p.requires_grad]
    others = [name for name, p in trained if not _is_supported(p, engine)]
    what = f"trained parameters that are plain tensors, for engine={engine!r}"
    _check_none(what, others, TypeError)
    what = "embeddings with neither `max_norm` nor `scale_grad_by_freq`"
    _check_none(what, (name for name, m in bare.named_modules() if _rescales(m)))


def _is_supported(parameter: Tensor, engine: str) -> bool:
    """Return whether an engine can move a parameter: a plain tensor, or for differences a shard."""
    if is_sharded(parameter):
        return engine in ("auto", "difference")
    return type(parameter.data) is Tensor


def _rescales(module: nn.Module) -> bool:
    """Return whether an embedding is trained by something else than the derivative."""
    if not isinstance(module, nn.Embedding | nn.EmbeddingBag) or not module.weight.requires_grad:
        return False
    return module.scale_grad_by_freq or module.max_norm is not None


def check_optimizer(optimizer: Optimizer, engine: str = "auto") -> None:
    """Check for an optimizer whose step is known as a differentiable function."""
    names = join_names(f"torch.optim.{kind.__name__}" for kind in STEPS)
    known, got = type(optimizer) in STEPS, describe(optimizer)
    check_that(f"`optimizer` to be one of {names}", known, got, error=TypeError)
    what = "`optimizer` without hooks, which the look-ahead cannot see"
    check_that(what, not has_step_hooks(optimizer), "some")
    trained = [p for p in parameters_of(optimizer) if p.requires_grad]
    plain = all(_is_supported(p, engine) for p in trained)
    check_that(
        f"plain tensors in `optimizer`, for engine={engine!r}", plain, "others", error=TypeError
    )


def check_precision(optimizer: Optimizer) -> None:
    """Check for parameters that a difference can move: their rounding error must be small."""
    dtypes = {p.dtype for p in parameters_of(optimizer) if p.requires_grad}
    half = [dtype for dtype in dtypes if torch.finfo(dtype).bits < 32]
    what = "parameters in float32 or float64 for engine='difference'"
    advice = "Keep the parameters in float32, and use `torch.autocast`."
    check_that(what, not half, join_names(half), advice, error=TypeError)


def check_weighting_optimizer(optimizer: Optimizer, weighting: nn.Module) -> None:
    """Check for an optimizer of some of the weighting's parameters."""
    check_type("weighting_optimizer", optimizer, Optimizer, "an optimizer")
    what = "`weighting_optimizer` to hold parameters of `weighting`"
    check_that(what, _overlap(optimizer, weighting), "others")


def check_unrolled(
    student: nn.Module, optimizer: Optimizer, engine: str, steps: int, probe: object = None
) -> None:
    """Check for a student that `higher` copies correctly, if it will."""
    if engine != "higher" and steps == 1:
        return
    check_that("no `probe` with `higher`, which unrolls steps", probe is None, "one")
    modules = dict(student.named_modules())
    wrapped = [n for n, m in modules.items() if isinstance(m, WRAPPERS) or is_compiled(m)]
    _check_none("a student that is neither compiled nor wrapped, for `higher`", wrapped, TypeError)
    changed = [n for n, m in modules.items() if has_forward_hooks(m) or "forward" in vars(m)]
    _check_none("a student without hooks or replaced `forward`, for `higher`", changed)
    own = {id(p) for p in student.parameters()}
    others = [p for p in parameters_of(optimizer) if id(p) not in own]
    check_that("only parameters of `student` in `optimizer`, for `higher`", not others, "others")
    is_complex = any(p.is_complex() for p in parameters_of(optimizer))
    check_that("real parameters, for `higher`", not is_complex, "complex ones")


def _check_none(what: str, places: Iterable[str], error: type[Exception] = ValueError) -> None:
    """Check that there is no offending submodule or parameter."""
    names = [f"`{name}`" if name else "the student itself" for name in places]
    if names:
        raise error(expected(what, f"some at {', '.join(names)}"))


def _overlap(optimizer: Optimizer, weighting: nn.Module) -> bool:
    held = {id(p) for p in parameters_of(optimizer)}
    return any(id(p) in held for p in trainable(weighting))
