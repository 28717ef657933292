"""Buffers that a module gets from data."""

from __future__ import annotations

import pytest
import torch
from multimodal import assert_raises, make_batch, to_lists

from msdlosses import MeanFill, ModalityViews


@pytest.mark.parametrize("strict", [True, False])
def test_state_dict_restores_fitted_buffers_in_a_new_module(strict: bool) -> None:
    batch = {"x": torch.rand(4, 3), "text": {"y": torch.rand(4, 2)}}

    def make() -> ModalityViews:
        keep = torch.tensor([True, False, False])
        return ModalityViews(image=MeanFill("x", keep=keep), text=MeanFill("text.y"))

    fitted = make()
    for masker in fitted.maskers.values():
        masker.fit([batch])
    loaded = make()
    loaded.load_state_dict(fitted.state_dict(), strict=strict)
    for view in fitted.names:
        assert to_lists(loaded.inputs(batch)[view]) == to_lists(fitted.inputs(batch)[view])


def test_rejects_use_before_fit() -> None:
    pattern = "MeanFill to be fitted for `pixels`, got none.* `fit`"
    assert_raises(lambda: MeanFill("pixels")(make_batch()), RuntimeError, pattern)
