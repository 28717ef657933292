"""Everything this package uses of PyTorch that is private, or that PyTorch does not type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, ParamSpec, Self, TypeVar, cast
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers
from torch.utils import _pytree

# Public, but without types.
make_dual: Any = forward_ad.make_dual
unpack_dual: Any = forward_ad.unpack_dual
preserve_version_counter: Any = _unsafe_preserve_version_counter
register_pytree: Any = _pytree.register_pytree_node

# Older compilers cannot trace subclasses of `dict`.
TRACES_DICT_SUBCLASSES: bool = torch.__version__ >= "2.7"

# Each is one kernel for several tensors on a GPU. PyTorch's optimizers use them as well.
foreach_div: Any = torch._foreach_div
foreach_exp: Any = torch._foreach_exp
foreach_sub_: Any = torch._foreach_sub_

P = ParamSpec("P")
R = TypeVar("R")

# For values in nested tuples, lists, and dictionaries.
tree_flatten: Any = _pytree.tree_flatten
tree_unflatten: Any = _pytree.tree_unflatten

BatchNorm = _BatchNorm
"""The base class of all batch normalizations, also the synchronized and lazy ones."""

# What `torch.no_grad` and its relatives call, in a form that a TorchFunctionMode sees.
set_grad_enabled: Any = torch._C._set_grad_enabled


def set_tangents_enabled(enabled: bool) -> None:
    """Set whether operations propagate tangents, as `set_grad_enabled` does for the graph."""
    torch._C._set_fwd_grad_enabled(enabled)


def in_forward_mode() -> bool:
    """Return whether this is a pass in forward mode, in which nothing may require a gradient."""
    level: int = forward_ad._current_level
    return level >= 0


@cache
def _load_forward_formulas() -> None:
    """Load what PyTorch loads in the first use of forward mode, with a warning about itself."""
    with catch_warnings():
        simplefilter("ignore")
        import_module("torch._decomp.decompositions_for_jvp")


def enter_forward_mode() -> None:
    _load_forward_formulas()
    cast(Any, forward_ad).enter_dual_level()


def leave_forward_mode() -> None:
    """Leave forward mode, unless it was left already."""
    if in_forward_mode():
        cast(Any, forward_ad).exit_dual_level()


def version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place."""
    return tensor._version


def apply_function(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Call an autograd Function."""
    return cast(Any, function).apply(*inputs)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function uncompiled, also if compiled code calls it."""
    return cast(Callable[P, R], _disable_dynamo(function))


def gather_shards(tensor: Tensor) -> Tensor:
    """Return the whole of a `DTensor`; other tensors as they are.

    Its gradient is averaged over the processes, as those of `fully_shard` are.
    """
    if not hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import Partial  # not imported with torch

    sharded: Any = tensor
    average = [Partial("avg")] * sharded.device_mesh.ndim
    return cast(Tensor, sharded.full_tensor(grad_placements=average))


def is_transformed(*tensors: Tensor) -> bool:
    """Return whether `torch.func` or forward-mode differentiation is active."""
    if torch._C._are_functorch_transforms_active():
        return True
    return any(unpack_dual(tensor).tangent is not None for tensor in tensors)


def is_batch_of_gradients(tensor: Tensor) -> bool:
    """Return whether `torch.autograd.grad` computes with ``is_grads_batched=True``."""
    batched: bool = torch._C._functorch.is_legacy_batchedtensor(tensor)
    return batched


def get_mkldnn_enabled() -> bool:
    enabled: bool = torch._C._get_mkldnn_enabled()
    return enabled


def set_mkldnn_enabled(enabled: bool) -> None:
    torch._C._set_mkldnn_enabled(enabled)


def was_written(copy: Tensor) -> bool:
    """Return whether a tensor was written to in place, as far as that is known."""
    unknown = torch.compiler.is_compiling() or copy.is_inference()
    return not unknown and copy._version > 0


def unwrap_compiled(module: Any) -> Any:
    """Return the module inside `torch.compile`'s wrapper."""
    return getattr(module, "_orig_mod", module)


def is_compiled(module: nn.Module) -> bool:
    """Return whether calls of a module run compiled code."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


@contextmanager
def replaced_compiled_call(module: nn.Module, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Wrap the compiled code of a compiled module."""
    name = "forward" if hasattr(module, "_orig_mod") else "_compiled_call_impl"
    original = vars(module)[name]
    vars(module)[name] = wrap(original)
    try:
        yield
    finally:
        vars(module)[name] = original


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the dictionary, not a copy, of the buffers that a module itself holds."""
    return module._buffers


def has_forward_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def backward_hooks(module: nn.Module) -> Iterator[str]:
    """Yield the names of submodules and parameters with hooks on their gradients."""
    for name, submodule in module.named_modules():
        if submodule._backward_hooks or submodule._backward_pre_hooks:
            yield name
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            yield name


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Return whether hooks run in the steps of an optimizer, or of all optimizers."""
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(
        own or optimizers._global_optimizer_pre_hooks or optimizers._global_optimizer_post_hooks
    )


class Float32Buffers(nn.Module):
    """Base class of modules whose floating-point buffers stay in float32 or wider.

    Sums over an epoch would stop growing in half precision.
    """

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = dict(self._buffers)
        cast(Any, super())._apply(function, recurse)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = cast(Tensor, exact[name]).to(buffer.device, torch.float32)
        return self
