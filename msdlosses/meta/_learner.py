"""The meta-learner: steps of a student and of the weighting of its loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from msdlosses._checks import check_choice, check_size, describe, listing
from msdlosses.meta import _support as support
from msdlosses.meta._distributed import Gradients, average, broadcast
from msdlosses.meta._gradient import check_options, look_ahead, objectives, preferred
from msdlosses.meta._problem import Look, Objective, Problem, differentiate, times
from msdlosses.meta._statistics import WeightStatistics, statistics

MODES = ("online", "lookahead")


@dataclass(frozen=True)
class MetaStep:
    """What one step did: what `MetaLearner.step` returns.

    Shape:
        The losses are scalars.

    Example:
        >>> step = MetaStep(inner=torch.tensor(0.5))  # of a step that learned no weights
        >>> step.engine is None
        True

    Source: [ours].
    """

    inner: Tensor
    """The student's loss at the step that was taken, detached."""
    outer: Tensor | None = None
    """The held-out loss after the look-ahead step, detached; None where no weights were learned."""
    engine: str | None = None
    """The engine that took the gradient; None where no weights were learned."""
    weights: Mapping[str, WeightStatistics] = field(default_factory=dict)
    """View -> mean, min and entropy of the weights that the look-ahead used."""


class MetaLearner:
    r"""Trains a student and, by looking one of its steps ahead, the weighting of its loss.

    .. math:: \theta'(\Phi) = \mathrm{opt}\bigl(\theta, \nabla_\theta L_\mathrm{inner}(\theta,
        \Phi)\bigr), \qquad \Phi \leftarrow \mathrm{opt}_\Phi\bigl(\Phi, \nabla_\Phi
        L_\mathrm{outer}(\theta'(\Phi))\bigr)

    The loop stays the user's: hand `step` the training loss and the loss on held-out data as
    functions of the model. The gradient is that of the real optimiser's step, exactly; see
    `meta_gradient` for the students, optimisers and engines.

    With a student in `DistributedDataParallel` the learner averages all gradients itself, over
    the same processes, and gives them the weighting of the first, and all that the optimiser
    holds; the weighting is not wrapped.

    Args:
        student: the model that is trained; it may be compiled, or wrapped as above. Steps that
            learn weights run it uncompiled.
        optimizer: the student's. It keeps its state.
        weighting: the module whose parameters are learned, such as a `WeightNet`.
        weighting_optimizer: its optimiser, of any kind.
        engine: how the gradient is taken, as in `meta_gradient`.
        mode: ``"online"``: the look-ahead is the real step, so the student moves by the weights
            as they were; ``"lookahead"``: the weighting is updated first and the student steps
            by the new weights, which is the order of Meta-Weight-Net, and costs a pass more.
        every: learn weights at every so many steps only; the others are plain steps.
        warmup: the number of first steps that all learn weights.
        steps: how many steps to look ahead, as in `meta_gradient`; above 1 in mode
            ``"lookahead"`` alone.
        max_norm: the norm that the student's gradients are clipped to, in the look-ahead and in
            the real step.
        scaler: a `torch.amp.GradScaler` for losses in half precision. The learner scales,
            skips steps and updates the scale.

    Shape:
        ``inner`` and ``outer``, which `step` is given, return scalars.

    Raises:
        TypeError: an argument of the wrong kind; an optimiser whose step is not known; a student
            that is sharded or wrapped in parts.
        ValueError: an unknown engine or mode, options out of range; hooks that the look-ahead
            would leave out; a weighting without parameters, of which its optimiser has none or
            the student's optimiser has some.

    Example:
        >>> student = nn.Linear(2, 1)
        >>> weight = nn.Linear(1, 1, bias=False)
        >>> learner = MetaLearner(
        ...     student, SGD(student.parameters(), 0.1), weight, SGD(weight.parameters(), 0.1)
        ... )
        >>> x = torch.ones(1, 2)
        >>> def inner(model):
        ...     return weight(model(x).square()).mean()
        >>> step = learner.step(inner, lambda model: (model(x) - 1).square().mean())
        >>> step.engine
        'double-backward'

    Source: [built on] Shu et al. 2019, arXiv 1902.07379; Ren et al. 2018, arXiv 1803.09050. That
    distillation weights are learned so: [paper].
    """

    def __init__(
        self,
        student: nn.Module,
        optimizer: Optimizer,
        weighting: nn.Module,
        weighting_optimizer: Optimizer,
        *,
        engine: str = "auto",
        mode: str = "online",
        every: int = 1,
        warmup: int = 0,
        steps: int = 1,
        max_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> None:
        support.check_student(student)
        support.check_optimizer(optimizer)
        support.check_weighting(weighting, optimizer)
        support.check_weighting_optimizer(weighting_optimizer, weighting)
        check_options(engine, steps, max_norm)
        _check_schedule(mode, every, warmup, steps)
        if not isinstance(scaler, GradScaler | None):
            raise TypeError(f"Expected `scaler` to be a GradScaler, got {describe(scaler)}.")
        self.student = student
        self.optimizer = optimizer
        self.weighting = weighting
        self.weighting_optimizer = weighting_optimizer
        self.engine = engine
        self.mode = mode
        self.every = every
        self.warmup = warmup
        self.steps = steps
        self.max_norm = max_norm
        self.scaler = scaler
        self._taken = 0
        self._bare, self._wrapper = support.unwrap(student)
        self._group = None if self._wrapper is None else self._wrapper.process_group
        # The student's are alike already; what else its optimiser holds need not be.
        learned = (*support.parameters_of(optimizer), *weighting.parameters())
        broadcast((*learned, *weighting.buffers()), self._group)
        self._check()

    def step(
        self,
        inner: Objective | Sequence[Objective],
        outer: Objective | Sequence[Objective],
        *,
        probe: Objective | None = None,
    ) -> MetaStep:
        """Update the student, and the weighting where it is its turn.

        Args:
            inner: the student's loss with the weighting in it, ``model -> scalar``; or several,
                of which the sum counts, for gradient accumulation.
            outer: the loss on held-out data, likewise.
            probe: a cheaper inner loss, such as that of a part of the batch, through which alone
                the weights' gradient goes.

        Raises:
            TypeError: a loss that is no scalar tensor.
            ValueError: losses through which the weighting can't be reached.
            NotImplementedError: an operation has no derivative of the kind that the engine needs.
        """
        problem = self._problem(inner, outer, probe)
        if self._wrapper is not None and self._wrapper.broadcast_buffers:
            broadcast(self._bare.buffers(), self._group)
        done = self._learn(problem) if self._learns() else MetaStep(self._train(problem))
        if self.scaler is not None:
            self.scaler.update()
        self._taken += 1
        return done

    def gradient(
        self,
        inner: Objective | Sequence[Objective],
        outer: Objective | Sequence[Objective],
        *,
        probe: Objective | None = None,
    ) -> tuple[Tensor, ...]:
        """The gradient of ``outer`` after the look-ahead step, changing no state of anything.

        Returns one tensor for each parameter of the weighting that is learned, in their order.
        The arguments and errors are those of `step`.
        """
        return self._look(self._problem(inner, outer, probe)).weighting

    def state_dict(self) -> dict[str, Any]:
        """The weighting, its optimiser and the number of steps taken.

        The student and its optimiser are the user's to save, as in any loop.
        """
        return {
            "weighting": self.weighting.state_dict(),
            "weighting_optimizer": self.weighting_optimizer.state_dict(),
            "steps_taken": self._taken,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            KeyError: an entry is missing.
        """
        for name in ("weighting", "weighting_optimizer", "steps_taken"):
            if name not in state_dict:
                raise KeyError(
                    f"Expected `state_dict` to hold `{name}`, got {listing(state_dict)}."
                )
        self.weighting.load_state_dict(state_dict["weighting"])
        self.weighting_optimizer.load_state_dict(state_dict["weighting_optimizer"])
        self._taken = state_dict["steps_taken"]

    def _learns(self) -> bool:
        return self._taken < self.warmup or (self._taken - self.warmup) % self.every == 0

    def _problem(self, inner: Any, outer: Any, probe: Objective | None) -> Problem:
        return Problem(
            self.student if self.engine == "higher" else self._bare,
            self.optimizer,
            self.weighting,
            objectives("inner", inner),
            objectives("outer", outer),
            () if probe is None else objectives("probe", probe),
            self.max_norm,
            self._scale(),
            self._group,
        )

    def _scale(self) -> float | None:
        if self.scaler is None or not self.scaler.is_enabled():
            return None
        one = torch.ones((), device=support.learned(self.weighting)[0].device)
        scale: float = self.scaler.scale(one).item()  # and sets the scaler up
        return scale

    def _look(self, problem: Problem) -> Look:
        self._check()  # hooks may have come since
        look = look_ahead(problem, self.engine, self.steps)
        if self.engine == "auto" and look.engine != "higher" and look.engine != preferred(problem):
            self.engine = look.engine  # what was missing once will be missing again
        return look

    def _check(self) -> None:
        support.check_student(self.student)
        support.check_optimizer(self.optimizer)
        if self.engine == "higher" or self.steps > 1:
            support.check_copied(self.student, self.optimizer)

    def _learn(self, problem: Problem) -> MetaStep:
        with _recorded(self.weighting) as calls:
            look = self._look(problem)
        seen = statistics(calls[: len(problem.inner)])  # those of the first pass
        if self.mode == "lookahead":
            self._move_weighting(look.weighting, problem.scale)
            return MetaStep(self._train(problem), look.outer, look.engine, seen)
        # `higher` moved a copy, and has nothing to hand on.
        if look.student is None or look.memory is None or look.after is None:
            inner = self._train(problem)
        else:
            inner = look.inner
            look.memory.settle(look.after)
            self._move_student(look.student, problem.scale)
        self._move_weighting(look.weighting, problem.scale)
        return MetaStep(inner, look.outer, look.engine, seen)

    def _train(self, problem: Problem) -> Tensor:
        """A plain step, whose gradient does not end up in the weighting's parameters."""
        with torch.enable_grad():
            loss, gradients = differentiate(problem, "inner", problem.parameters)
        self._move_student(average(gradients, problem.parameters, self._group), problem.scale)
        return loss

    def _move_student(self, gradients: Gradients, scale: float | None) -> None:
        self._move(self.optimizer, support.parameters_of(self.optimizer), gradients, scale)

    def _move_weighting(self, gradients: Gradients, scale: float | None) -> None:
        self._move(self.weighting_optimizer, support.learned(self.weighting), gradients, scale)

    def _move(
        self,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        gradients: Gradients,
        scale: float | None,
    ) -> None:
        optimizer.zero_grad()
        for parameter, gradient in zip(parameters, times(gradients, scale), strict=True):
            parameter.grad = gradient
        if scale is not None:
            assert self.scaler is not None
            self.scaler.unscale_(optimizer)
        if self.max_norm is not None and optimizer is self.optimizer:
            nn.utils.clip_grad_norm_(parameters, self.max_norm)
        if scale is not None:
            assert self.scaler is not None
            self.scaler.step(optimizer)
        else:
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        torch.clear_autocast_cache()  # a region around it would go on with the old parameters


@contextmanager
def _recorded(weighting: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """The keywords and detached outputs of the weighting's calls."""
    calls: list[tuple[Any, Any]] = []

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((kwargs, output.detach() if isinstance(output, Tensor) else output))

    hook = weighting.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def _check_schedule(mode: str, every: int, warmup: int, steps: int) -> None:
    check_choice("mode", mode, MODES)
    check_size("every", every)
    check_size("warmup", warmup, least=0)
    if steps > 1 and mode == "online":
        raise ValueError(
            f"Expected `steps` of 1 with mode='online', whose look-ahead is the real step, "
            f"got {steps}: set mode='lookahead'."
        )
