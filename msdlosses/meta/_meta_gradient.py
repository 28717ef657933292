"""The gradient of a held-out loss, after the student's next step, for the weighting."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from torch import Tensor, nn
from torch.optim import Optimizer

from msdlosses.meta._difference import difference_gradient
from msdlosses.meta._exact import (
    DOUBLE_BACKWARD,
    FORWARD,
    MissingDerivativeError,
    exact_gradient,
)
from msdlosses.meta._kernels import is_recurrent
from msdlosses.meta._lookahead import LookAhead, MetaGradient
from msdlosses.meta._losses import Loss, Losses
from msdlosses.meta._sharding import shard_group
from msdlosses.meta._support import check_engine, check_problem, check_unrolled, unwrap
from msdlosses.meta._unrolled import unrolled_gradient

SHARDED = "Expected parameters that are plain tensors, for exact engines, got sharded ones."
EXACT = {engine.name: engine for engine in (FORWARD, DOUBLE_BACKWARD)}


def meta_gradient(
    inner: Loss | Sequence[Loss],
    outer: Loss | Sequence[Loss],
    student: nn.Module,
    optimizer: Optimizer,
    weighting: nn.Module,
    *,
    engine: str = "auto",
    probe: Loss | None = None,
    steps: int = 1,
    max_norm: float | None = None,
) -> tuple[Tensor, ...]:
    r"""Compute the gradient of a held-out loss, after the student's next step, for the weighting.

    .. math:: \nabla_\Phi L_\mathrm{outer}\bigl(\mathrm{opt}(\theta,
        \nabla_\theta L_\mathrm{inner}(\theta, \Phi))\bigr)

    This function does not change any state: the buffers of all modules that the losses call stay as
    they are. ``inner`` is called more than once, and must return the same loss. The losses
    run uncompiled. `student` may be compiled, or wrapped in `DistributedDataParallel`: then the
    losses are called with the module inside the wrapper, and each process gets the gradient of the
    losses averaged over the processes.

    Args:
        inner: the student's training loss, which uses the weighting: ``model -> scalar``. For
            gradient accumulation, a sequence of losses to sum, each differentiated separately.
        outer: the loss on held-out data, likewise.
        student: the model that the losses are called with.
        optimizer: the student's: SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad,
            Adadelta, or Muon of `torch.optim`, or one added by `register_optimizer`. It may also
            hold parameters of other modules, such as a `LearnedFill`.
        weighting: the module whose parameters are learned.
        engine: ``"double-backward"`` differentiates the student's gradient. ``"forward"``
            propagates the derivative forward through the student, and keeps no graph of the
            gradient. Both are exact. ``"auto"`` uses double backward, but forward mode for
            students with recurrent layers, with a probe, and for several inner losses. If an
            operation lacks the derivative, it warns and uses another one. ``"difference"``
            compares the loss at two points along the direction. It is approximate, by about 1e-3
            in float32, and needs no second derivative: for sharded students and for compiled ones,
            which stay compiled. ``"higher"`` unrolls the step with the package of that name, as a
            reference.
        probe: a cheaper loss, such as ``inner`` on part of the batch, through which the gradient
            is computed. The step itself remains that of ``inner``.
        steps: how many steps on the same inner loss to look ahead; more than 1 uses ``"higher"``.
        max_norm: the norm to which the student's gradients are clipped, as by
            `torch.nn.utils.clip_grad_norm_`.

    Shape:
        ``inner`` and ``outer`` return scalars. Each gradient has the shape of its parameter.

    Returns:
        One tensor for each parameter of the weighting that requires a gradient, in their order.

    Raises:
        TypeError: an argument has the wrong type, a loss does not return a scalar tensor, the
            optimizer is not supported, the student is sharded or in half precision and the engine
            does not support that, or it is wrapped in parts.
        ValueError: an option is unknown or out of range; the look-ahead would leave out hooks; the
            losses do not connect the weighting to ``outer``; a loss changes parameters in place; or
            the gradient of ``inner`` is not its derivative, because hooks or custom Functions
            change it, or because ``inner`` returns another loss in another call.
        NotImplementedError: an operation lacks a derivative that the engine needs.

    Example:
        >>> student = nn.Linear(2, 1, bias=False)
        >>> weight = nn.Linear(1, 1, bias=False)
        >>> x = torch.ones(1, 2)
        >>> (gradient,) = meta_gradient(
        ...     lambda model: weight(model(x).square()).mean(),
        ...     lambda model: (model(x) - 1).square().mean(),
        ...     student,
        ...     SGD(student.parameters(), 0.1),
        ...     weight,
        ... )
        >>> gradient.shape
        torch.Size([1, 1])

    Source: [built on] Shu et al. 2019, arXiv 1902.07379; Ren et al. 2018, arXiv 1803.09050. The
    product with a direction instead of an unrolled graph: [ours].
    """
    check_engine(engine, steps, max_norm)
    check_problem(student, optimizer, weighting, engine)
    check_unrolled(student, optimizer, engine, steps, probe)
    bare, wrapper = unwrap(student)
    shards = shard_group(optimizer)
    ahead = LookAhead(
        bare if engine != "higher" else student,
        optimizer,
        weighting,
        Losses("inner", inner),
        Losses("outer", outer),
        None if probe is None else Losses("probe", probe),
        max_norm,
        group=shards if wrapper is None else wrapper.process_group,
        shards=shards,
    )
    gradients = gradient_of(ahead, engine, steps).gradients
    ahead.alarm.wait()
    return gradients


def gradient_of(ahead: LookAhead, engine: str, steps: int = 1) -> MetaGradient:
    """Compute the gradient by an engine; change no state."""
    if engine == "higher" or steps > 1:
        return unrolled_gradient(ahead, steps)
    if engine == "auto":
        return _automatic_gradient(ahead)
    return _gradient_by(ahead, engine)


def _gradient_by(ahead: LookAhead, engine: str) -> MetaGradient:
    if engine == "difference":
        return difference_gradient(ahead)
    return exact_gradient(ahead, EXACT[engine])


def _automatic_gradient(ahead: LookAhead) -> MetaGradient:
    """Use the first engine for which no derivative is missing, and warn if it is another one."""
    if ahead.shards is not None:
        warnings.warn(f"{SHARDED} Used engine='difference' instead.", stacklevel=6)
        return replace(difference_gradient(ahead), fell_back=True)
    preferred, *others = engines_in_order(ahead)
    try:
        return _gradient_by(ahead, preferred)
    except MissingDerivativeError as error:
        missing = error
    for engine in others:  # pragma: no branch - differences need no derivative
        with suppress(MissingDerivativeError):
            result = replace(_gradient_by(ahead, engine), fell_back=True)
            break
    warnings.warn(f"{missing} Used engine={engine!r} instead.", stacklevel=6)
    return result


def engines_in_order(ahead: LookAhead) -> tuple[str, str, str]:
    """Return the engine that "auto" tries first, and its fallbacks.

    Double backward continues from the graph of the student's own gradient. With a probe there is no
    such graph, for several losses all graphs would be kept at once, and recurrent layers make it
    long.
    """
    several = ahead.probe is not None or len(ahead.inner) > 1
    if several or is_recurrent(ahead.model):
        return "forward", "double-backward", "difference"
    return "double-backward", "forward", "difference"
