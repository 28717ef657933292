"""Learning the weights: one look-ahead step of the student, differentiated by the weighting.

The only module that imports `higher`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD, Optimizer

from msdlosses._checks import check_choice, describe

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # an invalid escape sequence in a docstring of `higher`
    import higher

__all__ = ["MetaLearner", "MetaStep"]

Objective = Callable[[nn.Module], Tensor]

ENGINES = ("auto", "higher")
MODES = ("online", "lookahead")


@dataclass(frozen=True)
class MetaStep:
    """What one step did."""

    inner: Tensor
    """The student's loss at the step that was taken, detached."""
    outer: Tensor
    """The held-out loss after the look-ahead step, detached."""
    engine: str
    """The engine that took the gradient."""


class MetaLearner:
    r"""Trains a student and, by looking one of its steps ahead, the weighting of its loss.

    .. math:: \theta'(\Phi) = \mathrm{opt}\bigl(\theta, \nabla_\theta L_\mathrm{inner}(\theta,
        \Phi)\bigr), \qquad \Phi \leftarrow \mathrm{opt}_\Phi\bigl(\Phi, \nabla_\Phi
        L_\mathrm{outer}(\theta'(\Phi))\bigr)

    The loop stays the user's: hand `step` the training loss and the loss on held-out data as
    functions of the model. They have to use the model that they are given, not the student.

    Args:
        student: the model that is trained.
        optimizer: the student's, a `torch.optim.SGD` with any momentum, dampening, Nesterov,
            weight decay and parameter groups. It keeps its state.
        weighting: the module whose parameters are learned, such as a `WeightNet`.
        weighting_optimizer: its optimiser, of any kind.
        engine: how the gradient is taken: ``"higher"``, or ``"auto"`` for the best there is.
        mode: ``"online"``: the look-ahead is the real step, so the student moves by the weights
            as they were; ``"lookahead"``: the weighting is updated first and the student steps
            by the new weights, which is the order of Meta-Weight-Net.

    Raises:
        TypeError: an argument of the wrong kind; an optimiser other than SGD; a compiled or
            DistributedDataParallel student.
        ValueError: an unknown engine or mode; an optimiser's option that the look-ahead would
            not honour; a weighting without parameters; a student with hooks, or with a
            `forward` set on the instance.

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
        'higher'

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
    ) -> None:
        _check_student(student)
        _check_optimizer(optimizer, student)
        if not isinstance(weighting, nn.Module):
            raise TypeError(f"Expected `weighting` to be a module, got {describe(weighting)}.")
        if not isinstance(weighting_optimizer, Optimizer):
            raise TypeError(
                "Expected `weighting_optimizer` to be an optimiser, "
                f"got {describe(weighting_optimizer)}."
            )
        check_choice("engine", engine, ENGINES)
        check_choice("mode", mode, MODES)
        self.student = student
        self.optimizer = optimizer
        self.weighting = weighting
        self.weighting_optimizer = weighting_optimizer
        self.engine = "higher"
        self.mode = mode
        if not self._parameters():
            raise ValueError("Expected `weighting` to have parameters to learn, got none.")

    def step(self, inner: Objective, outer: Objective) -> MetaStep:
        """Update the weighting and the student, once each.

        Args:
            inner: the student's loss with the weighting in it, ``model -> scalar``.
            outer: the loss on held-out data, ``model -> scalar``.

        Raises:
            TypeError: a loss that is no scalar tensor.
            ValueError: losses through which the weighting can't be reached.
        """
        gradient, held_out = self._look_ahead(inner, outer)
        if self.mode == "online":
            loss = self._student_step(inner)
            self._weighting_step(gradient)
        else:
            self._weighting_step(gradient)
            loss = self._student_step(inner)
        return MetaStep(loss, held_out, self.engine)

    def gradient(self, inner: Objective, outer: Objective) -> tuple[Tensor, ...]:
        """The gradient of ``outer`` after the look-ahead step, changing no state of anything.

        Returns one tensor for each parameter of the weighting that is learned, in their order.
        The arguments and errors are those of `step`.
        """
        return self._look_ahead(inner, outer)[0]

    def _look_ahead(self, inner: Objective, outer: Objective) -> tuple[tuple[Tensor, ...], Tensor]:
        _check_student(self.student)  # hooks may have come since
        with (
            torch.enable_grad(),
            _leaving_no_trace(self.student),
            _twice_differentiable(self.student),
        ):
            model = higher.monkeypatch(self.student, track_higher_grads=True)
            optimizer = higher.optim.get_diff_optim(
                self.optimizer, self.student.parameters(), fmodel=model, track_higher_grads=True
            )
            optimizer.step(_scalar("inner", inner(model)))
            held_out = _scalar("outer", outer(model))
            return _reach(held_out, self._parameters()), held_out.detach()

    def _parameters(self) -> tuple[nn.Parameter, ...]:
        return tuple(p for p in self.weighting.parameters() if p.requires_grad)

    def _student_step(self, inner: Objective) -> Tensor:
        """A plain step, whose gradient does not end up in the weighting's parameters."""
        loss = _scalar("inner", inner(self.student))
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _weighting_step(self, gradient: tuple[Tensor, ...]) -> None:
        for parameter, value in zip(self._parameters(), gradient, strict=True):
            parameter.grad = value
        self.weighting_optimizer.step()
        self.weighting_optimizer.zero_grad()


def _reach(loss: Tensor, parameters: tuple[nn.Parameter, ...]) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor | None, ...] = (None,)
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            "Expected `outer` to reach the weighting through the step on `inner`, got no path: "
            "let both call the model that they are given, and `inner` the weighting undetached."
        )
    return tuple(
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    )


@contextmanager
def _leaving_no_trace(student: nn.Module) -> Iterator[None]:
    """Put the random state back, so that the real step draws the dropout of the look-ahead."""
    devices = {p.device for p in student.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        yield


@contextmanager
def _twice_differentiable(student: nn.Module) -> Iterator[None]:
    """Keep away from kernels without a second derivative: fused attention, oneDNN's LSTM."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in student.modules()):
            stack.enter_context(_without_onednn())
        yield


@contextmanager
def _without_onednn() -> Iterator[None]:
    flags = torch.backends.mkldnn.flags(enabled=False)
    with _quiet():  # torch warns of TF32, which is not touched
        flags.__enter__()
    try:
        yield
    finally:
        with _quiet():
            flags.__exit__(None, None, None)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _scalar(name: str, loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TypeError(f"Expected `{name}` to return a scalar tensor, got {describe(loss)}.")
    return loss


def _check_student(student: nn.Module) -> None:
    if not isinstance(student, nn.Module):
        raise TypeError(f"Expected `student` to be a module, got {describe(student)}.")
    wrapped = hasattr(student, "_orig_mod") or isinstance(
        student, nn.parallel.DistributedDataParallel
    )
    if wrapped:
        raise TypeError(
            "Expected `student` to be the bare module, which `higher` can copy, "
            f"got {describe(student)}."
        )
    for name, module in student.named_modules():
        hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        if hooks or "forward" in vars(module):
            raise ValueError(
                "Expected a student without hooks and without a `forward` set on an instance, "
                f"which `higher` would leave out, got such on `{name or 'the student'}`."
            )


def _check_optimizer(optimizer: Optimizer, student: nn.Module) -> None:
    if type(optimizer) is not SGD:
        raise TypeError(f"Expected `optimizer` to be a torch.optim.SGD, got {describe(optimizer)}.")
    own = {id(p) for p in student.parameters()}
    for group in optimizer.param_groups:
        if group["maximize"]:
            raise ValueError("Expected an `optimizer` that minimises, got maximize=True.")
        if any(id(p) not in own for p in group["params"]):
            raise ValueError(
                "Expected `optimizer` to hold parameters of `student` alone, got others."
            )
