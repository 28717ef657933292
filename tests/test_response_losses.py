"""What each loss of predictions is, beyond the laws that every loss keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import laws
import numpy as np
import pytest
import torch
from hypothesis import given
from laws import LOSSES, LossCase
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr
from strategies import logit_pairs
from torch import Tensor, nn
from torch.testing import assert_close

from msdlosses import (
    DistillationLoss,
    DISTLoss,
    DKDLoss,
    JSDLoss,
    KDLoss,
    LogitMSELoss,
    MSDLoss,
    MultiLabelKDLoss,
    ReverseKDLoss,
)
from msdlosses import functional as F

INF, NAN = float("inf"), float("nan")
TEMPERED: dict[str, Callable[..., DistillationLoss]] = {
    "kd": KDLoss,
    "standardised kd": lambda *args, **options: KDLoss(*args, standardize=True, **options),
    "reverse kd": ReverseKDLoss,
    "jsd": lambda temperature=1.0, **options: JSDLoss(0.3, temperature=temperature, **options),
    "multi-label": MultiLabelKDLoss,
    "dkd": laws.AimedDKDLoss,
    "dist": DISTLoss,
}
every_tempered = pytest.mark.parametrize("name", TEMPERED)
double_pairs = logit_pairs(kinds=("ordinary", "confident"), dtypes=(torch.float64,))


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    return student, teacher


# Directions


@given(pair=double_pairs)
def test_reverse_kd_is_kd_the_other_way_round(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    expected = F.kl_divergence(teacher, student, temperature=2.0)
    assert_close(F.reverse_kl_divergence(student, teacher, temperature=2.0), expected)


def test_jsd_agrees_with_scipy() -> None:
    student, teacher = pair(6, 5)
    p, q = (logits.softmax(-1).numpy() for logits in (teacher, student))
    rows = F.js_divergence(student, teacher)
    assert_close(rows, torch.from_numpy(jensenshannon(p, q, axis=1) ** 2))


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.5, 0.9])
@given(pair=logit_pairs(kinds=("ordinary", "confident", "huge"), dtypes=(torch.float32,)))
def test_jsd_is_bounded_by_the_entropy_of_its_shares(
    beta: float, pair: tuple[Tensor, Tensor]
) -> None:
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert (F.js_divergence(*pair, beta=beta) <= entropy + 1e-6).all()


@pytest.mark.parametrize(("end", "near"), [(0.0, 1e-9), (1.0, 1 - 1e-9)])
@given(pair=logit_pairs(kinds=("ordinary",), dtypes=(torch.float64,)))
def test_jsd_goes_over_into_its_ends(end: float, near: float, pair: tuple[Tensor, Tensor]) -> None:
    """Normalised without a jump; else in proportion to beta and to 1 - beta."""
    limit = F.js_divergence(*pair, beta=end)
    expected = (F.kl_divergence, F.reverse_kl_divergence)[int(end)](*pair)
    assert torch.equal(limit, expected)
    share = 1 - abs(end - near), abs(end - near)
    tight = {"rtol": 1e-5, "atol": 1e-6}
    assert_close(F.js_divergence(*pair, beta=near, normalize=True), limit, **tight)
    assert_close(F.js_divergence(*pair, beta=near) / share[1], limit, **tight)


def test_jsd_turns_round_with_beta() -> None:
    student, teacher = pair(4, 5)
    there = F.js_divergence(student, teacher, beta=0.2)
    assert_close(F.js_divergence(teacher, student, beta=0.8), there)


@pytest.mark.parametrize("divergence", [F.kl_divergence, F.reverse_kl_divergence])
@given(pair=logit_pairs(kinds=("ordinary", "confident"), dtypes=(torch.float64,)))
def test_a_skew_goes_over_into_none_and_bounds_the_divergence(
    divergence: Callable[..., Tensor], pair: tuple[Tensor, Tensor]
) -> None:
    assert_close(divergence(*pair, skew=1e-300), divergence(*pair), rtol=1e-6, atol=1e-9)
    assert (divergence(*pair, skew=0.1) <= -math.log(0.1) + 1e-9).all()


def test_a_skew_keeps_finite_what_one_side_rules_out() -> None:
    student, teacher = torch.tensor([[0.0, -INF]]), torch.tensor([[0.0, 0.0]])
    assert F.kl_divergence(student, teacher).item() == INF
    assert F.reverse_kl_divergence(teacher, student).item() == INF
    expected = 0.5 * math.log(0.5 / 0.95) + 0.5 * math.log(0.5 / 0.05)
    for divergence, sides in (
        (F.kl_divergence, (student, teacher)),
        (F.reverse_kl_divergence, (teacher, student)),
    ):
        value, gradient = laws.value_and_gradient(
            lambda s, t, f=divergence: f(s, t, skew=0.1), *sides
        )
        assert_close(value.item(), expected)
        assert gradient.isfinite().all()


# Standardised logits


def test_standardised_kd_does_not_see_the_size_of_the_logits() -> None:
    student, teacher = pair(4, 7)
    expected = F.kl_divergence(student, teacher, standardize=True)
    assert_close(F.kl_divergence(5 * student + 3, teacher / 4, standardize=True), expected)
    assert_close(F.kl_divergence(7 * teacher, teacher, standardize=True), torch.zeros(4).double())


def test_standardised_kd_agrees_with_numpy() -> None:
    student, teacher = pair(4, 7)
    z = [
        (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        for x in (student.numpy(), teacher.numpy())
    ]
    expected = F.kl_divergence(*map(torch.from_numpy, z), temperature=2.0)
    assert_close(F.kl_divergence(student, teacher, temperature=2.0, standardize=True), expected)


def test_constant_logits_have_a_bounded_gradient_once_standardised() -> None:
    teacher = torch.randn(4, 7)
    _, gradient = laws.value_and_gradient(KDLoss(standardize=True), torch.ones(4, 7), teacher)
    assert gradient.abs().max() < 100


# DKD


@given(pair=double_pairs)
def test_dkd_whose_second_part_has_the_teachers_rest_is_kd(pair: tuple[Tensor, Tensor]) -> None:
    target = laws.pick_target(*pair)
    options = {"temperature": 2.0}
    one = F.dkd_loss(*pair, target, alpha=1.0, beta=0.0, **options)
    two = F.dkd_loss(*pair, target, alpha=0.0, beta=1.0, **options)
    p = (pair[1] / 2.0).softmax(-1)
    rest = (p.sum(-1) - p.gather(-1, target.unsqueeze(-1)).squeeze(-1)).clamp(min=0)
    assert_close(one + rest * two, F.kl_divergence(*pair, **options), rtol=1e-6, atol=1e-9)


def test_dkd_of_two_classes_is_kd() -> None:
    """There is nothing to tell about one other class."""
    student, teacher = pair(5, 2)
    target = torch.tensor([0, 1, 0, 1, 1])
    assert_close(DKDLoss(2.0)(student, teacher, target), KDLoss(2.0)(student, teacher))


def test_dkd_takes_any_target() -> None:
    """Also one that the teacher finds impossible, and one that it is sure of."""
    student = torch.randn(3, 4)
    teacher = torch.tensor([[0.0, -INF, 0.0, 1.0], [0.0, -INF, -INF, -INF], [9e4, -9e4, 0, 0]])
    target = torch.tensor([1, 0, 1])
    value, gradient = laws.value_and_gradient(
        lambda s, t: DKDLoss(reduction="none")(s, t, target), student, teacher
    )
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_dkd_takes_integers_of_any_size(dtype: torch.dtype) -> None:
    student, teacher = pair(3, 4)
    target = torch.tensor([1, 3, 0])
    expected = F.dkd_loss(student, teacher, target)
    assert torch.equal(F.dkd_loss(student, teacher, target.to(dtype)), expected)


def test_a_part_of_weight_0_is_left_out() -> None:
    """Where it is infinite, 0 times it would be NaN."""
    student, teacher = torch.tensor([[-INF, 0.0, 0.0]]), torch.zeros(1, 3)
    target = torch.tensor([0])
    assert F.dkd_loss(student, teacher, target).item() == INF
    assert F.dkd_loss(student, teacher, target, alpha=0.0).item() == 0


# DIST


def test_dist_agrees_with_scipys_correlation() -> None:
    student, teacher = pair(6, 5)
    q, p = (x.softmax(-1).numpy() for x in (student, teacher))
    inter = np.mean([1 - pearsonr(q[n], p[n])[0] for n in range(6)])
    intra = np.mean([1 - pearsonr(q[:, c], p[:, c])[0] for c in range(5)])
    loss = DISTLoss(inter=2.0, intra=3.0)(student, teacher)
    assert_close(loss.item(), 2 * inter + 3 * intra)


def test_dist_of_a_match_up_to_shift_and_scale_is_0() -> None:
    """Of the probabilities of a sample: a stronger student matches."""
    p = torch.rand(4, 5).double().softmax(-1)
    q = 0.5 * p + 0.1  # each row sums to 1
    rows = F.dist_loss(q.log(), p.log(), intra=0.0)
    assert_close(rows, torch.zeros(4).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (4, 1)])
def test_dist_of_one_sample_or_class_is_finite(shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(2, *shape)
    value, gradient = laws.value_and_gradient(DISTLoss(), student, teacher)
    assert value.isfinite()
    assert gradient.isfinite().all()


# Many labels, soft scores


def test_multi_label_kd_of_genres_is_a_sum_over_them() -> None:
    student, teacher = pair(4, 23)
    alone = [
        F.multilabel_kl_divergence(student[:, c : c + 1], teacher[:, c : c + 1]) for c in range(23)
    ]
    assert_close(F.multilabel_kl_divergence(student, teacher), torch.stack(alone).sum(0))


def test_multi_label_kd_of_one_label_is_kd_of_two_classes() -> None:
    student, teacher = pair(4, 1)
    two = [torch.cat([x, torch.zeros_like(x)], -1) for x in (student, teacher)]
    expected = F.kl_divergence(*two, temperature=3.0)
    assert_close(F.multilabel_kl_divergence(student, teacher, temperature=3.0), expected)


def test_soft_scores_of_answers() -> None:
    """As in VQA: the scores of 3129 answers, of which a few are above 0."""
    logits = torch.randn(4, 3129, dtype=torch.float64)
    scores = torch.zeros(4, 3129, dtype=torch.float64)
    scores[:, :3] = torch.tensor([1.0, 0.6, 0.3])
    p = logits.sigmoid()
    expected = -(scores * p.log() + (1 - scores) * (1 - p).log()).sum(-1)
    assert_close(F.multilabel_cross_entropy(logits, scores), expected)
    half = F.multilabel_cross_entropy(logits.half(), scores.half())
    assert half.dtype == torch.float32
    assert_close(half.double(), expected, rtol=1e-2, atol=0.0)


def test_cross_entropy_agrees_with_torch() -> None:
    logits, target = torch.randn(4, 3, 5), torch.randint(5, (4, 3))
    expected = nn.functional.cross_entropy(logits.mT, target, reduction="none")
    assert_close(F.cross_entropy(logits, target), expected)
    assert F.cross_entropy(logits.half(), target).dtype == torch.float32


# Distances


def test_logit_mse_is_a_sum_over_classes() -> None:
    student, teacher = pair(4, 5)
    expected = 5 * nn.functional.mse_loss(student, teacher)
    assert_close(LogitMSELoss()(student, teacher), expected)


# Temperature


@every_tempered
def test_temperature_may_differ_from_sample_to_sample(name: str) -> None:
    student, teacher = pair(3, 5)
    taus = torch.tensor([0.5, 1.0, 4.0])
    rows = TEMPERED[name](taus, reduction="none")(student, teacher)
    if name == "dist":  # rows depend on each other
        assert rows.isfinite().all()
        return
    for n, tau in enumerate(taus.tolist()):
        alone = TEMPERED[name](tau, reduction="none")(student[n : n + 1], teacher[n : n + 1])
        assert_close(rows[n : n + 1], alone)


@every_tempered
def test_one_temperature_for_each_sample_of_a_sequence_or_of_images(name: str) -> None:
    student, teacher = pair(3, 4, 5)
    taus = torch.tensor([0.5, 1.0, 4.0])
    expected = TEMPERED[name](taus[:, None].expand(3, 4), reduction="none")(student, teacher)
    assert_close(TEMPERED[name](taus, reduction="none")(student, teacher), expected)
    first = TEMPERED[name](taus, dim=1, reduction="none")(student.mT, teacher.mT)
    assert_close(first, expected)


@every_tempered
def test_a_temperature_of_one_value_is_a_buffer(name: str) -> None:
    student, teacher = torch.randn(2, 3, 5)
    loss = TEMPERED[name](torch.tensor(2.0))
    assert_close(loss(student, teacher), TEMPERED[name](2.0)(student, teacher))
    assert not list(loss.parameters())
    assert len(loss.state_dict()) == 1
    loss.temperature.fill_(3.0)  # a schedule, without a new graph
    assert_close(loss(student, teacher), TEMPERED[name](3.0)(student, teacher))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_number_and_a_buffer_agree_where_logits_are_extreme(compiled: bool) -> None:
    """Each has a form of its own: classes missing in either or both, and underflow to 0."""
    divergence = F.kl_divergence
    if compiled:
        torch.compiler.reset()
        divergence = torch.compile(divergence, fullgraph=True, backend="aot_eager")
    extremes = torch.tensor([0.0, 1.0, -3e3, 3e4, -INF])
    student, teacher = torch.cartesian_prod(*[extremes] * 4).view(-1, 2, 2).unbind(1)
    exist = ~((student == -INF).all(1) | (teacher == -INF).all(1))
    student, teacher = student[exist].requires_grad_(), teacher[exist]
    number = divergence(student, teacher, temperature=2.0)
    buffer = F.kl_divergence(student, teacher, temperature=torch.tensor(2.0))
    assert_close(number, buffer)
    finite = number.isfinite()
    assert finite.any()
    assert (number[~finite] == INF).all()
    first, second = (torch.autograd.grad(r[finite].sum(), student)[0] for r in (number, buffer))
    assert_close(first, second)
    assert first.isfinite().all()


@pytest.mark.parametrize("temperature", [2.0, torch.tensor(2.0)], ids=["number", "buffer"])
def test_nan_logits_are_not_hidden(temperature: float | Tensor) -> None:
    sound, broken = torch.tensor([[0.0, 1.0, -INF]]), torch.tensor([[0.0, NAN, -INF]])
    for student, teacher in ((sound, broken), (broken, sound)):
        assert F.kl_divergence(student, teacher, temperature=temperature).isnan()


@every_tempered
def test_a_temperature_can_be_set(name: str) -> None:
    """For a schedule: of a number, a buffer and a parameter, which stay what they are."""
    student, teacher = torch.randn(2, 3, 5)
    expected = TEMPERED[name](3.0)(student, teacher)
    learned = {"learn_temperature": True}
    for loss in (
        TEMPERED[name](2.0),
        TEMPERED[name](torch.tensor(2.0)),
        TEMPERED[name](2.0, **learned),
        TEMPERED[name](torch.full((3,), 2.0), **learned),
    ):
        kept = {key: value.data_ptr() for key, value in loss.state_dict().items()}
        loss.temperature = 3.0
        assert_close(loss(student, teacher), expected)
        assert {key: value.data_ptr() for key, value in loss.state_dict().items()} == kept


@every_tempered
def test_a_learned_temperature_stays_above_0_and_is_saved(name: str) -> None:
    student, teacher = pair(3, 5)
    loss = TEMPERED[name](2.0, learn_temperature=True).double()
    assert_close(loss(student, teacher), TEMPERED[name](2.0)(student, teacher))
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    loss(student, teacher).backward()
    optimizer.step()
    assert loss.temperature > 0
    assert loss.temperature != 2.0
    assert list(loss.state_dict()) == ["log_temperature"]


@every_tempered
def test_the_gradient_for_a_learned_temperature_is_right(name: str) -> None:
    student, teacher = pair(2, 3)

    def loss(tau: Tensor) -> Tensor:
        function = {
            "kd": F.kl_divergence,
            "standardised kd": lambda *x, **o: F.kl_divergence(*x, standardize=True, **o),
            "reverse kd": F.reverse_kl_divergence,
            "jsd": F.js_divergence,
            "multi-label": F.multilabel_kl_divergence,
            "dkd": laws.aimed_dkd,
            "dist": F.dist_loss,
        }[name]
        return function(student, teacher, temperature=tau)

    for tau in (torch.tensor(2.0), torch.tensor([0.7, 3.0])):
        leaf = tau.double().requires_grad_()
        assert torch.autograd.gradcheck(loss, leaf, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(loss, leaf)


@every_tempered
def test_the_factor_of_tau_squared_can_be_left_out(name: str) -> None:
    student, teacher = pair(3, 5)
    bare = TEMPERED[name](4.0, rescale=False)(student, teacher)
    assert_close(16 * bare, TEMPERED[name](4.0)(student, teacher))


def test_a_temperature_per_view() -> None:
    student, teacher = pair(3, 5)
    criterion = {"full": KDLoss(4.0), "text": KDLoss(1.0, learn_temperature=True)}
    msd = MSDLoss(criterion).double()
    views = {"full": student, "text": student}, {"full": teacher, "text": teacher}
    expected = [F.kl_divergence(student, teacher, temperature=tau) for tau in (4.0, 1.0)]
    assert_close(msd.terms(*views), torch.stack(expected, -1))
    msd(*views).backward()
    assert [name for name, p in msd.named_parameters() if p.grad is not None] == [
        "criterion.text.log_temperature"
    ]


def test_the_temperature_of_half_precision_is_widened() -> None:
    student, teacher = torch.randn(2, 3, 5)
    tau = torch.tensor([0.5, 2.0, 8.0])
    rows = F.kl_divergence(student, teacher, temperature=tau.half())
    assert rows.dtype == torch.float32
    assert_close(rows, F.kl_divergence(student, teacher, temperature=tau))


# Targets that are ignored


IGNORING: dict[str, Callable[..., DistillationLoss]] = {
    "kd": KDLoss,
    "dkd": DKDLoss,
    "dist": DISTLoss,
    "logit mse": LogitMSELoss,
}


@pytest.mark.parametrize("name", IGNORING)
@pytest.mark.parametrize("ignored", [-100, -1, 2])
def test_rows_whose_target_is_ignored_are_not_valid(name: str, ignored: int) -> None:
    student, teacher = pair(4, 3, 5)
    target = torch.randint(2, (4, 3))
    left_out = torch.rand(4, 3) < 0.4
    spoilt = [x.masked_fill(left_out.unsqueeze(-1), NAN) for x in (student, teacher)]
    ignoring = IGNORING[name](ignore_index=ignored)
    aimed = target.masked_fill(left_out, ignored)
    expected = IGNORING[name]()(*spoilt, target, valid=~left_out)
    assert expected.isfinite()
    assert_close(ignoring(*spoilt, aimed), expected)
    some = torch.tensor([True, False, True, True])
    both = IGNORING[name]()(*spoilt, target, valid=~left_out & some[:, None])
    assert_close(ignoring(*spoilt, aimed, valid=some), both)


def test_a_whole_sample_can_be_ignored() -> None:
    student, teacher = pair(4, 3, 5)
    target = torch.tensor([1, -1, 2, -1])
    rows = KDLoss(ignore_index=-1, reduction="none")(student, teacher, target)
    assert_close(rows[[0, 2]], F.kl_divergence(student, teacher)[[0, 2]])
    assert not rows[[1, 3]].any()


# Many classes


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_thirty_thousand_classes(case: LossCase) -> None:
    """In float32 as in float64, exactly 0 at equality, and never small for being many."""
    student, teacher = torch.randn(2, 3, 30_522, dtype=torch.float64)
    loss = case.make(reduction="none")
    value, gradient = laws.value_and_gradient(loss, student, teacher)
    narrow, narrow_gradient = laws.value_and_gradient(loss, student.float(), teacher.float())
    assert_close(narrow.double(), value, rtol=1e-4, atol=1e-5)
    size = gradient.abs().max().item()
    assert_close(narrow_gradient.double(), gradient, rtol=1e-3, atol=1e-3 * size)
    laws.zero_at_equality(case, teacher.float())


# Forms


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_autocast_keeps_float32(case: LossCase) -> None:
    student, teacher = torch.randn(2, 6, 5)
    expected = case.make()(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        value = case.make()(student, teacher)
        half = case.make()(student.bfloat16(), teacher.bfloat16())
    assert value.dtype == half.dtype == torch.float32
    assert_close(value, expected)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (KDLoss(2.0, skew=0.1), "temperature=2.0, dim=-1, reduction='mean', skew=0.1"),
        (KDLoss(standardize=True, rescale=False), "temperature=1.0, rescale=False, dim=-1, redu"),
        (KDLoss(2.0, learn_temperature=True), "temperature=2.0, learn_temperature=True, dim=-1"),
        (KDLoss(torch.ones(3), ignore_index=-100), "temperature=(3,), dim=-1, ignore_index=-100"),
        (ReverseKDLoss(skew=0.1), "skew=0.1"),
        (JSDLoss(0.3, normalize=True), "beta=0.3, temperature=1.0, dim=-1, reduction='mean', norm"),
        (DKDLoss(), "alpha=1.0, beta=8.0, temperature=1.0"),
        (DISTLoss(), "inter=1.0, intra=1.0, temperature=1.0"),
        (LogitMSELoss(dim=1), "dim=1, reduction='mean'"),
    ],
)  # fmt: skip
def test_reprs_tell_the_options(loss: DistillationLoss, text: str) -> None:
    assert text in repr(loss)


@pytest.mark.parametrize("case", LOSSES, ids=str)
@pytest.mark.parametrize("dim", [1, -3])
def test_classes_may_lie_on_another_axis(case: LossCase, dim: int) -> None:
    student, teacher = torch.randn(2, 2, 5, 3, 4)  # (N, C, H, W)
    last = [logits.movedim(1, -1) for logits in (student, teacher)]
    options: dict[str, Any] = {"reduction": "none"}
    valid = torch.rand(2, 3, 4) < 0.6
    for mask in (None, valid):
        assert_close(
            case.make(dim=dim, **options)(student, teacher, valid=mask),
            case.make(**options)(*last, valid=mask),
        )
