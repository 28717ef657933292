"""Weights of each sample by what the teacher says of it: its saliencies, and its losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import cast

import torch
from torch import Tensor

from msdlosses._checks import (
    check_given,
    check_grid,
    check_number,
    check_views,
    describe,
)
from msdlosses._fitted import FittedBuffers
from msdlosses.functional import FULL, kl_divergence
from msdlosses.functional._rows import known_per_sample
from msdlosses.functional._saliency import (
    Divergence,
    check_divergence,
    known_saliencies,
    opposite,
    view_saliency,
)
from msdlosses.weighting._base import (
    TaskLoss,
    Weighting,
    checked_task_loss,
    columns_of,
    teacher_loss,
    view_of,
    whole_of,
)


class SaliencyWeighting(Weighting, FittedBuffers):
    r"""A view counts as much as the teacher's prediction moves when what it shows is taken away.

    .. math:: w_{nm} = \tanh(\alpha s_{nm}), \quad w_{n,\mathrm{full}} = 1

    with the saliency s of `modality_saliency`. A sample whose saliency is not known, because a
    view that it needs is not valid, has weight 1.

    Args:
        alpha: how soon the weight saturates, above 0.
        population: weigh all samples alike, by the mean of their weights over the data, which
            `fit` takes once.
        divergence: how far two predictions are apart: a `DistillationLoss`, or a function
            ``(student, teacher) -> rows``. Take `MultiLabelKDLoss` for multi-label targets.

    Shape:
        Returns (N, K), in [0, 1]; of the population (K,).

    Raises:
        TypeError: ``alpha`` is no number, ``divergence`` not callable.
        ValueError: ``alpha`` is not above 0.
        KeyError: when called, the teacher lacks a view; with three modalities or more it needs
            ``~image`` and its like.
        RuntimeError: ``population`` without `fit`.

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
        divergence: Divergence = kl_divergence,
    ) -> None:
        super().__init__()
        check_number("alpha", alpha, above=0)
        check_divergence(divergence)
        self.alpha = alpha
        self.population = population
        self.divergence = divergence

    def fit(
        self,
        teacher: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]],
        *,
        valid: Tensor | Iterable[Tensor] | None = None,
    ) -> SaliencyWeighting:
        """Take the mean weight of each view over the data, for `population=True`.

        Args:
            teacher: the teacher's logits by view, of all samples or batch by batch.
            valid: which samples, or positions, count in which of the teacher's views, in their
                order: (N, K) or (N, ..., K), or one such mask for each batch. A sample whose
                saliency is not known is left out of the view's mean.

        Raises:
            TypeError: no mapping of views to logits, and no batches of such; masks that are not
                boolean.
            ValueError: no samples; masks that do not fit, or not one for each batch.
            KeyError: no view ``full``.
        """
        totals: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for views, mask in _batches(teacher, valid):
            columns = columns_of(mask, tuple(views))
            for view in known_saliencies(views):
                weights, known = self._weights(views, view, columns)
                totals[view] = totals.get(view, 0) + weights.double().masked_fill(~known, 0.0).sum()
                counts[view] = counts.get(view, 0) + known.sum()
        if not any(counts.values()):
            raise ValueError("Expected samples to fit SaliencyWeighting to, got none.")
        seen = [view for view, count in counts.items() if count]
        self.set_fitted({view: (totals[view] / counts[view]).float() for view in seen})
        return self

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        if self.population:
            return torch.stack([self.get_fitted(view) for view in names]).to(terms)
        columns = columns_of(valid, names)
        weights = []
        for view in names:
            weight, known = self._weights(teacher, view, columns)
            weights.append(weight if valid is None else weight.masked_fill(~known, 1.0))
        return torch.stack(weights, dim=-1).to(terms.dtype)

    def _weights(
        self, teacher: Mapping[str, Tensor], view: str, columns: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Of each sample, and whether its saliency is known: (N,) and (N,)."""
        known = _both_known(view, columns)
        if view == FULL:
            weights = view_of(teacher, view).new_ones(len(teacher[view]))
        else:
            saliency = view_saliency(teacher, view, divergence=self.divergence)
            weights = torch.tanh(self.alpha * known_per_sample(saliency, known)).detach()
        if known is None:
            return weights, torch.ones_like(weights, dtype=torch.bool)
        return weights, known if known.ndim == 1 else known.flatten(1).any(1)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, population={self.population}"


class TeacherLossWeighting(Weighting):
    r"""A view on which the teacher is wrong counts less.

    .. math:: w_{nv} = \exp\bigl(-\alpha\, \mathrm{CE}(T(x_n^v), y_n)\bigr)

    Args:
        alpha: how strongly the teacher's loss is held against it, above 0.
        task_loss: unreduced, ``(logits, target) -> (N, ...)``; `functional.cross_entropy` by
            default. For multi-label targets and soft scores, `functional.multilabel_cross_entropy`.

    Shape:
        Returns (N, K), in [0, 1].

    Raises:
        TypeError: ``alpha`` is no number, ``task_loss`` not callable; when called, targets that
            are no class indices, without a task loss of their own.
        ValueError: ``alpha`` is not above 0; when called, no ``target`` or one that does not
            fit, or a task loss that does not give one value per sample.
        KeyError: when called, the teacher lacks a view.

    Example:
        >>> teacher = {"full": torch.tensor([[9.0, 0.0]]), "text": torch.tensor([[0.0, 0.0]])}
        >>> weighting = TeacherLossWeighting(alpha=1.0)
        >>> weights = weighting(torch.zeros(1, 2), teacher, torch.tensor([0]), names=tuple(teacher))
        >>> [round(w, 2) for w in weights[0].tolist()]
        [1.0, 0.5]

    Source: [paper] "each modality has different importance"; the form: [ours].
    """

    def __init__(self, alpha: float = 1.0, *, task_loss: TaskLoss | None = None) -> None:
        super().__init__()
        check_number("alpha", alpha, above=0)
        self.alpha = alpha
        self.task_loss = checked_task_loss(task_loss)

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        target = check_given("target", target, self)
        columns = columns_of(valid, names)
        losses = [
            teacher_loss(self.task_loss, teacher, view, target, columns.get(view)) for view in names
        ]
        return torch.exp(-self.alpha * torch.stack(losses, dim=-1)).to(terms.dtype)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


def _batches(
    teacher: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]],
    valid: Tensor | Iterable[Tensor] | None,
) -> Iterator[tuple[Mapping[str, Tensor], Tensor | None]]:
    """Views and what counts in them, batch by batch."""
    if isinstance(teacher, Mapping):
        teacher, valid = [teacher], None if valid is None else [cast(Tensor, valid)]
    if not isinstance(teacher, Iterable):
        raise TypeError(f"Expected `teacher` to be a mapping, or several, got {describe(teacher)}.")
    if isinstance(valid, Tensor) or not isinstance(valid, Iterable | None):
        raise TypeError(f"Expected `valid` to be a mask for each batch, got {describe(valid)}.")
    for views, mask in zip_longest(teacher, () if valid is None else valid):
        if views is None:
            raise ValueError("Expected one mask in `valid` for each batch, got more.")
        check_views("teacher", views)
        if valid is not None:
            check_grid("valid", mask, tuple(views))
        yield views, mask


def _both_known(view: str, columns: Mapping[str, Tensor]) -> Tensor | None:
    """Where the two predictions that a saliency compares are valid; None where all are."""
    whole = whole_of(columns)
    return None if whole is None else whole & columns.get(opposite(view, columns), whole)
