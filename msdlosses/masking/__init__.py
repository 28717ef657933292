"""Views of a multimodal batch: the whole input, and the input with modalities taken away.

What "absent" looks like is a masker's business, one per modality: a callable `batch -> batch`.
`ModalityViews` puts the maskers together and runs a model on every view.
"""

from msdlosses.masking._maskers import Fill, LearnedFill, MeanFill, Shuffle
from msdlosses.masking._views import ModalityDropout, ModalityViews

__all__ = ["Fill", "LearnedFill", "MeanFill", "ModalityDropout", "ModalityViews", "Shuffle"]
