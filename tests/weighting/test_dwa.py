"""DynamicWeightAverage."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import in_two
from schemes import dynamic
from strategies import make_views
from torch import Tensor, distributed, nn
from torch.testing import assert_close
from torchjd.scalarization import DWA
from weights import VIEWS, msd_call

from msdlosses import DynamicWeightAverage


def test_weights_agree_with_torchjd() -> None:
    weighting, reference = DynamicWeightAverage(VIEWS, temperature=1.5), DWA(1.5)
    for _ in range(4):
        for _ in range(3):
            terms = torch.rand(4, 3)
            weights = weighting(terms, {}, names=VIEWS)
            assert_close((weights * terms.mean(0)).sum(), reference(terms.mean(0)))
        weighting.step()
        reference.step()


def test_weights_are_1_until_two_epochs_have_passed() -> None:
    weighting = DynamicWeightAverage(("full", "text"), temperature=2.0)
    for full, text in ((4.0, 4.0), (2.0, 4.0)):
        weights = weighting(torch.tensor([[full, text]]), {}, names=("full", "text"))
        assert_close(weights, torch.ones(2))
        weighting.step()
    exp_full, exp_text = math.exp(0.5 / 2), math.exp(1.0 / 2)
    expected = torch.tensor([2 * exp_text, 2 * exp_full]) / (exp_full + exp_text)
    assert_close(weighting(torch.zeros(1, 2), {}, names=("text", "full")), expected)


def test_means_ignore_invalid_and_non_finite_terms() -> None:
    weighting = DynamicWeightAverage(VIEWS)
    nan, inf = float("nan"), float("inf")
    terms = torch.tensor([[1.0, 2.0, nan], [3.0, inf, 5.0]])
    valid = torch.tensor([[True, True, False], [True, True, False]])
    weighting(terms, {}, names=VIEWS, valid=valid)
    weighting.step()
    assert_close(weighting.last, torch.tensor([2.0, 2.0, 0.0]))
    weighting(terms + 1, {}, names=VIEWS, valid=valid)
    weighting.step()
    weights = weighting(terms, {}, names=VIEWS)
    ratios = torch.tensor([1.5, 1.5, 1.0])  # the text has no valid sample
    assert_close(weights, 3 * torch.softmax(ratios / 2, 0))


def test_does_not_update_in_evaluation_mode() -> None:
    weighting = dynamic(VIEWS).eval()
    before = {name: buffer.clone() for name, buffer in weighting.state_dict().items()}
    weighting(torch.rand(4, 3), {}, names=VIEWS)
    assert_close(dict(weighting.state_dict()), before)


def test_resumes_from_a_checkpoint_within_an_epoch() -> None:
    runs = []
    for interrupted in (False, True):
        torch.manual_seed(1)
        weighting = dynamic(VIEWS)
        weighting(torch.rand(4, 3), {}, names=VIEWS)
        if interrupted:
            file = io.BytesIO()
            torch.save(weighting.state_dict(), file)
            file.seek(0)
            weighting = DynamicWeightAverage(VIEWS)
            weighting.load_state_dict(torch.load(file, weights_only=True))
        weighting(torch.rand(4, 3), {}, names=VIEWS)
        weighting.step()
        runs.append(weighting(torch.zeros(1, 3), {}, names=VIEWS))
    assert torch.equal(runs[1], runs[0])


def _weights_after_epochs(terms: Tensor, rank: int | None) -> Tensor:
    """Return the weights after one step per epoch; the batch sizes of the ranks differ."""
    samples = {None: slice(None), 0: slice(2), 1: slice(2, None)}[rank]
    weighting = DynamicWeightAverage(VIEWS)
    for epoch in terms:
        weighting(epoch[samples], {}, names=VIEWS)
        weighting.step()
    return weighting(terms.new_zeros(1, 3), {}, names=VIEWS)


def test_every_rank_has_the_weights_of_the_whole_data(tmp_path: Path) -> None:
    terms = torch.rand(2, 6, 3)
    expected = _weights_after_epochs(terms, None)
    for weights in in_two(partial(_weights_after_epochs, terms), tmp_path):
        assert_close(weights, expected)


def _weights_in_a_group_of_its_own(terms: Tensor, rank: int) -> Tensor:
    groups = [distributed.new_group([k]) for k in range(2)]  # all processes create all groups
    weighting = DynamicWeightAverage(VIEWS, group=groups[rank])
    for epoch in terms[rank]:
        weighting(epoch, {}, names=VIEWS)
        weighting.step()
    return weighting(terms.new_zeros(1, 3), {}, names=VIEWS)


def test_processes_of_other_groups_do_not_matter(tmp_path: Path) -> None:
    terms = torch.rand(2, 2, 6, 3)
    results = in_two(partial(_weights_in_a_group_of_its_own, terms), tmp_path)
    for weights, own in zip(results, terms, strict=True):
        assert_close(weights, _weights_after_epochs(own, None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float16])
def test_sums_do_not_lose_precision_when_the_module_is_cast(
    dtype: torch.dtype, default: torch.dtype
) -> None:
    """1,000 terms of about 100 overflow fp16, and stop adding up in bf16."""
    torch.set_default_dtype(default)
    try:
        weighting = DynamicWeightAverage(VIEWS)
    finally:
        torch.set_default_dtype(torch.float32)
    casts = [nn.Sequential(weighting).to(dtype), nn.Sequential(DynamicWeightAverage(VIEWS))]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for _ in range(1000):
            terms = 100 * torch.rand(4, 3, generator=generator) * torch.tensor([1.0, 2.0, 3.0])
            for module in casts:
                module[0](terms, {}, names=VIEWS)
        for module in casts:
            module[0].step()
    weights = [module[0](torch.zeros(1, 3), {}, names=VIEWS) for module in casts]
    assert_close(weights[0], weights[1])


def test_moved_sums_keep_their_values() -> None:
    weighting = DynamicWeightAverage(VIEWS)
    weighting(torch.tensor([[1.0, 2.0, 1 / 3]]), {}, names=VIEWS)
    before = weighting.total.clone()
    assert torch.equal(weighting.half().bfloat16().total, before)
    assert weighting.to("meta").total.device.type == "meta"


def test_repr_shows_the_options() -> None:
    assert f"names={VIEWS}, temperature=2.0" in repr(DynamicWeightAverage(VIEWS))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        pytest.param(
            lambda: DynamicWeightAverage(3),
            TypeError,
            "`names` to be a sequence of views, got int",
            id="number of views",
        ),
        pytest.param(
            lambda: DynamicWeightAverage(VIEWS, temperature=0),
            ValueError,
            "`temperature`.* got 0",
            id="temperature of 0",
        ),
        pytest.param(
            msd_call(DynamicWeightAverage((*VIEWS, "audio")), make_views("image", "text")),
            KeyError,
            "`full`, `image`, `text`.* got ",
            id="names of other views",
        ),
    ],
)
def test_rejects_invalid_arguments(
    call: Callable[[], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        call()
    assert caught.type is error
