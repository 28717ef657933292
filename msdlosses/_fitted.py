"""Buffers that exist only after a module has been fitted to data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from msdlosses._checks import expected, join_names

PREFIX = "fitted_"


class FittedBuffers(nn.Module):
    """Base class of modules with named buffers whose shapes come from data.

    A module takes the buffers, and their shapes, from a `state_dict`, but keeps its own device and
    precision, as modules do with other buffers.
    """

    def __init__(self) -> None:
        super().__init__()
        # Follows the module's device and precision while there are no other buffers.
        self.register_buffer("_like", torch.empty(0), persistent=False)
        module: Any = self  # torch does not type the next method
        module.register_load_state_dict_pre_hook(_allocate)

    def set_fitted(self, values: Mapping[str, Tensor]) -> None:
        """Register the values as buffers."""
        for name, value in values.items():
            self.register_buffer(_attribute(name), value)

    def get_fitted(self, name: str) -> Tensor:
        """Return a buffer; raise a RuntimeError if the module has not been fitted for it."""
        fitted = dict(self.named_buffers(recurse=False))
        if _attribute(name) not in fitted:
            known = [key.removeprefix(PREFIX) for key in fitted if key.startswith(PREFIX)]
            what, advice = f"{type(self).__name__} to be fitted for `{name}`", "Call `fit` first."
            raise RuntimeError(expected(what, join_names(known), advice))
        return fitted[_attribute(name)]


def _allocate(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
    """Register the buffers that a `state_dict` holds, for it to fill."""
    like = module.get_buffer("_like")
    for key, value in state_dict.items():
        if key.startswith(prefix + PREFIX):
            dtype = like.dtype if value.is_floating_point() else value.dtype
            empty = torch.empty(value.shape, dtype=dtype, device=like.device)
            module.register_buffer(key.removeprefix(prefix), empty)


def _attribute(name: str) -> str:
    return PREFIX + name.replace(".", "/")  # the name of a buffer cannot contain a dot
