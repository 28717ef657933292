"""Buffers that exist only once a module has been fitted to data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from msdlosses._checks import listing

PREFIX = "fitted_"


class FittedBuffers(nn.Module):
    """Named buffers whose shapes the data decide; a new module takes them from a state_dict."""

    def set_fitted(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.register_buffer(_attribute(name), value)

    def get_fitted(self, name: str) -> Tensor:
        value = self._buffers.get(_attribute(name))
        if value is None:
            known = [key.removeprefix(PREFIX) for key in self._buffers if key.startswith(PREFIX)]
            raise RuntimeError(
                f"Expected {type(self).__name__} to be fitted for `{name}`, "
                f"got {listing(known)}: call `fit` first, with all that it needs."
            )
        return value

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for key, value in state_dict.items():
            if key.startswith(prefix + PREFIX):
                self.register_buffer(key.removeprefix(prefix), torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _attribute(name: str) -> str:
    return PREFIX + name.replace(".", "/")  # a buffer's name must not hold a dot
