"""Logits that are computed from hidden states where they are needed."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from msdlosses._checks import (
    check_floating,
    check_integer,
    check_number,
    check_that,
    expected,
    join_names,
)
from msdlosses._masks import outside_inference
from msdlosses._torch import gather_shards, uncompiled

CHUNK_SIZE = 512


@dataclass(frozen=True)
class Head:
    """A linear map to logits, without its tensors."""

    scale: float
    softcap: float | None
    classes: int

    def logits(self, hidden: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Compute logits in float32 or wider; without a weight, of the result of `linear`."""
        raw = hidden if weight is None else self.linear(hidden, weight, bias)
        logits = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap

    def linear(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the matrix in the precision of the hidden states, or of autocast."""
        dtype = _matmul_dtype(hidden)
        if bias is not None:
            bias = bias[: self.classes].to(dtype)
        return F.linear(hidden.to(dtype), weight[: self.classes].to(dtype), bias)

    def hidden_gradient(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the hidden states from that of the result of `linear`."""
        return gradient @ weight[: self.classes].to(gradient.dtype)

    def add_weight_gradient(self, total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
        """Add the gradient of the weight to a total."""
        total = total[: self.classes]
        left, right = gradient.flatten(0, -2).T, hidden.flatten(0, -2).to(gradient.dtype)
        if total.dtype == gradient.dtype:  # without a temporary as large as the weight
            total.addmm_(left, right)
        else:
            total.add_(left @ right)

    def add_bias_gradient(self, total: Tensor, gradient: Tensor) -> None:
        """Add the gradient of the bias to a total."""
        total[: self.classes].add_(gradient.flatten(0, -2).sum(0))


@dataclass(eq=False, repr=False)
class LinearLogits:
    r"""Logits that are computed from hidden states where they are needed, and never all at once.

    .. math:: z = c \tanh\bigl(s (h W^\top + b) / c\bigr)

    For vocabularies so large that the logits do not fit into memory. Every loss that compares
    predictions sample by sample takes them instead of a tensor, for the student, the teacher, or
    both. So do `MSDLoss`, all weightings, and `modality_saliency`. They compute a chunk of logits
    at a time, and compute it again in the backward pass. Gradients reach ``hidden``, ``weight``,
    and ``bias`` of the student.

    Args:
        hidden: h, the hidden states.
        weight: W, the weight of the head, such as ``model.lm_head.weight``. A sharded one
            (`DTensor`) is gathered.
        bias: b.
        scale: s, by which the logits are multiplied.
        softcap: c, above 0, which bounds the logits; None leaves them unbounded.
        classes: use only the first classes, for a head that is padded to a larger vocabulary than
            the other model's; None uses all.

    Shape:
        ``hidden``: (N, ..., D), ``weight``: (C, D), ``bias``: (C,). The logits: (N, ..., C).

    The matrix is applied in the precision of ``hidden``, or of autocast. What follows is computed
    in float32. Compiled code runs a loss of these logits uncompiled. Under `torch.func`, and in
    forward mode, chunks are computed one by one, but a later backward pass keeps all of them.

    Raises:
        TypeError: tensors are not floating-point tensors, or an option has the wrong type.
        ValueError: shapes do not fit, devices differ, ``softcap`` is not positive, or there are
            fewer classes.

    Example:
        >>> hidden, weight = torch.zeros(2, 3, 8, requires_grad=True), torch.zeros(50_000, 8)
        >>> logits = LinearLogits(hidden, weight)
        >>> logits.shape
        torch.Size([2, 3, 50000])
        >>> loss = KDLoss(temperature=2.0)(logits, logits.detach())
        >>> loss.backward()

    Source: [ours].
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = field(default=1.0, kw_only=True)
    softcap: float | None = field(default=None, kw_only=True)
    classes: int | None = field(default=None, kw_only=True)

    chunk_size = CHUNK_SIZE
    """The number of positions to compute at a time, unless a loss has a ``chunk_size``."""

    def __post_init__(self) -> None:
        check_floating("hidden", self.hidden)
        check_floating("weight", self.weight)
        if self.bias is not None:
            check_floating("bias", self.bias)
        check_number("scale", self.scale)
        if self.softcap is not None:
            check_number("softcap", self.softcap, "(0, inf)")
        self._check_fit()
        self.weight = gather_shards(self.weight)
        self.bias = None if self.bias is None else gather_shards(self.bias)

    @property
    def head(self) -> Head:
        """The linear map without its tensors."""
        return Head(self.scale, self.softcap, self.shape[-1])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the logits are computed from."""
        tensors = (self.hidden, self.weight, self.bias)
        return tuple(tensor for tensor in tensors if tensor is not None)

    @property
    def shape(self) -> torch.Size:
        """The shape of the logits."""
        classes = self.weight.shape[0] if self.classes is None else self.classes
        return torch.Size((*self.hidden.shape[:-1], classes))

    @property
    def ndim(self) -> int:
        """The number of axes of the logits."""
        return self.hidden.ndim

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the hidden states."""
        return self.hidden.dtype

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.hidden.device

    @property
    def requires_grad(self) -> bool:
        """True if any of the tensors requires a gradient."""
        return any(tensor.requires_grad for tensor in self.tensors)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> LinearLogits:
        """Select samples and positions, but not classes."""
        index = index if isinstance(index, tuple) else (index,)
        if any(entry is Ellipsis for entry in index):
            raise IndexError(expected("an index of the leading axes", "one with `...`"))
        # The last slice keeps the index away from the hidden states' own axis.
        return self.replace_hidden(self.hidden[(*index, ..., slice(None))])

    def detach(self) -> LinearLogits:
        """Return the same logits without gradient."""
        return self.map(torch.Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> LinearLogits:
        """Move or cast all tensors, as `torch.Tensor.to`."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def replace_hidden(self, hidden: Tensor) -> LinearLogits:
        """Return logits of other hidden states, by the same head."""
        replaced = copy(self)
        replaced.hidden = hidden
        return replaced

    def map(self, function: Callable[[Tensor], Tensor]) -> LinearLogits:
        """Apply a function to the hidden states, the weight, and the bias."""
        mapped = self.replace_hidden(function(self.hidden))
        mapped.weight = function(self.weight)
        mapped.bias = None if self.bias is None else function(self.bias)
        return mapped

    def materialize(self) -> Tensor:
        """Compute all logits, in float32 or wider: (N, ..., C)."""
        return self.head.logits(self.hidden, self.weight, self.bias)

    def __repr__(self) -> str:
        options = {"scale": (self.scale, 1.0), "softcap": (self.softcap, None)}
        shown = [f", {name}={value}" for name, (value, usual) in options.items() if value != usual]
        size, width = tuple(self.shape), self.hidden.shape[-1]
        return f"LinearLogits({size}, width={width}, dtype={self.dtype}{''.join(shown)})"

    def _check_fit(self) -> None:
        rows, width = self.weight.shape[:1], self.hidden.shape[-1:]
        shapes, fitting = [tuple(x.shape) for x in self.tensors], [(*rows, *width), tuple(rows)]
        what = "`hidden` (N, ..., D), `weight` (C, D), and `bias` (C,)"
        check_that(what, width and shapes[1:] == fitting[: len(shapes) - 1], shapes)
        devices = {str(x.device): x for x in self.tensors}
        check_that("all tensors on one device", len(devices) == 1, join_names(devices))
        if self.classes is not None:
            check_integer("classes", self.classes, least=1)
            check_that(f"`classes` up to {rows[0]}", self.classes <= rows[0], self.classes)


Logits = Tensor | LinearLogits
LOGITS = (Tensor, LinearLogits)


def tensors_of(logits: Logits) -> tuple[Tensor, ...]:
    """Return the tensors that logits consist of or are computed from."""
    return logits.tensors if isinstance(logits, LinearLogits) else (logits,)


def constant(logits: Logits) -> Logits:
    """Detach logits, which may have been computed in `torch.inference_mode`."""
    if isinstance(logits, LinearLogits):
        return logits.map(lambda tensor: cast(Tensor, outside_inference(tensor).detach()))
    return cast(Tensor, outside_inference(logits).detach())


def class_axis_last(logits: Logits, dim: int) -> Logits:
    """Move the class axis, which is always the last one of `LinearLogits`."""
    return logits if isinstance(logits, LinearLogits) else logits.movedim(dim, -1)


def materialize(logits: Logits) -> Tensor:
    return logits.materialize() if isinstance(logits, LinearLogits) else logits


def shared_axes(shape: torch.Size, other: Tensor | None) -> int:
    """Return how many leading axes of a shape another tensor, if there is one, has as well."""
    if other is None:
        return len(shape)
    same = [s == t for s, t in zip(shape, other.shape, strict=False)]
    return [*same, False].index(False)


def map_rows(
    function: Callable[..., Tensor], *logits: Logits, target: Tensor | None = None
) -> Tensor:
    """Apply a function that returns one value per sample or position.

    It gets plain logits, and the target if there is one: those of a chunk if any of the logits are
    `LinearLogits`.
    """
    others = () if target is None else (target,)
    if not any(isinstance(x, LinearLogits) for x in logits):
        return function(*logits, *others)
    return _map_chunks(function, logits, target)


@uncompiled
def _map_chunks(
    function: Callable[..., Tensor], logits: tuple[Logits, ...], target: Tensor | None
) -> Tensor:
    shape = logits[0].shape[:-1]
    axes = shared_axes(shape, target)
    sizes = [x.chunk_size for x in logits if isinstance(x, LinearLogits)]
    columns = [flatten_rows(x, axes) for x in (*logits, *(() if target is None else (target,)))]
    step = chunk_rows(min(sizes), shape[axes:])
    starts = range(0, max(len(columns[0]), 1), step)
    chunks = ([materialize(x[i : i + step]) for x in columns] for i in starts)
    values = torch.cat([function(*chunk) for chunk in chunks])
    return values.reshape(*shape[:axes], *values.shape[1:])


def flatten_rows(values: Logits, axes: int) -> Logits:
    """Flatten the leading axes to one."""
    if isinstance(values, LinearLogits):
        return values.replace_hidden(values.hidden.reshape(-1, *values.hidden.shape[axes:]))
    return values.reshape(-1, *values.shape[axes:])


def chunk_rows(size: int, positions: torch.Size) -> int:
    """Return how many rows of some positions each make a chunk of about a size."""
    return max(size // max(positions.numel(), 1), 1)


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """Return the precision of `hidden`, or of autocast, which leaves float64 as it is.

    The tensors are cast here, because autocast would keep its copy of the weight.
    """
    device = hidden.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return hidden.dtype
    return hidden.dtype if hidden.dtype == torch.float64 else torch.get_autocast_dtype(device)
