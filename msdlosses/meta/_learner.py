"""The meta-learner: trains a student and the weighting of its loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from msdlosses._checks import check_choice, check_holds, check_integer, check_that, check_type
from msdlosses.meta._alarm import Alarm
from msdlosses.meta._interrupts import restoring
from msdlosses.meta._lookahead import (
    Gradients,
    Group,
    LookAhead,
    MetaGradient,
    parameters_of,
    trainable,
    wait_all,
)
from msdlosses.meta._losses import Loss, Losses
from msdlosses.meta._meta_gradient import gradient_of
from msdlosses.meta._sharding import shard_group
from msdlosses.meta._support import (
    check_engine,
    check_optimizer,
    check_precision,
    check_problem,
    check_student,
    check_unrolled,
    check_weighting_optimizer,
    unwrap,
)

MODES = ("online", "lookahead")
STATE = ("weighting", "weighting_optimizer", "steps_taken")


@dataclass(frozen=True)
class MetaStep:
    """The result of `MetaLearner.step`.

    Shape:
        The losses are scalars.

    Example:
        >>> step = MetaStep(inner=torch.tensor(0.5))  # of a step that learned no weights
        >>> step.engine is None
        True

    Source: [ours].
    """

    inner: Tensor
    """The student's loss in this step, detached."""
    outer: Tensor | None = None
    """The held-out loss after the look-ahead, detached; None if the step learned no weights."""
    engine: str | None = None
    """The engine that computed the gradient; None if the step learned no weights."""
    error: Tensor | None = None
    """The estimated relative error of the gradient; None if this step did not estimate it."""


class MetaLearner:
    r"""Trains a student and, by looking one of its steps ahead, the weighting of its loss.

    .. math:: \theta'(\Phi) = \mathrm{opt}\bigl(\theta, \nabla_\theta L_\mathrm{inner}(\theta,
        \Phi)\bigr), \qquad \Phi \leftarrow \mathrm{opt}_\Phi\bigl(\Phi, \nabla_\Phi
        L_\mathrm{outer}(\theta'(\Phi))\bigr)

    You keep your training loop: pass to `step` the training loss and the loss on held-out data, as
    functions of the model. The gradient is that of the real optimizer's step. See
    `meta_gradient` for the students, optimizers, and engines.

    If the student is wrapped in `DistributedDataParallel`, the learner averages all gradients
    itself, over the same processes. It also copies the weighting, and everything else that the
    student's optimizer holds, from the first process to the others. Do not wrap the weighting.

    Args:
        student: the model to train; it may be compiled, wrapped as above, or sharded by
            `fully_shard`. Steps that learn weights run it uncompiled, except with
            ``engine="difference"``.
        optimizer: the student's; it keeps its state.
        weighting: the module whose parameters are learned, such as a `WeightNet`.
        weighting_optimizer: any optimizer of its parameters.
        engine: how to compute the gradient, as in `meta_gradient`.
        mode: ``"online"`` uses the look-ahead as the real step, so that the student moves by the
            weights before their update. ``"lookahead"`` first updates the weighting and then steps
            by the new weights. This is the order of Meta-Weight-Net, and needs one more pass.
        update_every: update the weighting only in every n-th step; the others are plain steps.
        warmup: the number of steps at the start that all update the weighting.
        steps: how many steps to look ahead, as in `meta_gradient`; more than 1 needs mode
            ``"lookahead"``.
        max_norm: the norm to which the student's gradients are clipped, in the look-ahead and in
            the real step.
        scaler: a `torch.amp.GradScaler` for losses in half precision. The learner scales losses,
            skips steps, and updates the scale.

    Shape:
        ``inner`` and ``outer``, the arguments of `step`, return scalars.

    Raises:
        TypeError: an argument has the wrong type, the optimizer is not supported, or the student is
            wrapped in parts, or sharded or in half precision with an engine for which it must not
            be.
        ValueError: an option is unknown or out of range; the look-ahead would leave out hooks; the
            weighting has no parameters, its optimizer holds none of them, or the student's
            optimizer holds some of them.

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

    Source: [built on] Shu et al. 2019, arXiv 1902.07379; Ren et al. 2018, arXiv 1803.09050.
    Learning distillation weights this way: [paper].
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
        update_every: int = 1,
        warmup: int = 0,
        steps: int = 1,
        max_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> None:
        check_engine(engine, steps, max_norm)
        check_problem(student, optimizer, weighting, engine)
        check_weighting_optimizer(weighting_optimizer, weighting)
        check_unrolled(student, optimizer, engine, steps)
        if engine == "difference":
            check_precision(optimizer)
        check_choice("mode", mode, MODES)
        check_integer("update_every", update_every, least=1)
        check_integer("warmup", warmup, least=0)
        what, advice = "`steps` of 1 with mode='online'", "Set mode='lookahead'."
        check_that(what, steps == 1 or mode != "online", steps, advice)
        check_type("scaler", scaler, (GradScaler, type(None)), "a GradScaler")
        self.student = student
        self.optimizer = optimizer
        self.weighting = weighting
        self.weighting_optimizer = weighting_optimizer
        self.engine = engine
        self.mode = mode
        self.update_every = update_every
        self.warmup = warmup
        self.steps = steps
        self.max_norm = max_norm
        self.scaler = scaler
        self._steps_taken = 0
        self._steps_learned = 0
        self._alarm = Alarm()
        self._bare, self._wrapper = unwrap(student)
        self._shards = shard_group(optimizer)
        self._group = self._shards if self._wrapper is None else self._wrapper.process_group
        # The student's parameters are equal already; others that its optimizer holds may not be.
        if self._group is not None:
            others = () if self._shards is not None else parameters_of(optimizer)
            learned = (*others, *weighting.parameters())
            _broadcast((*learned, *weighting.buffers()), self._group)

    def step(
        self,
        inner: Loss | Sequence[Loss],
        outer: Loss | Sequence[Loss],
        *,
        probe: Loss | None = None,
    ) -> MetaStep:
        """Update the student and, if this step is due, the weighting.

        While all parameters of the weighting are frozen, this is a plain step. Buffers and random
        states change as in one plain step on ``inner``, which may be called several times.

        Args:
            inner: the student's training loss, which uses the weighting: ``model -> scalar``. For
                gradient accumulation, a sequence of losses to sum.
            outer: the loss on held-out data, likewise.
            probe: a cheaper loss, such as ``inner`` on part of the batch, through which the
                gradient of the weighting is computed.

        Raises:
            TypeError: a loss does not return a scalar tensor.
            ValueError: the losses do not connect the weighting to ``outer``, a loss changes
                parameters in place, or the gradient of ``inner`` is not its derivative. On a GPU,
                the last of these is raised by a later step.
            NotImplementedError: an operation lacks a derivative that the engine needs.
        """
        self._alarm.poll()
        ahead = self._look_ahead(inner, outer, probe)
        if self._wrapper is not None and self._wrapper.broadcast_buffers:
            _broadcast(self._bare.buffers(), self._wrapper.process_group)
        result = self._learn(ahead) if self._is_due() else MetaStep(self._train(ahead))
        if self.scaler is not None:
            self.scaler.update()
        self._steps_taken += 1
        return result

    def gradient(
        self,
        inner: Loss | Sequence[Loss],
        outer: Loss | Sequence[Loss],
        *,
        probe: Loss | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the gradient of ``outer`` after the look-ahead, without changing any state.

        There is one tensor for each parameter of the weighting that requires a gradient, in their
        order. Arguments and errors are those of `step`.
        """
        if not trainable(self.weighting):
            return ()
        return self._gradient(self._look_ahead(inner, outer, probe)).gradients

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the weighting and its optimizer, and the number of steps taken.

        Save the student and its optimizer yourself, as in any training loop.
        """
        return {
            "weighting": self.weighting.state_dict(),
            "weighting_optimizer": self.weighting_optimizer.state_dict(),
            "steps_taken": self._steps_taken,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            KeyError: an entry is missing.
        """
        for name in STATE:
            check_holds("state_dict", state_dict, name)
        self.weighting.load_state_dict(state_dict["weighting"])
        self.weighting_optimizer.load_state_dict(state_dict["weighting_optimizer"])
        self._steps_taken = state_dict["steps_taken"]

    def _is_due(self) -> bool:
        """Return whether this step learns weights: never while the weighting is frozen."""
        after_warmup = self._steps_taken - self.warmup
        if not trainable(self.weighting):
            return False
        return after_warmup < 0 or after_warmup % self.update_every == 0

    def _look_ahead(
        self, inner: Loss | Sequence[Loss], outer: Loss | Sequence[Loss], probe: Loss | None
    ) -> LookAhead:
        return LookAhead(
            self.student if self.engine == "higher" else self._bare,
            self.optimizer,
            self.weighting,
            Losses("inner", inner),
            Losses("outer", outer),
            None if probe is None else Losses("probe", probe),
            self.max_norm,
            self._loss_scale(),
            self._group,
            self._shards,
            self._alarm,
            verify=self._steps_learned & (self._steps_learned - 1) == 0,  # 0, 1, 2, 4, 8, ...
        )

    def _loss_scale(self) -> float:
        if self.scaler is None or not self.scaler.is_enabled():
            return 1.0
        one = torch.ones((), device=next(self.weighting.parameters()).device)
        value: float = self.scaler.scale(one).item()  # this also initializes the scaler
        return value

    def _gradient(self, ahead: LookAhead) -> MetaGradient:
        check_student(self.student, self.engine)  # hooks may have been registered since
        check_optimizer(self.optimizer, self.engine)
        check_unrolled(self.student, self.optimizer, self.engine, self.steps, ahead.probe)
        result = gradient_of(ahead, self.engine, self.steps)
        if result.fell_back:
            self.engine = result.engine  # the derivative will be missing in later steps as well
        return result

    def _learn(self, ahead: LookAhead) -> MetaStep:
        """Update the student and the weighting, in the order of the mode."""
        result = self._gradient(ahead)
        self._steps_learned += 1
        if self.mode == "lookahead":
            self._update_weighting(ahead, result.gradients)
        if self.mode == "lookahead" or result.step is None:
            inner_loss = self._train(ahead)
        else:
            inner_loss = result.inner_loss
            result.step.keeper.commit(result.step.state)
            self._update_student(ahead, result.step.gradients)
        if self.mode == "online":
            self._update_weighting(ahead, result.gradients)
        return MetaStep(inner_loss, result.outer_loss, result.engine, result.error)

    def _train(self, ahead: LookAhead) -> Tensor:
        """Take a plain step, whose gradient does not reach the weighting's parameters."""
        with torch.enable_grad():
            loss, gradients = ahead.evaluate(ahead.inner, ahead.parameters)
        self._update_student(ahead, ahead.average_of_student(gradients))
        return loss

    def _update_student(self, ahead: LookAhead, gradients: Gradients) -> None:
        self._update(ahead, self.optimizer, ahead.parameters, gradients, self.max_norm)

    def _update_weighting(self, ahead: LookAhead, gradients: Gradients) -> None:
        if not any(p.requires_grad for p in parameters_of(self.weighting_optimizer)):
            return  # a scaler cannot step an optimizer without gradients
        self._update(ahead, self.weighting_optimizer, ahead.meta_parameters, gradients, None)

    def _update(
        self,
        ahead: LookAhead,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        gradients: Gradients,
        max_norm: float | None,
    ) -> None:
        """Take a step of an optimizer, by way of the scaler if there is one."""
        with restoring(partial(_remove_gradients, parameters)):
            optimizer.zero_grad()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None and ahead.loss_scale != 1:
                    gradient = gradient * ahead.loss_scale  # which the scaler will undo
                parameter.grad = gradient
            self._step_optimizer(optimizer, parameters, max_norm)

    def _step_optimizer(
        self, optimizer: Optimizer, parameters: Sequence[Tensor], max_norm: float | None
    ) -> None:
        scaler = self.scaler if self.scaler is not None and self.scaler.is_enabled() else None
        if scaler is not None:
            scaler.unscale_(optimizer)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)


def _remove_gradients(parameters: Sequence[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None
    torch.clear_autocast_cache()  # a surrounding region would use the old parameters


def _broadcast(tensors: Iterable[Tensor], group: Group) -> None:
    """Copy tensors from the first process to all others."""
    first = distributed.get_global_rank(group, 0)
    with torch.no_grad():
        wait_all([distributed.broadcast(t, first, group, async_op=True) for t in tensors])
