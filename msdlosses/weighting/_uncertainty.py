"""Weights by homoscedastic uncertainty, learned with the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from msdlosses._checks import check_names
from msdlosses._linear import Logits
from msdlosses.weighting._base import Weighting, reorder


class UncertaintyWeighting(Weighting):
    r"""Weights learned with the student, from a noise scale for the term of each view.

    .. math:: L = \sum_v \frac 1 {\sigma_v^2} L_v + \sum_v \log \sigma_v

    The weights start at 1. The second sum, the `penalty`, keeps them from shrinking to 0; `MSDLoss`
    adds it for each sample that is valid in a view. Pass the parameters to the optimizer.

    Args:
        names: the views of the terms, such as ``views.names``.

    Shape:
        Returns (K,): one weight per view.

    Raises:
        TypeError: ``names`` is not a sequence.
        ValueError: ``names`` is empty or repeats a name.
        KeyError: when called with other views.

    Example:
        >>> weighting = UncertaintyWeighting(("full", "text"))
        >>> weighting(torch.zeros(2, 2), {}, names=("full", "text")).tolist()
        [1.0, 1.0]

    Source: [built on] Kendall et al. 2018, arXiv 1705.07115, equation 10, where a classification
    term has the weight 1 / sigma^2 and not half of it; that paper also advises learning the
    logarithm of the variance.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        check_names("names", names)
        self.names = tuple(names)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Logits],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        return reorder(torch.exp(-self.log_variance), self.names, names).to(terms.dtype)

    def penalty(self, names: Sequence[str]) -> Tensor:
        """Return the logarithm of the standard deviation of each view, (K,)."""
        return 0.5 * reorder(self.log_variance, self.names, names)

    def extra_repr(self) -> str:
        return f"names={self.names}"
