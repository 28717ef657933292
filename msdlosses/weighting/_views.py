"""One weight per view, the same for all samples: set, learned, or following the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from msdlosses._checks import check_names, check_number, listing
from msdlosses.functional._rows import any_position
from msdlosses.weighting._base import Weighting, over_processes


class FixedWeighting(Weighting):
    """One weight per view, set by hand or searched.

    Args:
        by_view: view -> weight. ``FixedWeighting(**{"full": 1, "~image": 0.5})`` for names that
            Python does not take as keywords.

    Shape:
        Returns (K,): one weight for each view.

    Raises:
        TypeError: a weight that is no number.
        ValueError: no weight, or one that is negative or not finite.
        KeyError: when called, a view without a weight or a weight without a view.

    Example:
        >>> weighting = FixedWeighting(full=1.0, image=1.0, text=0.25)
        >>> weighting(torch.zeros(2, 3), {}, names=("full", "image", "text"))
        tensor([1.0000, 1.0000, 0.2500])

    Source: [paper] "weighting approaches"; one weight for all samples: [ours].
    """

    def __init__(self, **by_view: float) -> None:
        super().__init__()
        if not by_view:
            raise ValueError("Expected a weight for at least one view, got none.")
        for view, weight in by_view.items():
            check_number(view, weight, least=0)
        self.names = tuple(by_view)
        self.weights: Tensor
        self.register_buffer("weights", torch.tensor([float(w) for w in by_view.values()]))

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        return in_order(self.weights, self.names, names)

    def extra_repr(self) -> str:
        return ", ".join(self.names)


class UncertaintyWeighting(Weighting):
    r"""Weights learned with the student, as if each view's term had a noise of its own.

    .. math:: L = \sum_v \frac 1 {\sigma_v^2} L_v + \sum_v \log \sigma_v

    The weights start at 1. What keeps them from falling to 0 is the second sum, the `penalty`,
    which `MSDLoss` adds once to the loss that it reduces. Hand the parameters to the optimiser.

    Args:
        names: the views of the terms, such as ``views.names``.

    Shape:
        Returns (K,): one weight for each view.

    Raises:
        TypeError: names that are no sequence.
        ValueError: no names, or one twice.
        KeyError: when called, other views than these.

    Example:
        >>> weighting = UncertaintyWeighting(("full", "text"))
        >>> weighting(torch.zeros(2, 2), {}, names=("full", "text")).tolist()
        [1.0, 1.0]

    Source: [built on] Kendall et al. 2018, arXiv 1705.07115, equation 10, in which a term of
    predictions has the weight 1 / sigma^2 and not its half; the logarithm of the variance as the
    parameter is that paper's advice.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        check_names("names", names)
        self.names = tuple(names)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        return in_order(torch.exp(-self.log_variance), self.names, names).to(terms.dtype)

    def penalty(self) -> Tensor:
        """The sum of the logarithms of the deviations."""
        return 0.5 * self.log_variance.sum()

    def extra_repr(self) -> str:
        return f"names={self.names}"


class DynamicWeightAverage(Weighting):
    r"""A view whose term falls more slowly than the others' counts more.

    .. math:: w_v = K\, \frac{\exp(r_v / T)}{\sum_u \exp(r_u / T)}, \quad
        r_v = L_v^{(t - 1)} / L_v^{(t - 2)}

    with the mean terms of the last two epochs; the weights are 1 until there are two. In training
    mode every call adds to the means, those of all processes where there are several: each of
    them makes as many calls. Call `step` at the end of an epoch: it closes the epoch's means.

    Args:
        names: the views of the terms, such as ``views.names``.
        temperature: T, above 0; the larger, the more even the weights.

    Shape:
        Returns (K,): one weight for each view.

    Raises:
        TypeError: names that are no sequence, a temperature that is no number.
        ValueError: no names, or one twice; a temperature that is not above 0.
        KeyError: when called, other views than these.

    Example:
        >>> weighting, names = DynamicWeightAverage(("full", "text")), ("full", "text")
        >>> for terms in ([[4.0, 4.0]], [[1.0, 4.0]]):  # the text's does not fall
        ...     weights = weighting(torch.tensor(terms), {}, names=names)
        ...     weighting.step()
        >>> [round(w, 2) for w in weighting(torch.zeros(1, 2), {}, names=names).tolist()]
        [0.81, 1.19]

    Source: [built on] Liu et al. 2019, arXiv 1803.10704, equation 7. That what is not finite, and
    a view that no sample had for an epoch, leave the means as they are: [ours].
    """

    total: Tensor
    count: Tensor
    last: Tensor
    before: Tensor

    def __init__(self, names: Sequence[str], *, temperature: float = 2.0) -> None:
        super().__init__()
        check_names("names", names)
        check_number("temperature", temperature, above=0)
        self.names = tuple(names)
        self.temperature = temperature
        for name in ("total", "count", "last", "before"):  # of this epoch; the means of others
            self.register_buffer(name, torch.zeros(len(self.names)))

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        if self.training:
            self._observe(terms.detach(), names, valid)
        ratio = torch.where(self.before > 0, self.last / self.before.clamp(min=1e-30), 1.0)
        weights = len(self.names) * torch.softmax(ratio / self.temperature, 0)
        return in_order(weights, self.names, names).to(terms.dtype)

    def step(self) -> None:
        """Close an epoch: its means become the last ones."""
        mean = torch.where(self.count > 0, self.total / self.count.clamp(min=1), self.last)
        self.before.copy_(self.last)
        self.last.copy_(mean)
        self.total.zero_()
        self.count.zero_()

    def _observe(self, terms: Tensor, names: Sequence[str], valid: Tensor | None) -> None:
        counts = terms.isfinite()
        if valid is not None:
            counts = counts & any_position(valid)
        total = terms.masked_fill(~counts, 0.0).sum(0).to(self.total.dtype)
        # At each call: DistributedDataParallel overwrites buffers with the first process's.
        sums = over_processes(torch.stack([total, counts.sum(0).to(total.dtype)], dim=-1))
        total, count = in_order(sums, names, self.names).unbind(-1)
        self.total += total
        self.count += count

    def extra_repr(self) -> str:
        return f"names={self.names}, temperature={self.temperature}"


def in_order(values: Tensor, names: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Values by view, in another order of the views."""
    if set(names) != set(wanted):
        raise KeyError(f"Expected a weight for each of {listing(wanted)}, got {listing(names)}.")
    if tuple(names) == tuple(wanted):
        return values
    return torch.stack([values[names.index(view)] for view in wanted])
