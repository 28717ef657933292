"""Learning the weights: one look-ahead step of the student, differentiated by the weighting.

The only module that imports `higher`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
    Losses that were compiled run uncompiled while they are differentiated.

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
        ValueError: an unknown engine or mode; an optimiser's option or hook that the look-ahead
            would not honour, or parameters in it that are not the student's; a weighting without
            parameters, or of which its optimiser has none; a student with hooks, on a module or
            a parameter, or with a `forward` set on the instance.

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
        if not _parameters_of(weighting_optimizer) & {id(p) for p in self._parameters()}:
            raise ValueError(
                "Expected `weighting_optimizer` to hold parameters of `weighting`, got others."
            )

    def step(self, inner: Objective, outer: Objective) -> MetaStep:
        """Update the weighting and the student, once each.

        Args:
            inner: the student's loss with the weighting in it, ``model -> scalar``.
            outer: the loss on held-out data, ``model -> scalar``.

        Raises:
            TypeError: a loss that is no scalar tensor.
            ValueError: losses through which the weighting can't be reached, or that use the
                student and not the model that they are given.
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
        _check_optimizer(self.optimizer, self.student)
        with (
            torch.enable_grad(),
            _leaving_no_trace(self.student, self.weighting),
            _twice_differentiable(self.student),
        ):
            model = higher.monkeypatch(self.student, track_higher_grads=True)
            optimizer = higher.optim.get_diff_optim(
                self.optimizer, self.student.parameters(), fmodel=model, track_higher_grads=True
            )
            loss = _scalar("inner", inner(model))
            _check_path("inner", loss, self.student)
            optimizer.step(loss)
            held_out = _scalar("outer", outer(model))
            _check_path("outer", held_out, self.student)
            return _reach(held_out, self._parameters()), held_out.detach()

    def _parameters(self) -> tuple[nn.Parameter, ...]:
        return tuple(p for p in self.weighting.parameters() if p.requires_grad)

    def _student_step(self, inner: Objective) -> Tensor:
        """A plain step, whose gradient does not end up in the weighting's parameters."""
        self.optimizer.zero_grad()
        held = _parameters_of(self.optimizer)
        parameters = [p for p in self.student.parameters() if p.requires_grad and id(p) in held]
        with torch.enable_grad():
            loss = _scalar("inner", inner(self.student))
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        _take_step(self.optimizer, parameters, gradients)
        return loss.detach()

    def _weighting_step(self, gradients: tuple[Tensor, ...]) -> None:
        self.weighting_optimizer.zero_grad()
        _take_step(self.weighting_optimizer, self._parameters(), gradients)


def _take_step(
    optimizer: Optimizer,
    parameters: Iterable[nn.Parameter],
    gradients: Iterable[Tensor | None],
) -> None:
    parameters = tuple(parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    torch.clear_autocast_cache()  # a region around the step would go on with the old parameters


def _parameters_of(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _reach(loss: Tensor, parameters: tuple[nn.Parameter, ...]) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise _no_path()
    return tuple(
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    )


def _no_path() -> ValueError:
    return ValueError(
        "Expected `outer` to reach the weighting through the step on `inner`, got no path: "
        "let both call the model that they are given, and `inner` the weighting undetached."
    )


def _check_path(name: str, loss: Tensor, student: nn.Module) -> None:
    """The loss has a graph, and the student's own parameters are not in it."""
    if loss.grad_fn is None:
        raise _no_path()
    own = {id(p) for p in student.parameters()}
    seen, nodes = {loss.grad_fn}, [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if id(getattr(node, "variable", None)) in own:  # a leaf of the graph
            raise ValueError(
                f"Expected `{name}` to use the model that it is given, got a loss that depends "
                "on the student's own parameters: by calling the student, or by parameters that "
                "the student keeps aside."
            )
        further = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= further
        nodes.extend(further)


@contextmanager
def _leaving_no_trace(student: nn.Module, weighting: nn.Module) -> Iterator[None]:
    """Put back the random state, so that the real step draws the same dropout.

    The weighting's buffers are put back too. `higher` copies the student's.
    """
    devices = {p.device for p in student.parameters() if p.device.type == "cuda"}
    buffers = [(module, dict(module._buffers)) for module in weighting.modules()]
    for module, own in buffers:
        module._buffers.update({k: b if b is None else b.clone() for k, b in own.items()})
    try:
        with torch.random.fork_rng(devices=[device.index for device in devices]):
            yield
    finally:
        for module, own in buffers:
            module._buffers.update(own)


@contextmanager
def _twice_differentiable(student: nn.Module) -> Iterator[None]:
    """Keep away from what has no second derivative: fused attention, cuDNN's RNNs, compilation."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in student.modules())
    cudnn: Any = torch.backends.cudnn
    enabled = cudnn.enabled
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        try:
            cudnn.enabled = enabled and not recurrent
            yield
        finally:
            cudnn.enabled = enabled


def _scalar(name: str, loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TypeError(f"Expected `{name}` to return a scalar tensor, got {describe(loss)}.")
    return loss


def _check_student(student: nn.Module) -> None:
    if not isinstance(student, nn.Module):
        raise TypeError(f"Expected `student` to be a module, got {describe(student)}.")
    for name, module in student.named_modules():
        wrapped = isinstance(module, nn.parallel.DistributedDataParallel)
        if wrapped or hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise TypeError(
                "Expected `student` to be the bare module, neither compiled nor wrapped, which "
                f"`higher` can copy, got {describe(module)} at `{name or 'the student'}`."
            )
        hooks = (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
        if hooks or "forward" in vars(module):
            raise ValueError(
                "Expected a student without hooks and without a `forward` set on an instance, "
                f"which `higher` would leave out, got such on `{name or 'the student'}`."
            )
    for name, parameter in student.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise ValueError(
                "Expected a student without hooks, which `higher` would leave out, got such on "
                f"the parameter `{name}`."
            )


def _check_optimizer(optimizer: Optimizer, student: nn.Module) -> None:
    if type(optimizer) is not SGD:
        raise TypeError(f"Expected `optimizer` to be a torch.optim.SGD, got {describe(optimizer)}.")
    if any(group["maximize"] for group in optimizer.param_groups):
        raise ValueError("Expected an `optimizer` that minimises, got maximize=True.")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise ValueError(
            "Expected an `optimizer` without hooks, which the look-ahead would leave out, got such."
        )
    if not _parameters_of(optimizer) <= {id(p) for p in student.parameters()}:
        raise ValueError("Expected `optimizer` to hold parameters of `student` alone, got others.")
