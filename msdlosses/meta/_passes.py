"""How a pass of the student is run: which kernels, at which parameters, in which direction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.attention import SDPBackend, sdpa_kernel

make_dual: Any = forward_ad.make_dual


@contextmanager
def differentiable_kernels(student: nn.Module, *, needed: bool = True) -> Iterator[None]:
    """Keep away from kernels without a second derivative or a forward-mode one.

    These are fused attention, the fused Transformer layer of evaluation, and the recurrent layers
    of cuDNN and oneDNN. Where it is not `needed`, all are welcome.
    """
    if not needed:
        yield
        return
    backends: Any = torch.backends
    cudnn, fused = backends.cudnn.enabled, backends.mha.get_fastpath_enabled()
    onednn = torch._C._get_mkldnn_enabled()
    recurrent = is_recurrent(student)
    with sdpa_kernel(SDPBackend.MATH):
        try:
            backends.mha.set_fastpath_enabled(False)
            if recurrent:
                backends.cudnn.enabled = False
                torch._C._set_mkldnn_enabled(False)
            yield
        finally:
            backends.mha.set_fastpath_enabled(fused)
            backends.cudnn.enabled = cudnn
            torch._C._set_mkldnn_enabled(onednn)


def is_recurrent(student: nn.Module) -> bool:
    """Whether the student has an LSTM, a GRU or their like."""
    return any(isinstance(module, nn.RNNBase) for module in student.modules())


@contextmanager
def valued(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Give the parameters other values, wherever they are held, and then their own again.

    Their storage is exchanged and not written to, so that a graph that saved them stays whole.
    """
    own = [p.data for p in parameters]
    try:
        _set_data(parameters, values)
        yield
    finally:
        _set_data(parameters, own)


def _set_data(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value
    torch.clear_autocast_cache()  # which goes by the parameter, not by what is in it


@contextmanager
def moving(
    parameters: Sequence[Tensor], directions: Sequence[Tensor | None], others: Iterable[Tensor]
) -> Iterator[None]:
    """Let the parameters carry tangents, wherever they are held, and record no graph for them.

    Nothing is recorded for `others` either. The tangent comes with a copy of a parameter onto
    itself, in place and unseen by version counters: no value is written that was not there.
    """
    pairs = [(p, d) for p, d in zip(parameters, directions, strict=True) if d is not None]
    asked = [p for p in {*parameters, *others} if p.requires_grad]
    with ExitStack() as stack:
        for parameter, _ in pairs:
            stack.enter_context(_unsafe_preserve_version_counter(parameter))
        stack.enter_context(forward_ad.dual_level())
        stack.callback(_ask, asked, True)
        _ask(asked, False)
        for parameter, direction in pairs:
            dual: Tensor = make_dual(parameter.detach(), direction)
            parameter.copy_(dual)
        torch.clear_autocast_cache()
        yield


def _ask(parameters: Iterable[Tensor], gradient: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(gradient)


def watch_custom_functions(loss: Tensor) -> None:
    """Raise in a backward pass that is to be differentiated where a custom Function cuts it.

    A Function whose backward calls a kernel of its own gives a gradient without a graph, and
    what is learned through it would be silently wrong.
    """
    for node in graph_of(loss):
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            node.register_hook(_uncut(type(node).__name__.removesuffix("Backward")))


def _uncut(name: str) -> Any:
    def hook(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
        asked = any(g is not None and g.requires_grad for g in outputs)
        if asked and any(g is not None and _is_cut(g) for g in inputs):
            # In torch's words and type: what it raises where it has no formula itself.
            raise NotImplementedError(f"derivative for the backward of {name} is not implemented")

    return hook


def _is_cut(gradient: Tensor) -> bool:
    """No graph, or the one by which `once_differentiable` raises if it is ever reached."""
    return gradient.grad_fn is None or gradient.grad_fn.name().endswith("::Error")


def check_no_reentrant_checkpoint(loss: Tensor) -> None:
    """Parameters inside of one are out of the graph, and would look as if they were not used."""
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in graph_of(loss)):
        raise ValueError(
            "Expected activation checkpoints that leave the parameters in the graph, got one with "
            "use_reentrant=True: set it to False."
        )


def graph_of(loss: Tensor) -> Iterator[Any]:
    """The nodes of the loss's graph."""
    seen = {loss.grad_fn}
    nodes = [loss.grad_fn] if loss.grad_fn is not None else []
    while nodes:
        node = nodes.pop()
        yield node
        further = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= further
        nodes.extend(further)
