"""What can be looked ahead of exactly; all else is refused, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from msdlosses._checks import describe, listing
from msdlosses.meta._distributed import Gradients
from msdlosses.meta._higher import DIFFERENTIABLE


def unwrap(student: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """The module that losses are given, and the wrapper that tells the group of processes.

    A compiled module stays as it is: it runs uncompiled where it is differentiated.
    """
    inner = getattr(student, "_orig_mod", student)  # of a wrapper that was compiled
    if isinstance(inner, DistributedDataParallel):
        return inner.module, inner
    return student, None


def check_student(student: object) -> None:
    """A module, of plain parameters that are in one place."""
    if not isinstance(student, nn.Module):
        raise TypeError(f"Expected `student` to be a module, got {describe(student)}.")
    bare, _ = unwrap(student)
    for name, module in bare.named_modules():
        if isinstance(module, DistributedDataParallel | nn.DataParallel):
            raise TypeError(
                "Expected `student` to be wrapped as a whole, in DistributedDataParallel, "
                f"got {describe(module)} at `{name or 'the student'}`."
            )
    hooked = _backward_hook(bare)
    if hooked is not None:
        raise ValueError(
            "Expected a student without hooks on its gradients, which may change them unseen by "
            f"the look-ahead, got such on `{hooked or 'the student'}`."
        )
    for name, parameter in bare.named_parameters():
        if type(parameter.data) is not Tensor:
            raise TypeError(
                "Expected a student whose parameters are plain tensors, not sharded, "
                f"got {type(parameter.data).__name__} at `{name}`."
            )


def check_optimizer(optimizer: object) -> None:
    """One of those whose step is known as a differentiable function."""
    if type(optimizer) not in DIFFERENTIABLE:
        names = listing(f"torch.optim.{kind.__name__}" for kind in DIFFERENTIABLE)
        raise TypeError(f"Expected `optimizer` to be one of {names}, got {describe(optimizer)}.")
    assert isinstance(optimizer, Optimizer)
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise ValueError(
            "Expected an `optimizer` without hooks, which the look-ahead would leave out, got such."
        )


def parameters_of(optimizer: Optimizer) -> tuple[Tensor, ...]:
    """All that the optimiser holds, in the order of its groups."""
    return tuple(p for group in optimizer.param_groups for p in group["params"])


def check_weighting(weighting: object, optimizer: Optimizer) -> None:
    """A module with something to learn, which the student's optimiser leaves alone."""
    if not isinstance(weighting, nn.Module):
        raise TypeError(f"Expected `weighting` to be a module, got {describe(weighting)}.")
    if not learned(weighting):
        raise ValueError("Expected `weighting` to have parameters to learn, got none.")
    held = {id(p) for p in parameters_of(optimizer)}
    if any(id(p) in held for p in learned(weighting)):
        raise ValueError(
            "Expected `optimizer` to hold no parameters of `weighting`, which would then be "
            "learned from the training loss, got some."
        )


def check_weighting_optimizer(optimizer: object, weighting: nn.Module) -> None:
    """An optimiser of some of what is learned."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"Expected `weighting_optimizer` to be an optimiser, got {describe(optimizer)}."
        )
    held = {id(p) for p in parameters_of(optimizer)}
    if not any(id(p) in held for p in learned(weighting)):
        raise ValueError(
            "Expected `weighting_optimizer` to hold parameters of `weighting`, got others."
        )


def learned(weighting: nn.Module) -> tuple[nn.Parameter, ...]:
    """The parameters of the weighting that the held-out loss teaches."""
    return tuple(p for p in weighting.parameters() if p.requires_grad)


def _backward_hook(student: nn.Module) -> str | None:
    """The name of a module or parameter that has one."""
    name: str
    for name, module in student.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            return name
    for name, parameter in student.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return name
    return None


def check_copied(student: nn.Module, optimizer: Optimizer) -> None:
    """What `higher` can copy rightly."""
    for name, module in student.named_modules():
        wrapped = isinstance(module, DistributedDataParallel)
        if wrapped or hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise TypeError(
                "Expected `student` to be the bare module, neither compiled nor wrapped, which "
                f"`higher` can copy, got {describe(module)} at `{name or 'the student'}`."
            )
        hooks = module._forward_hooks or module._forward_pre_hooks
        if hooks or "forward" in vars(module):
            raise ValueError(
                "Expected a student without hooks and without a `forward` set on an instance, "
                f"which `higher` would leave out, got such on `{name or 'the student'}`: use "
                "another engine."
            )
    own = {id(p) for p in student.parameters()}
    if any(id(p) not in own for p in parameters_of(optimizer)):
        raise ValueError(
            "Expected `optimizer` to hold parameters of `student` alone with engine='higher', "
            "got others."
        )


def scalar(name: str, loss: Any) -> Tensor:
    """A loss that was returned as one."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TypeError(f"Expected `{name}` to return a scalar tensor, got {describe(loss)}.")
    return loss.reshape(()) if loss.ndim else loss


def check_dense(gradients: Gradients) -> None:
    """Gradients of which the optimisers' algebra is known."""
    if any(g is not None and g.layout != torch.strided for g in gradients):
        raise ValueError("Expected dense gradients, got sparse ones: set sparse=False.")


def reached(gradients: Gradients, learned: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A gradient for each of what is learned, if there is one for any."""
    if all(g is None for g in gradients):
        raise no_path()
    pairs = zip(learned, gradients, strict=True)
    return tuple(torch.zeros_like(p) if g is None else g for p, g in pairs)


def no_path() -> ValueError:
    """The held-out loss says nothing of the weighting."""
    return ValueError(
        "Expected `outer` to reach the weighting through the step on `inner`, got no path: "
        "let both use the student, and `inner` the weighting undetached."
    )
