"""Weights that follow how fast the terms decrease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msdlosses._checks import check_names, check_number
from msdlosses._linear import Logits
from msdlosses._masks import any_position
from msdlosses._reduce import all_reduce_sum
from msdlosses._torch import Float32Buffers
from msdlosses.weighting._base import Weighting, reorder


class DynamicWeightAverage(Float32Buffers, Weighting):
    r"""Larger weights for views whose terms decrease more slowly.

    .. math:: w_v = K\, \frac{\exp(r_v / T)}{\sum_u \exp(r_u / T)}, \quad
        r_v = L_v^{(t - 1)} / L_v^{(t - 2)}

    with the mean terms of the last two epochs; until there are two, the weights are 1. In training
    mode every call updates the means, over all processes if there are several, which must then
    make equally many calls. Call `step` at the end of each epoch. The sums stay in float32 when
    the module is cast to half precision.

    Args:
        names: the views of the terms, such as ``views.names``.
        temperature: T, above 0; a larger one makes the weights more equal.
        group: the processes to average over; None for all of them.

    Shape:
        Returns (K,): one weight per view.

    Raises:
        TypeError: ``names`` is not a sequence, or ``temperature`` is not a number.
        ValueError: ``names`` is empty or repeats a name, or ``temperature`` is not positive.
        KeyError: when called with other views.

    Example:
        >>> weighting, names = DynamicWeightAverage(("full", "text")), ("full", "text")
        >>> for terms in ([[4.0, 4.0]], [[1.0, 4.0]]):  # the term of the text does not decrease
        ...     weights = weighting(torch.tensor(terms), {}, names=names)
        ...     weighting.step()
        >>> [round(w, 2) for w in weighting(torch.zeros(1, 2), {}, names=names).tolist()]
        [0.81, 1.19]

    Source: [built on] Liu et al. 2019, arXiv 1803.10704, equation 7. Ignoring values that are not
    finite, and keeping the mean of a view without samples in an epoch: [ours].
    """

    total: Tensor
    count: Tensor
    last: Tensor
    before: Tensor

    def __init__(
        self, names: Sequence[str], *, temperature: float = 2.0, group: Any = None
    ) -> None:
        super().__init__()
        check_names("names", names)
        check_number("temperature", temperature, "(0, inf)")
        self.names = tuple(names)
        self.temperature = temperature
        self.group = group
        # Sums over the current epoch, and the means of the last two.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        for name in ("total", "count", "last", "before"):
            self.register_buffer(name, torch.zeros(len(self.names), dtype=dtype))

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Logits],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        ratio = torch.where(self.before > 0, self.last / self.before.clamp(min=1e-30), 1.0)
        weights = len(self.names) * torch.softmax(ratio / self.temperature, 0)
        weights = reorder(weights, self.names, names).to(terms.dtype)
        if self.training:
            self._update(terms.detach(), names, valid)
        return weights

    def step(self) -> None:
        """End an epoch: its means become the last ones."""
        mean = torch.where(self.count > 0, self.total / self.count.clamp(min=1), self.last)
        self.before.copy_(self.last)
        self.last.copy_(mean)
        self.total.zero_()
        self.count.zero_()

    def _update(self, terms: Tensor, names: Sequence[str], valid: Tensor | None) -> None:
        mask = terms.isfinite()
        if valid is not None:
            mask = mask & any_position(valid)
        total = terms.masked_fill(~mask, 0.0).sum(0).to(self.total.dtype)
        # In each call, because DistributedDataParallel overwrites buffers with those of rank 0.
        sums = torch.stack([total, mask.sum(0).to(total.dtype)], dim=-1)
        sums = all_reduce_sum(sums, self.group)
        total, count = reorder(sums, names, self.names).unbind(-1)
        self.total += total
        self.count += count

    def extra_repr(self) -> str:
        return f"names={self.names}, temperature={self.temperature}"
