"""Train and evaluate one network, which is one job of the study."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from benchmarks.datasets import Batch, Split, Task, load
from benchmarks.measures import metrics
from benchmarks.methods import ALL, NEEDS_HELD_OUT, Logits, Objective, Run, Settings, task_loss
from benchmarks.models import STUDENT, STUDENTS, TEACHER, Sizes, Towers
from benchmarks.runs import Job, Result, Runs
from msdlosses import Fill, ModalityDropout, Shuffle, TeacherCache

BATCH = 128
MISSING = (0.1, 0.3, 0.5, 0.7, 0.9)  # probabilities that a modality is missing in a test
WRONG = 0.4  # the share of wrong predictions of a corrupted teacher
UNKNOWN = -100


class Regularization(TypedDict):
    word_dropout: float
    dropout: float


def run_teacher(job: Job) -> Result:
    """Train a teacher with modality dropout, and save its predictions for the students."""
    task = _begin(job)
    settings, whole = job["settings"], task.views("full")
    teacher = Towers(task, **TEACHER, **_regularization(settings)).to(job["device"])
    drop = ModalityDropout(whole, settings["drop"])
    weak = [Shuffle(*task.maskers[name].entries) for name in job.get("weak", ())]

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        inputs: Mapping[str, Any] = batch
        for shuffle in weak:  # nothing can be learned from the inputs of other samples
            inputs = shuffle(inputs)
        logits = whole(model, drop(inputs))["full"]
        return task_loss(logits, target, settings["smoothing"])

    seconds = train(teacher, objective, task.train, job)
    outcome = result(teacher, task, job, seconds)
    save_predictions(teacher, task, job)
    return outcome


def save_predictions(teacher: Towers, task: Task, job: Job) -> None:
    """Cache the teacher's logits on the training data, and save what the cache does not hold.

    That is its features on the training data, and its logits on the data of the evaluation.
    """
    train, evaluated = (part.to(job["device"]) for part in (task.train, getattr(task, job["part"])))
    TeacherCache.build(
        teacher.eval(),
        task.teacher_views(),
        train.batches(512),
        job["cache"],
        fingerprint=job["fingerprint"],
    )
    with torch.no_grad():
        batches = [_inputs(batch) for batch, _ in train.batches(512)]
        features = torch.cat([teacher.fuse(**teacher.towers(**inputs)) for inputs in batches])
        logits = _logits(teacher, task, evaluated)
    torch.save({"features": features, "logits": logits}, extras_path(job))


def extras_path(job: Job) -> Path:
    """Return the file with what a teacher's cache does not hold."""
    return Path(f"{job['cache']}.pt")


def is_cached(job: Job) -> bool:
    try:
        TeacherCache.open(job["cache"], fingerprint=job["fingerprint"])
    except (OSError, ValueError):
        return False
    return extras_path(job).exists()


def missing_teachers(runs: Runs, teachers: Iterable[Job]) -> list[Job]:
    """Return the jobs without results or without a cache, after deleting what is left of it."""
    missing = [job for job in teachers if not runs.has(job) or not is_cached(job)]
    for job in missing:
        shutil.rmtree(job["cache"], ignore_errors=True)
    return missing


def run_student(job: Job) -> Result:
    """Train a student with one of the methods."""
    task = _begin(job)
    method, settings = job["method"], job["settings"]
    student = Towers(task, **_sizes(job), **_regularization(settings)).to(job["device"])
    cache = TeacherCache.open(job["cache"], fingerprint=job["fingerprint"])
    extras = torch.load(extras_path(job), map_location=job["device"], weights_only=True)
    split, held_out = task.train, task.train
    if "labelled" in job:
        split = partly_labeled(split, job["labelled"])
    if method in NEEDS_HELD_OUT:
        order = torch.randperm(len(split))
        cut = int(settings["held_out"] * len(split))
        split, held_out = split.items(order[cut:]), split.items(order[:cut])
    teacher: Callable[[Tensor], Logits] = cache.__getitem__
    if job.get("corrupted"):
        logits, _ = corrupt(cache, len(task.train), task.classes)
        teacher = partial(select_rows, logits)
    run = Run(
        student=student,
        task=task,
        teacher=teacher,
        features=lambda index: extras["features"][index],
        held_out=held_out.to(job["device"]),
        settings=settings,
        steps=_steps(job, split),
        once=job.get("once", False),
    )
    objective = ALL[method](run)
    seconds = train(student, objective, split, job, extra_parameters=run.learned.parameters())
    return result(student, task, job, seconds, extras["logits"])


def train(
    network: Towers,
    objective: Objective,
    split: Split,
    job: Job,
    extra_parameters: Iterable[Parameter] = (),
) -> float:
    """Train with AdamW and one cycle of the learning rate, and return the processor's seconds."""
    settings, split = job["settings"], split.to(job["device"])
    rate = settings["rate"]
    parameters = [*network.parameters(), *extra_parameters]
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=settings["decay"], fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=_steps(job, split))
    start = time.process_time()
    network.train()
    for _ in range(job["epochs"]):
        for batch, target in split.batches(BATCH, shuffle=True):
            loss = objective(network, batch, target)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return time.process_time() - start


def partly_labeled(split: Split, share: float) -> Split:
    """Return the items with labels for only a share of them."""
    unlabeled = torch.randperm(len(split))[int(share * len(split)) :]
    target = split.target.clone()
    target[unlabeled] = UNKNOWN
    return Split(split.index, split.inputs, target)


def corrupt(cache: TeacherCache, size: int, classes: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return a teacher's logits with the classes of some samples rotated, and which these are."""
    wrong = torch.rand(size) < WRONG
    shift = torch.where(wrong, torch.randint(1, classes, (size,)), 0)
    columns = (torch.arange(classes) + shift[:, None]) % classes
    logits = cache[torch.arange(size)]
    return {view: values.gather(1, columns) for view, values in logits.items()}, wrong


def select_rows(logits: Logits, index: Tensor) -> dict[str, Tensor]:
    return {view: values[index] for view, values in logits.items()}


def result(
    network: Towers, task: Task, job: Job, seconds: float, teacher: Logits | None = None
) -> Result:
    """Return a job's metrics on the part of the data that it names."""
    network.eval()
    split = getattr(task, job["part"]).to(job["device"])
    with torch.no_grad():
        logits = _logits(network, task, split)
    views = {
        view: metrics(logits[view], split.target, None if teacher is None else teacher[view])
        for view in task.views().names
    }
    return {
        "job": {name: value for name, value in job.items() if name != "cache"},  # a local path
        "views": views,
        "missing": _missing(network, task, split, job["seed"]),
        "validation": _validation(network, task, job),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(seconds, 2),
    }


def _logits(network: Towers, task: Task, split: Split) -> dict[str, Tensor]:
    views = task.views()
    batches = [views(network, batch) for batch, _ in split.batches(512)]
    return {view: torch.cat([logits[view] for logits in batches]) for view in views.names}


def _missing(network: Towers, task: Task, split: Split, seed: int) -> dict[str, float]:
    """Return the scores with random modalities missing, the same ones for all methods of a seed."""
    scores, whole = {}, task.views("full")
    for share in MISSING:
        drop = ModalityDropout(whole, share)
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            logits = [whole(network, drop(batch))["full"] for batch, _ in split.batches(512)]
        scores[f"{share:g}"] = metrics(torch.cat(logits), split.target)["accuracy"]
    return scores


def _validation(network: Towers, task: Task, job: Job) -> float:
    """Return the score on the whole input of the validation data."""
    split, whole = task.validation.to(job["device"]), task.views("full")
    with torch.no_grad():
        logits = [whole(network, batch)["full"] for batch, _ in split.batches(512)]
    score: float = metrics(torch.cat(logits), split.target)["accuracy"]
    return score


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: entry for name, entry in batch.items() if name != "index"}


def _steps(job: Job, split: Split) -> int:
    epochs: int = job["epochs"]
    return epochs * -(-len(split) // BATCH)


def _sizes(job: Job) -> Sizes:
    sizes, factor = STUDENTS.get(job["dataset"], STUDENT), job.get("size", 1)
    return {
        "channels": round(factor * sizes["channels"]),
        "embedding": round(factor * sizes["embedding"]),
        "width": round(factor * sizes["width"]),
    }


def _begin(job: Job) -> Task:
    torch.set_num_threads(1)  # jobs run in parallel
    torch.manual_seed(job["seed"])
    task = load(job["dataset"], job["seed"])
    if "absent" not in job:
        return task
    return replace(task, maskers={**task.maskers, "image": Fill(pixels=job["absent"])})


def _regularization(settings: Settings) -> Regularization:
    return {
        "word_dropout": settings.get("word_dropout", 0.0),
        "dropout": settings.get("dropout", 0.0),
    }
