"""The full study: its measures against oracles, its methods, and that every question runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

pytest.importorskip("rich", reason="needs the extra `study`")
pytest.importorskip("matplotlib", reason="needs the extra `study`")

from benchmarks import full, measures, outcomes, pictures, verdicts
from benchmarks.datasets import DATASETS, load
from benchmarks.methods import ALL, Fading, Run, task_loss
from benchmarks.models import STUDENT, Towers
from benchmarks.runs import Runs, read
from benchmarks.training import UNKNOWN, corrupted, partly_labelled
from benchmarks.trials import TRIALS

SETTINGS = {
    "rate": 0.02, "decay": 0.1, "word_dropout": 0.0, "dropout": 0.0, "mix": 0.9,
    "temperature": 2.0, "drop": 0.3, "smoothing": 0.1, "alpha": 1.0, "single": 0.5,
    "feature": 0.1, "beta": 1.0, "look_ahead": 0.1, "meta_rate": 0.01, "held_out": 0.1, "every": 1,
}  # fmt: skip


def test_average_precision_is_that_of_the_ranking() -> None:
    """Against the definition: at each relevant item, the share of relevant ones up to it."""
    generator = np.random.default_rng(0)
    scores, target = generator.normal(size=(30, 7)), generator.random((30, 7)) < 0.2
    target[:, 0] = False  # a label that nothing has is left out
    expected = []
    for column in range(1, 7):
        ranked = target[np.argsort(-scores[:, column]), column]
        expected.append(np.mean([ranked[: i + 1].mean() for i in np.flatnonzero(ranked)]))
    found = measures.mean_average_precision(
        torch.tensor(scores), torch.tensor(target, dtype=torch.float)
    )
    assert found == pytest.approx(np.mean(expected))


def test_calibration_error_by_hand() -> None:
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.55, 0.55])
    right = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    # four at .9 of which .75 are right, two at .55 of which .5 are
    assert measures.calibration_error(confidence, right) == pytest.approx(
        (4 * 0.15 + 2 * 0.05) / 6, abs=1e-6
    )


def test_a_student_that_equals_the_teacher_is_as_near_as_can_be() -> None:
    logits, target = torch.randn(20, 5), torch.randint(5, (20,))
    found = measures.metrics(logits, target, logits)
    assert (found["kl"], found["agreement"]) == (0.0, 1.0)


@pytest.mark.parametrize("several", [False, True])
def test_what_has_no_label_does_not_count(several: bool) -> None:
    logits = torch.randn(6, 4)
    target = torch.rand(6, 4).round() if several else torch.randint(4, (6,))
    forgotten = target.clone()
    forgotten[3:] = UNKNOWN
    assert_close(task_loss(logits, forgotten), task_loss(logits[:3], target[:3]))
    forgotten[:] = UNKNOWN
    assert task_loss(logits, forgotten) == 0


def test_labels_are_forgotten_and_items_are_not() -> None:
    split = load("emoji", 0).train
    some = partly_labelled(split, 0.1)
    assert (some.target >= 0).sum() == len(split) // 10
    assert torch.equal(some.index, split.index)
    known = some.target >= 0
    assert torch.equal(some.target[known], split.target[known])


def test_a_corrupted_teacher_says_the_same_of_other_classes() -> None:
    cache = {v: torch.randn(50, 4) for v in ("full", "image")}

    class Cache:
        def __getitem__(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
            return {view: logits[index] for view, logits in cache.items()}

    found, wrong = corrupted(Cache(), 50, 4)
    for view, logits in cache.items():
        moved = (found[view] != logits).any(1)
        assert torch.equal(moved, wrong)
        assert_close(found[view].sort(1).values, logits.sort(1).values)


def make_run(method: str, dataset: str = "emoji", **more: Any) -> tuple[Run, Any]:
    task = load(dataset, 0)
    student = Towers(task, **STUDENT)
    names = task.teacher_views().names
    teacher = {view: torch.randn(len(task.train), task.classes) for view in names}
    run = Run(
        student=student,
        task=task,
        teacher=lambda index: {view: logits[index] for view, logits in teacher.items()},
        features=lambda index: torch.randn(len(task.train), 48)[index],
        held_out=task.train,
        settings=SETTINGS,
        steps=4,
        **more,
    )
    return run, next(task.train.batches(32, shuffle=True))


@pytest.mark.parametrize("dataset", ["emoji", "emoji-keywords"])
@pytest.mark.parametrize("method", ALL)
def test_every_method_teaches_every_part_of_the_student(method: str, dataset: str) -> None:
    if dataset == "emoji-keywords" and "DKD" in method:
        pytest.skip("not defined for several labels")
    run, (batch, target) = make_run(method, dataset, once=True)
    loss = ALL[method](run)(run.student, batch, target)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.student.parameters())
    assert all(p.grad is not None for p in run.learned.parameters())


@pytest.mark.parametrize("method", full.QUESTIONS["labelled"].methods)
def test_methods_that_are_asked_with_few_labels_take_unknown_ones(method: str) -> None:
    run, (batch, target) = make_run(method)
    target[::2] = UNKNOWN
    assert ALL[method](run)(run.student, batch, target).isfinite()


@pytest.mark.parametrize("method", ["MSD equal", "MSD saliency", "MSD learned"])
def test_towers_that_run_once_change_no_loss(method: str) -> None:
    losses = []
    for once in (False, True):
        torch.manual_seed(0)
        run, (batch, target) = make_run(method, once=once)
        losses.append(ALL[method](run)(run.student, batch, target))
    assert_close(*losses)


def test_conflict_free_gradients_oppose_no_term() -> None:
    run, (batch, target) = make_run("MSD conflict-free")
    student = run.student
    ALL["MSD conflict-free"](run)(student, batch, target).backward()
    step = torch.cat([p.grad.flatten() for p in student.parameters()])
    logits, teacher = run.task.views()(student, batch), run.teacher(batch["index"])
    for view in ("image", "text"):  # that on the whole input has the labels' as well
        term = nn.KLDivLoss(reduction="batchmean")(
            (logits[view] / 2).log_softmax(-1), (teacher[view] / 2).softmax(-1)
        )
        gradient = torch.autograd.grad(
            term, list(student.parameters()), retain_graph=True, materialize_grads=True
        )
        product = torch.cat([g.flatten() for g in gradient]) @ step
        assert product > -1e-4 * step.norm()


def test_fading_weights_end_at_nothing() -> None:
    weighting, names = Fading(2), ("full", "image")
    seen = [weighting(torch.zeros(1, 2), {}, names=names).tolist() for _ in range(4)]
    assert seen == [[1, 1], [1, 0.5], [1, 0], [1, 0]]


def test_a_line_that_was_cut_short_is_no_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "a" / "runs.jsonl")
    jobs = [{"seed": seed, "cache": "anywhere"} for seed in range(2)]
    runs.extend({"job": {"seed": job["seed"]}, "value": 1} for job in jobs)
    with runs.path.open("a") as file:
        file.write('{"job": {"se')
    again = Runs(runs.path)
    assert all(again.has(job) for job in jobs)
    again.extend([{"job": {"seed": 2}}])
    assert [run["job"]["seed"] for run in read(runs.path)] == [0, 1, 2]


def test_every_question_runs_and_a_second_time_finds_all_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of small methods and one epoch each, in this process."""

    class Here:
        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

    ran: list[str] = []

    def run_all(_: Here, what: str, function: Any, jobs: Any) -> Any:
        for job in jobs:
            ran.append(what)
            yield function(job)

    settings = {"teacher": SETTINGS, "KD": SETTINGS, "MSD equal": SETTINGS}
    settings |= {"MSD population": SETTINGS, "MSD learned": SETTINGS}
    monkeypatch.setattr(full, "settings_of", lambda dataset: settings)
    monkeypatch.setattr(full, "pool", lambda workers: Here())
    monkeypatch.setattr(full, "run_all", run_all)
    monkeypatch.setattr(full, "EPOCHS", {"emoji": 1})
    tiny = full.Question(("KD", "MSD equal"), "tiny", ("as it is", "temperature 1"))
    white = "no picture is white, not black"
    blind = full.Question(("MSD equal",), "blind", ("as it was", white))
    single = full.Question(("MSD population",), "single", (0.0, 0.5))
    slower = dict.fromkeys(full.QUESTIONS["shared"].methods, SETTINGS | {"rate": 0.01})
    monkeypatch.setattr(full, "shared", lambda dataset: [slower])
    learning = full.Question(("MSD learned",), "learning", ("equal weights", "look-ahead 1"))
    trials = {"tiny": tiny, "blind": blind, "learning": learning}
    asked = {**full.QUESTIONS, **trials, "population": single}
    monkeypatch.setattr(full, "QUESTIONS", asked)
    full.run(tmp_path, ["emoji"], list(asked), seeds=1)
    runs = read(tmp_path / "emoji" / "full.jsonl")
    assert len(runs) == len({json.dumps(run["job"], sort_keys=True) for run in runs}) == len(ran)
    assert {what.partition(",")[0] for what in ran} == set(full.QUESTIONS)
    assert not any("density" in view for run in runs for view in run["views"].values())
    ran.clear()
    full.run(tmp_path, ["emoji"], list(asked), seeds=1)
    del settings["MSD population"]
    full.run(tmp_path, ["emoji"], ["population"], seeds=2)  # of a method that is not tuned
    assert ran == []


@pytest.mark.parametrize("name", DATASETS)
def test_a_method_is_asked_only_where_it_has_settings(name: str) -> None:
    chosen = full.settings_of(name)
    for question in full.QUESTIONS:
        for job in full.of(question, name, 2, Path()):
            assert job["method"] in chosen or question in TRIALS
            assert job["part"] == ("validation" if question in TRIALS else "test")


def test_a_verdict_is_where_the_interval_lies() -> None:
    assert verdicts.verdict(np.array([1.0, 1.2, 0.9])) == "shown"
    assert verdicts.verdict(np.array([1.0, -1.2, 0.9])) == "not shown"
    assert verdicts.verdict(np.array([-1.0, -1.2, -0.9])) == "opposite"


def test_differences_are_those_of_seeds_that_both_have() -> None:
    one = {seed: {"score": float(seed)} for seed in (0, 2, 3)}
    other = {seed: {"score": 0.5} for seed in (0, 1, 3)}
    ahead = outcomes.gain(one, other, lambda run: run["score"])
    assert ahead.tolist() == [-0.5, 2.5]


def test_the_best_is_chosen_by_validation_and_not_by_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"teacher": SETTINGS, "KD": SETTINGS, "FitNet": SETTINGS}
    monkeypatch.setattr(full, "settings_of", lambda dataset: settings)
    monkeypatch.setattr(outcomes, "RESULTS", tmp_path)
    runs = Runs(tmp_path / "emoji" / "full.jsonl")
    for job in full.of("methods", "emoji", 2, Path()):
        told = {key: value for key, value in job.items() if key != "cache"}
        first = job["method"] == "KD"
        views = {"full": {"accuracy": 0.1 if first else 0.9}}
        runs.extend([{"job": told, "views": views, "validation": 0.8 if first else 0.7}])
    assert outcomes.best(outcomes.Found("emoji").methods) == "KD"


def test_a_question_is_answered_once_all_its_seeds_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dict.fromkeys(("teacher", "KD", "MSD equal"), SETTINGS)
    monkeypatch.setattr(full, "settings_of", lambda dataset: settings)
    monkeypatch.setattr(outcomes, "RESULTS", tmp_path)
    runs = Runs(tmp_path / "emoji" / "full.jsonl")
    *jobs, last = full.of("size", "emoji", 2, Path())
    runs.extend({"job": job} for job in jobs)
    assert outcomes.Found("emoji").rows("size")
    assert outcomes.Found("emoji").answered("size") == {}
    runs.extend([{"job": last}])
    assert len(outcomes.Found("emoji").answered("size")) == 4


@pytest.mark.parametrize("name", DATASETS)
def test_both_pictures_of_a_data_set_are_drawn(name: str, tmp_path: Path) -> None:
    pictures.draw(name, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"full.png", "questions.png"}
