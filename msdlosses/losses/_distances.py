"""Squared distances between a student's and a teacher's logits or features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msdlosses._checks import check_pair, check_that, check_type, expected
from msdlosses._formulas.distances import hint, logit_mse
from msdlosses._formulas.logits import upcast, upcast_pair
from msdlosses._torch import BatchNorm
from msdlosses.losses._base import DistillationLoss


class LogitMSELoss(DistillationLoss):
    r"""Squared Euclidean distance of the logits, summed over the classes.

    See `functional.logit_mse_loss` for the formula.

    Args:
        dim: the class axis.
        ignore_index, reduction, chunk_size: as in `DistillationLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), with the classes at ``dim``.

    Raises:
        TypeError, ValueError: as for `DistillationLoss`.

    Example:
        >>> loss = LogitMSELoss()
        >>> loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(5.)

    Source: [built on] Ba and Caruana 2014, arXiv 1312.6184, equation 1, without the factor 1/2.
    """

    # The signature of the base class, here for error messages that name this class.
    def __init__(
        self,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
        reduction: str = "mean",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(
            dim=dim, ignore_index=ignore_index, reduction=reduction, chunk_size=chunk_size
        )

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return logit_mse(student, teacher, dim=self.dim)


class HintLoss(DistillationLoss):
    r"""Half the squared distance between the teacher's features and the projected student's.

    See `functional.hint_loss` for the formula.

    Args:
        projection: a module that maps the student's features to the teacher's width, such as
            ``nn.Linear(64, 768)``; None if the widths agree. It is trained with the student: pass
            the parameters of this loss to the optimizer as well.
        dim: the feature axis.
        ignore_index, reduction: as in `DistillationLoss`.

    Shape:
        ``student``: (N, ..., D), ``teacher``: (N, ..., D'), with the features at ``dim``.

    If the projection normalizes by batch statistics, it gets only the valid samples. On a GPU this
    waits for the mask.

    Raises:
        TypeError: ``projection`` is not a module, or features are not floating-point tensors, or
            of another precision than the projection.
        ValueError: shapes differ after the projection, or devices differ; positions are masked and
            the projection has a BatchNorm.

    Example:
        >>> loss = HintLoss(nn.Linear(2, 3))
        >>> loss(torch.zeros(4, 2), torch.zeros(4, 3)).shape
        torch.Size([])

    Source: [built on] Romero et al. 2015, arXiv 1412.6550, equation 3.
    """

    def __init__(
        self,
        projection: nn.Module | None = None,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim=dim, ignore_index=ignore_index, reduction=reduction)
        check_type("projection", projection, (nn.Module, type(None)), "a module")
        self.projection = projection
        self.same_width = projection is None

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        if self.projection is not None:
            student = _match_precision(student, self.projection)
            if valid is not None and _uses_batch_statistics(self.projection):
                return self._of_valid_samples(student, teacher, valid)
            student = self.projection(student)
        return self._hint(student, teacher)

    def _check_linear(self) -> None:
        super()._check_linear()
        batch = self.projection is not None and _uses_batch_statistics(self.projection)
        what, advice = (
            "tensors for a projection with BatchNorm",
            "Compute them by `.materialize()`.",
        )
        check_that(what, not batch, "LinearLogits", advice)

    def _hint(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.projection is not None:
            check_pair(student, teacher, dim=self.dim)
        return hint(*upcast_pair(student, teacher), dim=self.dim)

    def _of_valid_samples(self, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        """Project only valid samples, so that no others enter the statistics of the batch."""
        assert self.projection is not None
        if valid.ndim > 1:
            what = "`valid` or targets with one value per sample, for a projection with BatchNorm"
            advice = "Flatten the positions into the batch axis first."
            raise ValueError(expected(what, tuple(valid.shape), advice))
        if not valid.any():  # a zero that is joined to the graph
            zero = sum(parameter.sum() for parameter in self.projection.parameters()) * 0.0
            return student.sum(self.dim) * 0.0 + zero
        values = self._hint(self.projection(student[valid]), teacher[valid])
        return values.new_zeros(len(valid), *values.shape[1:]).index_put((valid,), values)


def _match_precision(features: Tensor, projection: nn.Module) -> Tensor:
    """Cast half-precision features to the float32 of a projection, as logits are cast."""
    dtype = next((p.dtype for p in projection.parameters() if p.is_floating_point()), None)
    if dtype in (None, features.dtype) or torch.is_autocast_enabled(features.device.type):
        return features
    if upcast(features).dtype != dtype:
        what = f"`student` in {dtype} or half precision, like the projection"
        raise TypeError(expected(what, features.dtype, "Cast the features or the projection."))
    return upcast(features)


def _uses_batch_statistics(projection: nn.Module) -> bool:
    return any(isinstance(m, BatchNorm) and m.training for m in projection.modules())
