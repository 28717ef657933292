"""Choosing kernels that can be differentiated twice or in forward mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from msdlosses._torch import get_mkldnn_enabled, set_mkldnn_enabled
from msdlosses.meta._interrupts import restoring
from msdlosses.meta._settings import SharedSetting


@contextmanager
def differentiable_kernels(model: nn.Module) -> Iterator[None]:
    """Avoid kernels without a second derivative or a forward-mode derivative.

    These are fused attention, the fused Transformer layer of evaluation mode, and the recurrent
    layers of cuDNN and oneDNN.
    """
    with plain_attention():
        if is_recurrent(model):
            with plain_recurrence():
                yield
        else:
            yield


@SharedSetting
@contextmanager
def plain_attention() -> Iterator[None]:
    mha: Any = torch.backends.mha
    restore = partial(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
    with restoring(restore), sdpa_kernel(SDPBackend.MATH):
        mha.set_fastpath_enabled(False)
        yield


@SharedSetting
@contextmanager
def plain_recurrence() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    restore_cudnn = partial(setattr, cudnn, "enabled", cudnn.enabled)
    restore_mkldnn = partial(set_mkldnn_enabled, get_mkldnn_enabled())
    with restoring(restore_cudnn), restoring(restore_mkldnn):
        cudnn.enabled = False
        set_mkldnn_enabled(False)
        yield


def is_recurrent(model: nn.Module) -> bool:
    """Return whether the model has an LSTM, a GRU, or another recurrent layer."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())
