"""SaliencyWeighting."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import make_views
from torch import Tensor, nn
from torch.testing import assert_close
from user_losses import FunctionLoss
from weights import VIEWS, compute_weights, msd_call, scipy_kl

from msdlosses import LogitMSELoss, SaliencyWeighting, modality_saliency

BATCH = make_views("image", "text")
TEACHER = BATCH.teacher
MASK = torch.ones(4, 3, dtype=torch.bool)

two_and_three_modalities = pytest.mark.parametrize(
    "modalities", [("image", "text"), ("image", "text", "audio")]
)


# Weights per sample


def test_weights_are_tanh_of_the_scaled_saliency() -> None:
    weights = compute_weights(SaliencyWeighting(alpha=0.5), BATCH)
    s = modality_saliency(TEACHER)
    expected = [torch.ones(4), torch.tanh(0.5 * s["image"]), torch.tanh(0.5 * s["text"])]
    assert_close(weights, torch.stack(expected, dim=-1))


def test_weight_of_a_complement_agrees_with_scipy() -> None:
    """The view `~audio` shows image and text, and what is left without them is the audio."""
    t = make_views("image", "text", "audio").teacher
    weights = SaliencyWeighting()(torch.zeros(4, 3), t, names=("full", "audio", "~audio"))
    expected = [
        torch.ones(4),
        torch.tanh(scipy_kl(t["full"], t["~audio"])),
        torch.tanh(scipy_kl(t["full"], t["audio"])),
    ]
    assert_close(weights, torch.stack(expected, dim=-1))


def test_weights_of_a_sequence_use_the_mean_over_positions() -> None:
    teacher = make_views("image", "text", positions=(3,)).teacher
    weights = SaliencyWeighting()(torch.zeros(4, 3), teacher, names=VIEWS)
    saliency = modality_saliency(teacher)["image"].mean(1)
    assert_close(weights[:, 1], torch.tanh(saliency))


@two_and_three_modalities
def test_unknown_saliency_gives_the_mean_of_known_weights(modalities: tuple[str, ...]) -> None:
    batch = make_views(*modalities)
    only_image = torch.tensor([name == "image" for name in batch.names])
    complete = torch.ones_like(only_image)
    valid = torch.stack([only_image, only_image, complete, complete])
    unmasked = compute_weights(SaliencyWeighting(), batch, valid=None)
    weights = compute_weights(SaliencyWeighting(), batch, valid=valid)
    assert_close(weights[:2], unmasked[2:].mean(0).expand(2, -1))
    assert_close(weights[2:], unmasked[2:])
    weights = compute_weights(SaliencyWeighting(), batch, valid=only_image.expand(4, -1))
    assert_close(weights, torch.ones_like(weights))


def test_without_a_full_term_the_saliency_needs_all_views_to_be_valid() -> None:
    terms, names = torch.zeros(4, 2), ("image", "text")
    valid = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    unmasked = SaliencyWeighting()(terms, TEACHER, names=names)
    weights = SaliencyWeighting()(terms, TEACHER, names=names, valid=valid)
    assert_close(weights[1:3], unmasked[[0, 3]].mean(0).expand(2, -1))
    assert_close(weights[[0, 3]], unmasked[[0, 3]])


# Population weights


@two_and_three_modalities
def test_population_weights_are_the_mean_of_the_weights_of_samples(
    modalities: tuple[str, ...],
) -> None:
    batch = make_views(*modalities, samples=7)
    parts = [{v: x[k : k + 3] for v, x in batch.teacher.items()} for k in (0, 3, 6)]
    expected = compute_weights(SaliencyWeighting(2.0), batch).mean(0)
    for data in (batch.teacher, parts, iter(parts)):
        fitted = SaliencyWeighting(2.0, population=True).fit(data)
        weights = fitted(torch.zeros(7, len(batch.names)), {}, names=batch.names)
        assert_close(weights, expected)


def test_population_weights_are_saved_with_the_module() -> None:
    names = ("full", "image", "~image")
    fitted = SaliencyWeighting(population=True).fit(TEACHER)
    student = nn.Linear(2, 2)
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"student": student, "weighting": fitted}).state_dict(), file)
    file.seek(0)
    loaded = SaliencyWeighting(population=True)
    model = nn.ModuleDict({"student": student, "weighting": loaded})
    model.load_state_dict(torch.load(file, weights_only=True))
    terms = torch.zeros(2, 3)
    assert torch.equal(loaded(terms, {}, names=names), fitted(terms, {}, names=names))


def test_population_weights_support_names_with_dots() -> None:
    first, second = "camera.left", "camera.right"
    teacher = make_views(first, second).teacher
    weighting = SaliencyWeighting(population=True).fit(teacher)
    weights = weighting(torch.zeros(4, 2), {}, names=(first, second))
    assert_close(weights[0], torch.tanh(modality_saliency(teacher)[first]).mean())


def test_refitting_replaces_the_population_weights() -> None:
    first, second = (make_views("image", "text", seed=seed).teacher for seed in (1, 2))
    refitted = SaliencyWeighting(population=True).fit(first).fit(second)
    expected = SaliencyWeighting(population=True).fit(second)
    assert torch.equal(
        refitted(torch.zeros(1, 3), {}, names=VIEWS), expected(torch.zeros(1, 3), {}, names=VIEWS)
    )


def test_repr_shows_the_options() -> None:
    assert repr(SaliencyWeighting(2.0)) == "SaliencyWeighting(alpha=2.0, population=False)"


# Errors


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        pytest.param(lambda: SaliencyWeighting(0), ValueError, "`alpha`.* got 0", id="alpha of 0"),
        pytest.param(
            lambda: SaliencyWeighting(divergence="kl"),
            TypeError,
            "`divergence` to be callable, got str",
            id="name of a divergence",
        ),
        pytest.param(
            msd_call(
                SaliencyWeighting(),
                BATCH,
                student=BATCH.student | {"audio": BATCH.student["full"]},
                teacher=TEACHER | {"audio": TEACHER["full"]},
            ),
            KeyError,
            "`teacher`.*`~image`, got `full`, `image`, `text`, `audio`",
            id="three modalities without complements",
        ),
        pytest.param(
            msd_call(SaliencyWeighting(population=True), BATCH),
            RuntimeError,
            "SaliencyWeighting to be fitted for `full`, got none.* `fit` first",
            id="not fitted",
        ),
        pytest.param(
            msd_call(
                SaliencyWeighting(population=True).fit(TEACHER | {"audio": TEACHER["full"]}), BATCH
            ),
            RuntimeError,
            "SaliencyWeighting to be fitted for `image`, got `full`",
            id="fitted to three modalities without complements",
        ),
    ],
)
def test_rejects_invalid_calls(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        call()
    assert caught.type is error


@pytest.mark.parametrize(
    ("teacher", "valid", "error", "match"),
    [
        pytest.param([], None, ValueError, "samples to fit.* got none", id="no batches"),
        pytest.param(3, None, TypeError, "`teacher`.* got int", id="number"),
        pytest.param(
            [TEACHER["full"]],
            None,
            TypeError,
            r"`teacher` to be a mapping of views to logits, got float32 \(4, 5\)",
            id="tensors",
        ),
        pytest.param(
            {view: TEACHER[view] for view in ("image", "text")},
            None,
            KeyError,
            "`teacher` to hold.*`full`, got `image`, `text`",
            id="no full view",
        ),
        pytest.param(
            TEACHER,
            MASK.float(),
            TypeError,
            r"`valid` to be a boolean tensor, got float32 \(4, 3\)",
            id="mask of floats",
        ),
        pytest.param(
            TEACHER,
            MASK[:, :2],
            ValueError,
            r"`valid` of shape \(N, 3\).*`full`, `image`, `text`, got \(4, 2\)",
            id="mask of other views",
        ),
        pytest.param(
            [TEACHER, TEACHER],
            MASK,
            TypeError,
            r"`valid`.* got bool \(4, 3\)",
            id="one mask for two batches",
        ),
        pytest.param(
            [TEACHER, TEACHER], [MASK], TypeError, "`valid`.* got NoneType", id="too few masks"
        ),
        pytest.param([TEACHER], [MASK, MASK], ValueError, "`valid`.* more", id="too many masks"),
        pytest.param(
            TEACHER, ~MASK, ValueError, "samples to fit.* got none", id="no valid samples"
        ),
    ],
)
def test_fit_rejects_invalid_data(
    teacher: Any, valid: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        SaliencyWeighting().fit(teacher, valid=valid)
    assert caught.type is error


# Divergences with a chunk size


def test_divergence_is_computed_in_its_own_chunks() -> None:
    teacher = make_views("image", "text", samples=7).teacher
    expected = modality_saliency(teacher, divergence=LogitMSELoss())
    sizes: list[int] = []

    def function(student: Tensor, teacher: Tensor, _: Tensor | None) -> Tensor:
        sizes.append(len(student))
        return (student - teacher).square().sum(-1)

    divergence = FunctionLoss(function, chunk_size=3)
    assert_close(modality_saliency(teacher, divergence=divergence), expected)
    assert max(sizes) == 3
