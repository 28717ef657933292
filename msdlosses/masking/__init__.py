"""Views of a multimodal batch: the whole input, and the input without some modalities.

A masker, a callable ``batch -> batch``, defines what an absent modality looks like. `ModalityViews`
combines one masker per modality and runs a model on every view.
"""

from msdlosses.masking._downsample import Downsample
from msdlosses.masking._dropout import ModalityDropout
from msdlosses.masking._fill import Fill, LearnedFill
from msdlosses.masking._mean_fill import MeanFill
from msdlosses.masking._shuffle import Shuffle
from msdlosses.masking._views import ModalityViews

__all__ = [
    "Downsample",
    "Fill",
    "LearnedFill",
    "MeanFill",
    "ModalityDropout",
    "ModalityViews",
    "Shuffle",
]
