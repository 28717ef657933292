"""A masker that degrades images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from msdlosses._checks import check_floating, check_integer, expected
from msdlosses.masking._masker import EntryMasker, memory_format


class Downsample(EntryMasker):
    """Degrade images by average pooling, and enlarge them to their old size.

    The evidence becomes weaker instead of absent, and the number of image tokens does not change.

    Args:
        entries: the modality's images.
        factor: each block of ``factor`` x ``factor`` pixels is replaced by its mean. The blocks at
            the bottom and right edges are smaller where ``factor`` does not divide H or W.

    Shape:
        Entries: (N, ..., H, W), floating-point. Returns a batch of the same shapes.

    Raises:
        TypeError: ``factor`` is not an integer, or an entry is not floating-point.
        ValueError: ``factor`` is less than 2, there is no entry, or an entry has fewer than three
            axes, such as packed patches. Degrade those images before the processor.
        KeyError: the batch has no such entry.

    Example:
        >>> Downsample("pixels", factor=2)({"pixels": torch.tensor([[[1.0, 3.0, 5.0]]])})
        {'pixels': tensor([[[2., 2., 5.]]])}

    Source: [ours].
    """

    depends_on_input = True

    def __init__(self, *entries: str, factor: int) -> None:
        super().__init__(entries)
        check_integer("factor", factor, least=2)
        self.factor = factor

    def absent(self, name: str, entry: Tensor) -> Tensor:
        check_floating(name, entry)
        if entry.ndim < 3:
            advice = "Degrade images that are packed into patches before the processor."
            what = f"images `{name}` of shape (N, ..., H, W)"
            raise ValueError(expected(what, tuple(entry.shape), advice))
        if not entry.numel():
            return entry.clone()
        images = entry.unsqueeze(1) if entry.ndim == 3 else entry.flatten(1, -3)
        height, width = entry.shape[-2:]
        pooled = F.avg_pool2d(images, self.factor, ceil_mode=True)
        enlarged = pooled.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)
        cropped = enlarged[..., :height, :width].reshape(entry.shape)
        return cropped.contiguous(memory_format=memory_format(entry))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, factor={self.factor}"
