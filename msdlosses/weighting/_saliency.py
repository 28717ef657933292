"""Weights by the saliency of a view to the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import cast

import torch
from torch import Tensor

from msdlosses._checks import (
    check_grid,
    check_number,
    check_that,
    check_type,
    check_views,
    describe,
    expected,
)
from msdlosses._fitted import FittedBuffers
from msdlosses._formulas.saliency import (
    Divergence,
    check_divergence,
    get_view,
    view_saliency,
    views_with_saliency,
)
from msdlosses._linear import LOGITS, Logits, class_axis_last
from msdlosses._masks import mean_over_valid, reduce_mask, unsqueeze_right, zero_invalid
from msdlosses._views import FULL, map_views, opposite, view_names
from msdlosses.weighting._base import Weighting
from msdlosses.weighting._teacher import valid_by_view, valid_full

Views = Mapping[str, Logits]


class SaliencyWeighting(Weighting, FittedBuffers):
    r"""Larger weights for views without which the teacher's prediction moves further.

    .. math:: w_{nm} = \tanh(\alpha s_{nm}), \quad w_{n,\mathrm{full}} = 1

    with the saliency s of `modality_saliency`. Where the saliency of a sample is not known, because
    a view that it needs is not valid, the weight is the mean over the samples of the batch for
    which it is known, or 1 if there are none.

    Args:
        alpha: how fast the weight saturates, above 0.
        population: use the same weights for all samples: the mean over the data, computed once by
            `fit`.
        per_position: weight each position of a sequence by its saliency, and not each sample by
            its mean.
        divergence: the distance between two predictions: a `DistillationLoss`, or a function
            ``(student, teacher) -> values`` that does not reduce. None is the KL divergence at
            temperature 1. Use `MultiLabelKDLoss` for multi-label targets.

    Shape:
        Returns (N, K), in [0, 1]; (K,) with ``population``; (N, ..., K) with ``per_position``.

    Raises:
        TypeError: ``alpha`` is not a number, or ``divergence`` is not callable.
        ValueError: ``alpha`` is not positive, ``population`` and ``per_position`` are both set, or
            the ``dim`` of the ``divergence`` is not -1.
        KeyError: when called, the teacher lacks a view; with three modalities or more it needs
            ``~image`` and its counterparts.
        RuntimeError: ``population`` is set but `fit` was not called.

    Example:
        >>> teacher = {"full": torch.eye(2), "image": torch.eye(2), "text": torch.zeros(2, 2)}
        >>> weighting = SaliencyWeighting(alpha=1.0)
        >>> weights = weighting(torch.zeros(2, 3), teacher, names=("full", "image", "text"))
        >>> [round(weight, 2) for weight in weights[0].tolist()]
        [1.0, 0.11, 0.0]

    Source: [paper] "saliency-based weighting schemes"; tanh and alpha: [ours].
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        population: bool = False,
        per_position: bool = False,
        divergence: Divergence | None = None,
    ) -> None:
        super().__init__()
        check_number("alpha", alpha, "(0, inf)")
        check_divergence(divergence, last=True)
        both = population and per_position
        check_that("`population` or `per_position`", not both, "both")
        self.alpha = alpha
        self.population = population
        self.per_position = per_position
        self.divergence = divergence

    def fit(
        self,
        teacher: Views | Iterable[Views],
        *,
        valid: Tensor | Iterable[Tensor] | None = None,
        dim: int = -1,
    ) -> SaliencyWeighting:
        """Compute the mean weight of each view over the data, for ``population=True``.

        Args:
            teacher: the teacher's logits by view, of all samples or batch by batch.
            valid: which samples, or positions, are valid in which of the teacher's views, in
                their order: (N, K) or (N, ..., K), or one such mask per batch. A sample whose
                saliency is not known is left out of the mean of the view.
            dim: the class axis of the logits, as in the criterion.

        Raises:
            TypeError: ``teacher`` is neither a mapping from views to logits nor an iterable of
                such, or masks are not boolean.
            ValueError: there are no samples, or masks do not fit or are not one per batch.
            KeyError: the view ``full`` is missing.
        """
        totals: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for views, mask in _batches(teacher, valid):
            masks = valid_by_view(mask, view_names(views))
            last = map_views(lambda _, logits: class_axis_last(logits, dim), views)
            for view in views_with_saliency(last):
                weights, known = self._weights(last, view, masks)
                if known is None:
                    known = torch.ones_like(weights, dtype=torch.bool)
                totals[view] = totals.get(view, 0) + zero_invalid(weights.double(), known).sum()
                counts[view] = counts.get(view, 0) + known.sum()
        check_that("samples to fit SaliencyWeighting to", any(counts.values()))
        means = {view: totals[view] / count for view, count in counts.items() if count}
        self.set_fitted({view: mean.float() for view, mean in means.items()})
        return self

    def forward(
        self,
        terms: Tensor,
        teacher: Views,
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        if self.population:
            return torch.stack([self.get_fitted(view) for view in names]).to(terms)
        masks = valid_by_view(valid, names)
        columns = []
        for view in names:
            weights, known = self._weights(teacher, view, masks)
            # The weights of the full view are all 1.
            columns.append(weights if view == FULL else _fill_unknown(weights, known))
        return torch.stack(columns, dim=-1).to(terms.dtype)

    def _weights(
        self, teacher: Views, view: str, masks: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the weight of each sample or position, and where its saliency is known.

        None is everywhere.
        """
        known = _both_valid(teacher, view, masks)
        if view == FULL:
            logits = get_view(teacher, view)
            shape = logits.shape[:-1] if self.per_position else logits.shape[:1]
            weights = torch.ones(shape, device=logits.device)
        else:
            saliency = view_saliency(teacher, view, self.divergence)
            if not self.per_position:
                saliency = mean_over_valid(saliency, known)
            weights = torch.tanh(self.alpha * saliency).detach()
        return weights, None if known is None else reduce_mask(known, weights.ndim)

    def extra_repr(self) -> str:
        per_position = ", per_position=True" if self.per_position else ""
        return f"alpha={self.alpha}, population={self.population}{per_position}"


def _fill_unknown(weights: Tensor, known: Tensor | None) -> Tensor:
    """Replace weights that are not known by the mean of those that are, or by 1."""
    if known is None:
        return weights
    known = unsqueeze_right(known, weights.ndim).expand_as(weights)
    count = known.sum()
    mean = zero_invalid(weights, known).sum() / count.clamp(min=1)
    return torch.where(known, weights, torch.where(count > 0, mean, 1.0))


def _both_valid(teacher: Views, view: str, masks: Mapping[str, Tensor]) -> Tensor | None:
    """Return where both predictions that a saliency compares are valid; None for everywhere."""
    full = valid_full(masks)
    return None if full is None else full & masks.get(opposite(view, teacher), full)


def _batches(
    teacher: Views | Iterable[Views], valid: Tensor | Iterable[Tensor] | None
) -> Iterator[tuple[Views, Tensor | None]]:
    """Yield views and their masks, batch by batch."""
    if isinstance(teacher, Mapping):
        teacher, valid = [teacher], None if valid is None else [cast(Tensor, valid)]
    check_type("teacher", teacher, Iterable, "a mapping, or an iterable of mappings")
    if isinstance(valid, Tensor) or not isinstance(valid, Iterable | None):
        raise TypeError(expected("`valid` to be one mask per batch", describe(valid)))
    for views, mask in zip_longest(teacher, () if valid is None else valid):
        check_that("one mask in `valid` per batch", views is not None, "more masks than batches")
        check_views("teacher", views, LOGITS)
        if valid is not None:
            check_grid("valid", mask, view_names(views))
        yield views, mask
