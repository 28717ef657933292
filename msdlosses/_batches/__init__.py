"""Nested batches, and which parts of them belong to which sample.

Mappings, dataclasses, named tuples, and lists and tuples that hold tensors are containers. The name
of an entry is its path in the batch, joined by dots, such as `text.tokens`. Each entry is one of:

- a tensor with at least one axis: one sample per index of axis 0, or of its `batch_axis`;
- a ragged tensor: several rows of axis 0 per sample, as many as its counts say;
- a list or tuple with as many values as there are samples: one value per sample;
- a constant, which is everything else: the same for all samples, and copied for each view;
- shared: named as such, and passed on as the object that it is.
"""

from msdlosses._batches._combine import select, stack
from msdlosses._batches._containers import Batch, map_entries
from msdlosses._batches._layout import Kind, Layout, Rules
from msdlosses._batches._names import batched_tensors, covering, drop_entries, lookup, replace
from msdlosses._batches._own import move, own_entries, restore_constants

__all__ = [
    "Batch",
    "Kind",
    "Layout",
    "Rules",
    "batched_tensors",
    "covering",
    "drop_entries",
    "lookup",
    "map_entries",
    "move",
    "own_entries",
    "replace",
    "restore_constants",
    "select",
    "stack",
]
