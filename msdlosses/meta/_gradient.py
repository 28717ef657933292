"""The gradient of a held-out loss, through the student's next step, by the weighting."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from msdlosses._checks import check_choice, check_number, check_size, describe
from msdlosses.meta import _support as support
from msdlosses.meta._exact import MissingFormulaError, look
from msdlosses.meta._passes import is_recurrent
from msdlosses.meta._problem import Look, Objective, Problem
from msdlosses.meta._unrolled import unroll

ENGINES = ("auto", "forward", "double-backward", "higher")
OTHER = {"forward": "double-backward", "double-backward": "forward"}


def meta_gradient(
    inner: Objective | Sequence[Objective],
    outer: Objective | Sequence[Objective],
    student: nn.Module,
    optimizer: Optimizer,
    weighting: nn.Module,
    *,
    engine: str = "auto",
    probe: Objective | None = None,
    steps: int = 1,
    max_norm: float | None = None,
) -> tuple[Tensor, ...]:
    r"""The gradient of a held-out loss after the student's next step, by the weighting.

    .. math:: \nabla_\Phi L_\mathrm{outer}\bigl(\mathrm{opt}(\theta,
        \nabla_\theta L_\mathrm{inner}(\theta, \Phi))\bigr)

    It changes no state of anything. The losses run uncompiled, and `student` may be compiled, or
    wrapped in `DistributedDataParallel`: then they are given the module that it wraps, and each
    process gets the gradient of the mean of the processes' losses.

    Args:
        inner: the student's training loss with the weighting in it, ``model -> scalar``; or
            several, of which the sum counts and each is differentiated by itself: gradient
            accumulation.
        outer: the loss on held-out data, likewise.
        student: the model that the losses are given.
        optimizer: the student's: SGD, Adam, AdamW, RMSprop, Adagrad or Adadelta of `torch.optim`.
            It may hold parameters of other modules too, such as a `LearnedFill`'s.
        weighting: the module whose parameters are learned.
        engine: ``"double-backward"`` differentiates the student's gradient; ``"forward"`` passes
            the derivative forward through the student, and keeps no graph of the gradient; both
            are exact. ``"auto"`` takes double backward, but forward mode for students with
            recurrent layers, with a probe and for several inner losses; and the other one where
            an operation lacks what it needs, with a warning. ``"higher"`` unrolls the step with
            the package of that name: the reference for the others.
        probe: a cheaper inner loss, such as that of a part of the batch, through which alone
            the gradient goes. The step that is looked ahead remains that of `inner`.
        steps: how many steps to look ahead, on the same inner loss; above 1 by ``"higher"``.
        max_norm: the norm that the student's gradients are clipped to, as by
            `torch.nn.utils.clip_grad_norm_`.

    Shape:
        ``inner`` and ``outer`` return scalars; each gradient has its parameter's shape.

    Returns:
        One tensor for each parameter of the weighting that requires a gradient, in their order.

    Raises:
        TypeError: an argument of the wrong kind; a loss that is no scalar tensor; an optimiser
            whose step is not known; a student that is sharded or wrapped in parts.
        ValueError: unknown engine or options; hooks that the look-ahead would leave out; losses
            through which the weighting can't be reached, or `inner` with another value when it
            is called again.
        NotImplementedError: an operation has no derivative of the kind that the engine needs.

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
    product with a direction in place of an unrolled graph: [ours].
    """
    support.check_student(student)
    support.check_optimizer(optimizer)
    support.check_weighting(weighting, optimizer)
    check_options(engine, steps, max_norm)
    bare, wrapper = support.unwrap(student)
    problem = Problem(
        bare if engine != "higher" else student,
        optimizer,
        weighting,
        objectives("inner", inner),
        objectives("outer", outer),
        () if probe is None else objectives("probe", probe),
        max_norm,
        group=None if wrapper is None else wrapper.process_group,
    )
    return look_ahead(problem, engine, steps).weighting


def check_options(engine: str, steps: int, max_norm: float | None) -> None:
    """The options that a learner and the function have in common."""
    check_choice("engine", engine, ENGINES)
    check_size("steps", steps)
    if steps > 1 and engine not in ("auto", "higher"):
        raise ValueError(f"Expected `steps` of 1 with engine={engine!r}, got {steps}.")
    if max_norm is not None:
        check_number("max_norm", max_norm, above=0)


def objectives(name: str, given: Objective | Sequence[Objective]) -> tuple[Objective, ...]:
    """One loss or several."""
    several = tuple(given) if isinstance(given, Sequence) else (given,)
    if not several:
        raise ValueError(f"Expected `{name}` to be at least one function, got none.")
    for objective in several:
        if not callable(objective):
            raise TypeError(
                f"Expected `{name}` to be a function of the model, got {describe(objective)}."
            )
    return several


def look_ahead(problem: Problem, engine: str, steps: int = 1) -> Look:
    """See what the held-out loss says of the weighting; nothing is changed."""
    if engine == "higher" or steps > 1:
        if problem.probe:
            raise ValueError("Expected no `probe` where `higher` unrolls the steps, got one.")
        return unroll(problem, steps)
    if engine != "auto":
        return look(problem, engine)
    first = preferred(problem)
    try:
        return look(problem, first)
    except MissingFormulaError as missing:
        seen = look(problem, OTHER[first])
        warnings.warn(f"{missing} It was taken by {seen.engine!r}.", stacklevel=5)
        return seen


def preferred(problem: Problem) -> str:
    """What "auto" tries first.

    Double backward goes on from the graph of the student's own gradient. With a probe there is
    none, for several losses it would be kept for all at once, and recurrent layers make it long.
    """
    forward = problem.probe or len(problem.inner) > 1 or is_recurrent(problem.student)
    return "forward" if forward else "double-backward"
