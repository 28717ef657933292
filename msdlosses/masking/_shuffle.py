"""A masker that replaces a modality by that of another sample."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import check_that
from msdlosses.masking._masker import EntryMasker, Keep


class Shuffle(EntryMasker):
    """Replace a modality by that of another sample.

    Each sample gets the entries of the previous sample in the batch, so that teacher and student
    see the same view if they get the same batch. `TeacherCache.build` refuses this masker, because
    a cache cannot know the student's batches.

    Args:
        entries: the modality's entries, which move together.
        keep: positions to keep, as in `Fill`.

    Shape:
        Takes a batch and returns a batch of the same shapes.

    Raises:
        ValueError: the batch has only one sample.
        KeyError: the batch has no such entry.

    Example:
        >>> Shuffle("pixels")({"pixels": torch.tensor([[1.0], [2.0], [3.0]])})["pixels"].tolist()
        [[3.0], [1.0], [2.0]]

    Source: [ours].
    """

    depends_on_input = moves_samples = needs_axis_0 = True

    def __init__(self, *entries: str, keep: Keep | None = None) -> None:
        super().__init__(entries, keep)

    def absent(self, name: str, entry: Tensor) -> Tensor:
        check_that(f"at least two samples to shuffle `{name}`", len(entry) != 1, 1)
        return entry.roll(1, 0)
