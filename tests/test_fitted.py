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


def make_masker() -> MeanFill:
    return MeanFill("x")


def test_loaded_buffers_keep_the_dtype_and_shape_of_the_module() -> None:
    fitted = make_masker()
    fitted.fit([{"x": torch.tensor([[1.0], [2.0]])}])
    state = {key: value.double() for key, value in fitted.state_dict().items()}
    for module, dtype in ((make_masker(), torch.float32), (make_masker().half(), torch.float16)):
        module.load_state_dict(state)
        (buffer,) = module.state_dict().values()
        assert buffer.dtype == dtype
        assert buffer.tolist() == [1.5]


def test_loaded_buffers_stay_on_the_device_of_the_module() -> None:
    fitted = make_masker()
    fitted.fit([{"x": torch.tensor([[1.0], [2.0]])}])
    module = make_masker().to("meta")
    with pytest.warns(UserWarning, match="no-op"):  # there are no values on the meta device
        module.load_state_dict(fitted.state_dict())
    assert all(buffer.device.type == "meta" for buffer in module.state_dict().values())
    other = make_masker()
    other.load_state_dict({key: torch.ones(1) for key in fitted.state_dict()})
    other.fit([{"x": torch.tensor([[1.0], [3.0]])}])
    assert [buffer.tolist() for buffer in other.state_dict().values()] == [[2.0]]
