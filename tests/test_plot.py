"""Plots: what they draw, their labels, and their errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from strategies import ViewBatch, generators, view_batches

from msdlosses import (
    FixedWeighting,
    KDLoss,
    LinearLogits,
    MSDLoss,
    MSDParts,
    SaliencyWeighting,
    modality_saliency,
)
from msdlosses.plot import COLORS, plot_saliency, plot_view_densities, plot_weights

VIEWS = ("full", "image", "text")


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def logits(samples: int = 40, classes: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {view: 2 * torch.randn(samples, classes, generator=rng) for view in VIEWS}


def make_parts(**options: Any) -> MSDParts:
    return MSDLoss(KDLoss(), SaliencyWeighting()).parts(logits(seed=1), logits(), **options)


def make_saliency() -> dict[str, torch.Tensor]:
    return modality_saliency(logits())


# All plots

PLOTS: dict[str, Callable[..., Axes]] = {
    "densities": lambda ax=None: plot_view_densities(logits(), logits(seed=1), ax=ax),
    "saliency": lambda ax=None: plot_saliency(make_saliency(), ax=ax),
    "weights": lambda ax=None: plot_weights(make_parts(), ax=ax),
}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_draws_into_the_given_axes_or_a_new_figure(plot: Callable[..., Axes]) -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert plot(ax=right) is right
    assert right.has_data()
    assert not left.has_data()
    assert plt.get_fignums() == [1]
    assert plot().figure is not right.figure


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_axes_are_labeled(plot: Callable[..., Axes]) -> None:
    ax = plot()
    assert ax.get_ylabel()
    labels = ax.get_legend_handles_labels()[1] or [t.get_text() for t in ax.get_xticklabels()]
    assert {label.split(": ")[-1] for label in labels} >= {"image", "text"}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_rejects_axes_of_another_type(plot: Callable[..., Axes]) -> None:
    with pytest.raises(TypeError, match="Expected `ax` to be the axes of a figure, got str"):
        plot(ax="here")


def test_views_differ_in_color_and_models_in_line_style() -> None:
    ax = plot_view_densities(logits(), logits(seed=1))
    colors_by_label = {p.get_label(): p.get_edgecolor() for p in ax.patches}
    styles_by_label = {p.get_label(): p.get_linestyle() for p in ax.patches}
    for view in VIEWS:
        assert colors_by_label[f"teacher: {view}"] == colors_by_label[f"student: {view}"]
        assert styles_by_label[f"teacher: {view}"] != styles_by_label[f"student: {view}"]
    assert len(set(colors_by_label.values())) == len(VIEWS)


# Machado et al. 2009, doi 10.1109/TVCG.2009.113: simulation of color vision deficiencies, for
# linear RGB.
COLOR_VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.clip(to_xyz @ rgb, 0, None) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", COLOR_VISION)
def test_colors_differ_for_colorblind_readers(kind: str) -> None:
    """A color difference of 2.3 is just noticeable, and one of 10 is clear at a glance."""
    srgb = np.array([colors.to_rgb(color) for color in COLORS])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    perceived = [lab(np.array(COLOR_VISION[kind]) @ color) for color in linear]
    assert min(np.linalg.norm(a - b) for a, b in combinations(perceived, 2)) > 10


# Densities


def test_density_of_the_probability_of_the_target_class() -> None:
    teacher = {"full": torch.tensor([[0.95, 0.05], [0.45, 0.55], [0.45, 0.55], [0.2, 0.8]]).log()}
    ax = plot_view_densities(teacher, target=torch.tensor([0, 0, 1, 0]), bins=4)
    (patch,) = ax.patches
    density, edges, _ = patch.get_data()
    assert density.tolist() == [1.0, 1.0, 1.0, 1.0]  # of 0.2, 0.45, 0.55, and 0.95
    assert edges.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ax.get_xlabel() == "probability of the target class"


def test_target_may_be_one_class_for_all_samples() -> None:
    teacher = {"full": torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]).log()}
    ax = plot_view_densities(teacher, target=1, bins=2)
    assert ax.patches[0].get_data()[0].tolist() == pytest.approx([2 / 3, 4 / 3])
    assert ax.get_xlabel() == "probability of class 1"


def test_default_target_is_the_prediction_of_the_teacher_on_the_full_view() -> None:
    teacher, student = logits(), logits(seed=1)
    actual = plot_view_densities(teacher, student)
    expected = plot_view_densities(teacher, student, teacher["full"].argmax(-1))
    for patch, other in zip(actual.patches, expected.patches, strict=True):
        assert (patch.get_data()[0] == other.get_data()[0]).all()


@given(view_batches(min_batch=1, sequences=True), generators())
def test_every_density_integrates_to_1(batch: ViewBatch, rng: torch.Generator) -> None:
    student = {view: torch.randn(x.shape, generator=rng) for view, x in batch.student.items()}
    ax = plot_view_densities(student, student, bins=7)
    for patch in ax.patches:
        density, edges, _ = patch.get_data()
        assert (density * np.diff(edges)).sum() == pytest.approx(1)
    assert len(ax.patches) == 2 * len(student)
    plt.close("all")


def test_densities_of_linear_logits() -> None:
    tensors = logits()
    linear = {view: LinearLogits(x, torch.eye(x.shape[-1])) for view, x in tensors.items()}
    actual, expected = plot_view_densities(linear), plot_view_densities(tensors)
    for patch, other in zip(actual.patches, expected.patches, strict=True):
        assert (patch.get_data()[0] == other.get_data()[0]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_densities_of_any_dtype_with_a_graph(dtype: torch.dtype) -> None:
    student = {view: x.to(dtype).requires_grad_() for view, x in logits().items()}
    assert len(plot_view_densities(student).patches) == len(VIEWS)


# Weights


def box_of(ax: Axes, k: int) -> dict[str, float]:
    """The percentiles and the mean in the k-th box.

    Matplotlib draws the box, whiskers, caps, median, and mean, in this order.
    """
    lines = [line for line in ax.lines if round(float(np.mean(line.get_xdata()))) == k + 1]
    box, low, high, _, _, median, mean = (np.asarray(line.get_ydata()) for line in lines)
    return {
        "5": low[-1], "25": box[0], "50": median[0], "75": box[2], "95": high[-1], "mean": mean[0]
    }  # fmt: skip


def test_box_shows_percentiles_and_mean_of_the_weights() -> None:
    parts = make_parts()
    ax = plot_weights(parts)
    for k in range(len(VIEWS)):
        weights, box = parts.weights[:, k].numpy(), box_of(ax, k)
        for name in ("25", "50", "75"):
            assert box[name] == pytest.approx(np.percentile(weights, int(name)))
        assert box["mean"] == pytest.approx(weights.mean())
        # A whisker ends at the last sample within the percentiles.
        low, high = np.percentile(weights, [5, 95])
        assert box["5"] == pytest.approx(weights[weights >= low].min())
        assert box["95"] == pytest.approx(weights[weights <= high].max())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(parts.names)


def test_invalid_entries_are_left_out() -> None:
    valid = torch.ones(40, 3, dtype=torch.bool)
    valid[::2, 2] = False
    masked, complete = make_parts(valid=valid), make_parts()
    box = box_of(plot_weights(masked), 2)
    assert box["mean"] == pytest.approx(complete.weights[1::2, 2].double().mean().item())


def test_zero_weights_of_valid_entries_are_drawn() -> None:
    msd = MSDLoss(KDLoss(), FixedWeighting(full=1.0, image=0.5, text=0.0))
    ax = plot_weights(msd.parts(logits(seed=1), logits()))
    assert [box_of(ax, k)["50"] for k in range(3)] == [1.0, 0.5, 0.0]


def test_view_without_valid_entries_has_an_empty_box() -> None:
    valid = torch.tensor([True, True, False]).expand(40, 3)
    ax = plot_weights(make_parts(valid=valid))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(VIEWS)
    assert np.isnan(box_of(ax, 2)["mean"])


# Saliencies


def test_curve_is_the_share_of_samples_up_to_a_saliency() -> None:
    ax = plot_saliency({"image": torch.tensor([3.0, 1.0, 1.0, 2.0])})
    (line,) = ax.lines
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xdata().tolist() == [0.0, 1.0, 1.0, 2.0, 3.0]
    assert line.get_ydata().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_curves_rise_from_0_to_1() -> None:
    for line in plot_saliency(make_saliency()).lines:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert all(a <= b for values in (x, y) for a, b in pairwise(values))
        assert (y[0], y[-1]) == (0, 1)


def test_infinite_saliencies_are_beyond_the_end_of_the_curve() -> None:
    (line,) = plot_saliency({"image": torch.tensor([1.0, float("inf")])}).lines
    assert line.get_ydata().tolist() == [0.0, 0.5]


# Errors

NAN = {view: x * float("nan") for view, x in logits().items()}
DENSITIES = {
    "not a mapping": (TypeError, "Expected `teacher` to be a mapping", {"teacher": torch.eye(2)}),
    "no views": (ValueError, "Expected `teacher` .* of views", {"teacher": {}}),
    "integer logits": (
        TypeError,
        r"`student\['full'\]`",
        {"student": {"full": torch.tensor([[1]])}},
    ),
    "no full view": (
        KeyError,
        "`teacher` to hold `full`",
        {"teacher": {"text": torch.zeros(2, 3)}},
    ),
    "not a class": (IndexError, r"Expected `target` in \[0, 3\), got 3", {"target": 3}),
    "class by name": (TypeError, "Expected `target` to be an integer", {"target": "cat"}),
    "too few targets": (ValueError, "Expected `target` of shape", {"target": torch.tensor([0])}),
    "no bins": (ValueError, "Expected `bins` of at least 1, got 0", {"bins": 0}),
    "no samples": (ValueError, r"`teacher\['full'\]` to hold samples", {"teacher": logits(0)}),
    "NaN": (ValueError, r"`student\['full'\]` without NaN", {"student": NAN}),
}
SALIENCIES = {
    "not a mapping": (TypeError, "Expected `saliency` to be a mapping of modalities", torch.eye(2)),
    "no modalities": (ValueError, "Expected `saliency` .* of modalities", {}),
    "integers": (TypeError, r"`saliency\['image'\]`", {"image": torch.tensor([1])}),
    "logits": (ValueError, "got the view `full`", logits()),
    "NaN": (ValueError, r"`saliency\['image'\]` without NaN", {"image": NAN["image"]}),
    "no samples": (ValueError, r"`saliency\['image'\]` to hold samples", {"image": torch.zeros(0)}),
}


@pytest.mark.parametrize(("error", "message", "arguments"), DENSITIES.values(), ids=DENSITIES)
def test_plot_view_densities_rejects_invalid_arguments(
    error: type[Exception], message: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        plot_view_densities(**{"teacher": logits(), **arguments})
    assert plt.get_fignums() == []


@pytest.mark.parametrize(("error", "message", "saliency"), SALIENCIES.values(), ids=SALIENCIES)
def test_plot_saliency_rejects_invalid_arguments(
    error: type[Exception], message: str, saliency: Any
) -> None:
    with pytest.raises(error, match=message):
        plot_saliency(saliency)
    assert plt.get_fignums() == []


def test_plot_weights_rejects_another_type() -> None:
    with pytest.raises(TypeError, match="Expected `parts` to be the MSDParts"):
        plot_weights(torch.eye(2))
    assert plt.get_fignums() == []


# matplotlib


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


def test_package_does_not_import_matplotlib() -> None:
    done = run("import msdlosses, sys; assert 'matplotlib' not in sys.modules")
    assert done.stderr == ""


def test_missing_matplotlib_error_has_the_pip_command() -> None:
    done = run("import sys; sys.modules['matplotlib'] = None; import msdlosses.plot")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: Expected matplotlib for `msdlosses.plot`")
    assert last.endswith("pip install 'msdlosses[plot]'")


def test_saliency_on_another_default_device() -> None:
    saliency = {"image": torch.rand(4), "text": torch.rand(4)}
    with torch.device("meta"):
        ax = plot_saliency(saliency)
    assert len(ax.lines) == 2


@pytest.mark.parametrize("shape", [(3,), (40, 3), (40, 5, 3)])
def test_weights_of_any_shape_are_drawn(shape: tuple[int, ...]) -> None:
    weights = torch.rand(shape) + 0.5
    count = torch.tensor(40)
    parts = MSDParts(torch.tensor(0.0), torch.ones(40, 3), weights, VIEWS, count)
    ax = plot_weights(parts)
    means = weights.reshape(-1, 3).double().mean(0).tolist()
    assert [box_of(ax, k)["mean"] for k in range(3)] == pytest.approx(means)
