"""How much each view of each sample counts in the distillation loss.

A weighting is called with the terms, one per sample and view, and the teacher's logits, and
answers with weights of shape (N, K), or (K,) for all samples alike. The views are on the last
axis, in the order of `names`. Weights carry a gradient only where they are learned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msdlosses._checks import (
    check_callable,
    check_number,
    check_size,
    check_views,
    describe,
    listing,
)
from msdlosses._fitted import FittedBuffers
from msdlosses.functional import (
    FULL,
    Divergence,
    divergence_rows,
    kl_divergence,
    known_saliencies,
    opposite,
    per_sample,
    view_saliency,
    widen,
)

__all__ = [
    "FixedWeighting",
    "SaliencyWeighting",
    "TeacherLossWeighting",
    "WeightNet",
    "Weighting",
]

TaskLoss = Callable[[Tensor, Tensor], Tensor]


class Weighting(nn.Module, ABC):
    """Gives each view of each sample a weight.

    A subclass writes `forward`. What it learns or measures is kept in parameters and buffers, so
    that it is saved, moved and compiled with the model.
    """

    @abstractmethod
    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        """The weights of the terms.

        Args:
            terms: the losses, views on the last axis.
            teacher: its logits by view; views beyond `names` are cues.
            target: the labels.
            names: the views of the terms, in their order.
            valid: which entries of `terms` count. The weights of others are never used.

        Shape:
            ``terms`` and ``valid``: (N, K). Returns (N, K), or (K,) for all samples alike.
        """

    def penalty(self) -> Tensor | float:
        """What the scheme adds to the loss, such as the price of a learned uncertainty."""
        return 0.0


class FixedWeighting(Weighting):
    """One weight per view, set by hand or searched.

    Args:
        by_view: view -> weight. ``FixedWeighting(**{"full": 1, "~image": 0.5})`` for names that
            Python does not take as keywords.

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
            check_number(view, weight)
            if weight < 0:
                raise ValueError(f"Expected `{view}` to be 0 or more, got {weight}.")
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
        if set(names) != set(self.names):
            raise KeyError(
                f"Expected a weight for each of {listing(names)}, got {listing(self.names)}."
            )
        if tuple(names) == self.names:
            return self.weights
        return torch.stack([self.weights[self.names.index(view)] for view in names])

    def extra_repr(self) -> str:
        return ", ".join(self.names)


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
        _check_divergence(divergence)
        self.alpha = alpha
        self.population = population
        self.divergence = divergence

    def fit(
        self, teacher: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]]
    ) -> SaliencyWeighting:
        """Take the mean weight of each view over the data, for `population=True`.

        Args:
            teacher: the teacher's logits by view, of all samples or batch by batch.

        Raises:
            TypeError: no mapping of views to logits, and no batches of such.
            ValueError: no samples.
            KeyError: no view ``full``.
        """
        totals: dict[str, Tensor] = {}
        count = 0
        if not isinstance(teacher, Iterable):
            raise TypeError(
                f"Expected `teacher` to be a mapping, or several, got {describe(teacher)}."
            )
        for views in [teacher] if isinstance(teacher, Mapping) else teacher:
            check_views("teacher", views)
            for view in known_saliencies(views):
                totals[view] = totals.get(view, 0) + self._weight(views, view).double().sum()
            count += len(next(iter(views.values())))
        if not count:
            raise ValueError("Expected samples to fit SaliencyWeighting to, got none.")
        self.set_fitted({view: (total / count).float() for view, total in totals.items()})
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
        columns = [self._weight(teacher, view) for view in names]
        weights = torch.stack(columns, dim=-1).to(terms.dtype)
        if valid is None:
            return weights
        return weights.masked_fill(~self._known(valid, names), 1.0)

    def _weight(self, teacher: Mapping[str, Tensor], view: str) -> Tensor:
        if view == FULL:
            logits = _view(teacher, view)
            return logits.new_ones(len(logits))
        saliency = view_saliency(teacher, view, divergence=self.divergence)
        return torch.tanh(self.alpha * per_sample(saliency)).detach()

    def _known(self, valid: Tensor, names: Sequence[str]) -> Tensor:
        """Whether the two predictions that a saliency compares are valid."""
        columns = dict(zip(names, valid.unbind(-1), strict=True))
        whole = columns.get(FULL, valid.all(-1))
        return torch.stack([whole & columns.get(opposite(v, names), whole) for v in names], -1)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, population={self.population}"


class TeacherLossWeighting(Weighting):
    r"""A view on which the teacher is wrong counts less.

    .. math:: w_{nv} = \exp\bigl(-\alpha\, \mathrm{CE}(T(x_n^v), y_n)\bigr)

    Args:
        alpha: how strongly the teacher's loss is held against it, above 0.
        task_loss: unreduced, ``(logits, target) -> (N, ...)``; cross entropy by default. For
            multi-label targets take ``binary_cross_entropy_with_logits`` summed over classes.

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
        self.task_loss = _checked(task_loss)

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        if target is None:
            raise ValueError("Expected a `target` for TeacherLossWeighting, got None.")
        columns = [_task_loss(self.task_loss, teacher, view, target) for view in names]
        return torch.exp(-self.alpha * torch.stack(columns, dim=-1)).to(terms.dtype)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class WeightNet(Weighting):
    """Weights learned from what the teacher says of a sample, by a `MetaLearner`.

    A small network, Linear-ReLU-Linear and a sigmoid, turns cues into one weight per view. For
    each view the cues are the detached term, the teacher's loss on the target (0 without one),
    how sure the teacher is (the divergence from a flat prediction), and how far its prediction
    is from the one on the whole input (with two modalities these are the saliencies). They are
    divided by log C and squeezed by log(1 + x), so that their size depends on neither.

    Args:
        names: the views of the terms, such as ``views.names``.
        num_classes: C, the length of the teacher's logits.
        hidden: width of the hidden layer.
        normalize: divide by the mean over the batch. Without it the weights drift towards 0 over
            thousands of steps, and the learning rate with them.
        divergence: how far two predictions are apart, as in `SaliencyWeighting`.
        task_loss: unreduced, as in `TeacherLossWeighting`.

    Shape:
        Returns (N, K), in [0, 1], or around 1 when normalised.

    Raises:
        TypeError: names that are one string, sizes that are no integers, ``divergence`` or
            ``task_loss`` not callable.
        ValueError: no names, sizes that are not above 0; when called, other names or another
            number of classes.
        KeyError: when called, the teacher lacks a view, or ``full``.

    Example:
        >>> views = ("full", "image", "text")
        >>> weighting = WeightNet(views, num_classes=5)
        >>> teacher = {view: torch.randn(4, 5) for view in views}
        >>> weighting(torch.rand(4, 3), teacher, names=views).shape
        torch.Size([4, 3])

    Source: [paper] "a meta-learning approach to learn the optimal weights"; the form: [built on]
    Meta-Weight-Net (Shu et al. 2019, arXiv 1902.07379); the cues: [ours].
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        num_classes: int,
        hidden: int = 100,
        normalize: bool = True,
        divergence: Divergence = kl_divergence,
        task_loss: TaskLoss | None = None,
    ) -> None:
        super().__init__()
        if isinstance(names, str):
            raise TypeError(f"Expected `names` to be a sequence of views, got {describe(names)}.")
        if not names:
            raise ValueError("Expected `names` to hold at least one view, got none.")
        check_size("num_classes", num_classes)
        check_size("hidden", hidden)
        _check_divergence(divergence)
        self.names = tuple(names)
        self.num_classes = num_classes
        self.normalize = normalize
        self.divergence = divergence
        self.task_loss = _checked(task_loss)
        self.network = nn.Sequential(
            nn.Linear(4 * len(self.names), hidden), nn.ReLU(), nn.Linear(hidden, len(self.names))
        )

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        if tuple(names) != self.names:
            raise ValueError(f"Expected `names` to be {listing(self.names)}, got {listing(names)}.")
        cues = self.cues(terms, teacher, target)
        if valid is not None:  # a lacking modality may be NaN: keep it from the network's gradient
            cues = cues.masked_fill(~self._known(valid), 0.0)
        weights = torch.sigmoid(self.network(cues.flatten(1))).to(terms.dtype)
        return weights / _mean(weights, valid) if self.normalize else weights

    def cues(
        self, terms: Tensor, teacher: Mapping[str, Tensor], target: Tensor | None = None
    ) -> Tensor:
        """What the network sees: (N, K, 4), without gradient."""
        whole = _view(teacher, FULL)
        columns = []
        for view, term in zip(self.names, terms.unbind(-1), strict=True):
            logits = _view(teacher, view)
            if logits.shape[-1] != self.num_classes:
                raise ValueError(
                    f"Expected `teacher[{view!r}]` of {self.num_classes} classes, "
                    f"got {logits.shape[-1]}."
                )
            loss = (
                torch.zeros_like(term)
                if target is None
                else _task_loss(self.task_loss, teacher, view, target)
            )
            sure = per_sample(divergence_rows(self.divergence, torch.zeros_like(logits), logits))
            apart = per_sample(divergence_rows(self.divergence, logits, whole))
            columns.append(torch.stack([term.detach(), loss, sure, apart], dim=-1))
        cues = torch.stack(columns, dim=1) / log(max(self.num_classes, 2))
        parameter = next(self.network.parameters())
        return torch.log1p(cues.clamp(min=0)).to(parameter.dtype)

    def _known(self, valid: Tensor) -> Tensor:
        """Which cues are: all of a valid view, but the last one needs the whole input too."""
        whole = valid[:, self.names.index(FULL)] if FULL in self.names else valid.all(-1)
        return torch.stack([valid, valid, valid, valid & whole.unsqueeze(-1)], dim=-1)

    def extra_repr(self) -> str:
        return f"names={self.names}, num_classes={self.num_classes}, normalize={self.normalize}"


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy per position, the classes on the last axis."""
    if not isinstance(target, Tensor) or target.dtype not in (torch.long, torch.uint8):
        raise TypeError(
            f"Expected `target` to be a tensor of class indices, got {describe(target)}. "
            "Set `task_loss` for other targets."
        )
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"Expected `target` of shape {tuple(logits.shape[:-1])}, got {tuple(target.shape)}."
        )
    rows = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    return rows.reshape(logits.shape[:-1])


def _task_loss(
    task_loss: TaskLoss, teacher: Mapping[str, Tensor], view: str, target: Tensor
) -> Tensor:
    logits = _view(teacher, view)
    rows = task_loss(logits, target)
    if not isinstance(rows, Tensor) or rows.ndim == 0 or len(rows) != len(logits):
        raise ValueError(
            f"Expected `task_loss` to give one value for each of {len(logits)} samples, "
            f"got {describe(rows)}. Set its reduction to 'none'."
        )
    return per_sample(rows).detach()


def _view(teacher: Mapping[str, Tensor], view: str) -> Tensor:
    if view not in teacher:
        raise KeyError(f"Expected `teacher` to hold the view `{view}`, got {listing(teacher)}.")
    return widen(teacher[view].detach())


def _mean(weights: Tensor, valid: Tensor | None) -> Tensor:
    """The mean of the weights that count, never so small that dividing by it gives NaN."""
    if valid is None:
        mean = weights.sum() / max(weights.numel(), 1)
    else:
        mean = weights.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)
    return mean.clamp(min=1e-12)


def _check_divergence(divergence: object) -> None:
    check_callable("divergence", getattr(divergence, "rows", divergence))


def _checked(task_loss: TaskLoss | None) -> TaskLoss:
    if task_loss is None:
        return cross_entropy
    check_callable("task_loss", task_loss)
    return task_loss
