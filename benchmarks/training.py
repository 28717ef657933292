"""Training and testing one network; one job of the study."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from benchmarks.datasets import Split, Task, load
from benchmarks.measures import metrics
from benchmarks.methods import ALL, NEEDS_HELD_OUT, Objective, Run, Settings, task_loss
from benchmarks.models import STUDENT, STUDENTS, TEACHER, Towers
from benchmarks.runs import Job, Runs
from msdlosses import Fill, ModalityDropout, Shuffle, TeacherCache

BATCH = 128
MISSING = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the modalities that a test lacks
WRONG = 0.4  # of a corrupted teacher's predictions
UNKNOWN = -100


def run_teacher(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train a teacher under modality dropout, keep what it says of the training and test data."""
    task = _begin(job)
    settings, whole = job["settings"], task.views("full")
    teacher = Towers(task, **TEACHER, **_regularisation(settings)).to(job["device"])
    drop = ModalityDropout(whole, settings["drop"])
    weak = [Shuffle(*task.maskers[name].entries) for name in job.get("weak", ())]

    def objective(model: nn.Module, batch: Mapping[str, Tensor], target: Tensor) -> Tensor:
        for mask in weak:  # what others' inputs say of a sample can't be learned from
            batch = mask(batch)
        logits = whole(model, drop(batch))["full"]
        return task_loss(logits, target, settings["smoothing"])

    seconds = train(teacher, objective, task.train, job)
    found = result(teacher, task, job, seconds)
    keep(teacher, task, job)
    return found


def keep(teacher: nn.Module, task: Task, job: Mapping[str, Any]) -> None:
    """Its logits on the training part in a cache; beside it features, and logits for a judge."""
    train, judged = (part.to(job["device"]) for part in (task.train, getattr(task, job["part"])))
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
        logits = _logits(teacher, task, judged)
    torch.save({"features": features, "logits": logits}, beside(job))


def beside(job: Mapping[str, Any]) -> Path:
    """The file with what a teacher says that its cache does not hold."""
    return Path(f"{job['cache']}.pt")


def cached(job: Mapping[str, Any]) -> bool:
    try:
        TeacherCache.open(job["cache"], fingerprint=job["fingerprint"])
    except (OSError, ValueError):
        return False
    return beside(job).exists()


def untaught(runs: Runs, teachers: Iterable[Job]) -> list[Job]:
    """Those that have not been run, or whose caches are gone; nothing of these is left."""
    missing = [job for job in teachers if not runs.has(job) or not cached(job)]
    for job in missing:
        shutil.rmtree(job["cache"], ignore_errors=True)
    return missing


def run_student(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train a student by one of the methods."""
    task = _begin(job)
    method, settings = job["method"], job["settings"]
    student = Towers(task, **_size(job), **_regularisation(settings)).to(job["device"])
    cache = TeacherCache.open(job["cache"], fingerprint=job["fingerprint"])
    known = torch.load(beside(job), map_location=job["device"], weights_only=True)
    split, held_out = task.train, task.train
    if "labelled" in job:
        split = partly_labelled(split, job["labelled"])
    if method in NEEDS_HELD_OUT:
        order = torch.randperm(len(split))
        cut = int(settings["held_out"] * len(split))
        split, held_out = split.items(order[cut:]), split.items(order[:cut])
    teacher = cache.__getitem__
    if job.get("corrupted"):
        exchanged, _ = corrupted(cache, len(task.train), task.classes)
        teacher = partial(rows_of, exchanged)
    run = Run(
        student=student,
        task=task,
        teacher=teacher,
        features=lambda index: known["features"][index],
        held_out=held_out.to(job["device"]),
        settings=settings,
        steps=_steps(job, split),
        once=job.get("once", False),
    )
    objective = ALL[method](run)
    seconds = train(student, objective, split, job, also=run.learned.parameters())
    return result(student, task, job, seconds, known["logits"])


def train(
    network: nn.Module,
    objective: Objective,
    split: Split,
    job: Mapping[str, Any],
    also: Iterable[Parameter] = (),
) -> float:
    """Train by AdamW with one cycle of the learning rate; returns the processor's seconds."""
    settings, split = job["settings"], split.to(job["device"])
    rate = settings["rate"]
    optimizer = torch.optim.AdamW(
        [*network.parameters(), *also], rate, weight_decay=settings["decay"], fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=_steps(job, split))
    start = time.process_time()
    network.train()
    for _ in range(job["epochs"]):
        for batch, target in split.batches(BATCH, shuffle=True):
            loss = objective(network, batch, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return time.process_time() - start


def partly_labelled(split: Split, share: float) -> Split:
    """The labels of some items are forgotten."""
    forgotten = torch.randperm(len(split))[int(share * len(split)) :]
    target = split.target.clone()
    target[forgotten] = UNKNOWN
    return Split(split.index, split.inputs, target)


def corrupted(cache: TeacherCache, size: int, classes: int) -> tuple[dict[str, Tensor], Tensor]:
    """The teacher's logits, in which some samples' classes have changed places; and which."""
    wrong = torch.rand(size) < WRONG
    shift = torch.where(wrong, torch.randint(1, classes, (size,)), 0)
    columns = (torch.arange(classes) + shift[:, None]) % classes
    logits = cache[torch.arange(size)]
    return {view: values.gather(1, columns) for view, values in logits.items()}, wrong


def rows_of(logits: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {view: values[index] for view, values in logits.items()}


def result(
    network: nn.Module,
    task: Task,
    job: Mapping[str, Any],
    seconds: float,
    teacher: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """What a job reports: the metrics on the part that it was asked to be judged on."""
    network.eval()
    split = getattr(task, job["part"]).to(job["device"])
    with torch.no_grad():
        logits = _logits(network, task, split)
    judged = {
        view: metrics(logits[view], split.target, None if teacher is None else teacher[view])
        for view in task.views().names
    }
    told = {name: value for name, value in job.items() if name != "cache"}  # a path of this machine
    return {
        "job": told,
        "views": judged,
        "missing": _missing(network, task, split, job["seed"]),
        "validation": _validation(network, task, job),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(seconds, 2),
    }


def _logits(network: nn.Module, task: Task, split: Split) -> dict[str, Tensor]:
    views = task.views()
    found = [views(network, batch) for batch, _ in split.batches(512)]
    return {view: torch.cat([logits[view] for logits in found]) for view in views.names}


def _missing(network: nn.Module, task: Task, split: Split, seed: int) -> dict[str, float]:
    """The score where modalities are missing at random, alike for all methods of a seed."""
    scores, whole = {}, task.views("full")
    for share in MISSING:
        drop = ModalityDropout(whole, share)
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            found = [whole(network, drop(batch))["full"] for batch, _ in split.batches(512)]
        scores[f"{share:g}"] = metrics(torch.cat(found), split.target)["accuracy"]
    return scores


def _validation(network: nn.Module, task: Task, job: Mapping[str, Any]) -> float:
    """The score on the whole input of the part by which methods are chosen."""
    split, whole = task.validation.to(job["device"]), task.views("full")
    with torch.no_grad():
        found = [whole(network, batch)["full"] for batch, _ in split.batches(512)]
    score: float = metrics(torch.cat(found), split.target)["accuracy"]
    return score


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: entry for name, entry in batch.items() if name != "index"}


def _steps(job: Mapping[str, Any], split: Split) -> int:
    return job["epochs"] * -(-len(split) // BATCH)


def _size(job: Mapping[str, Any]) -> dict[str, int]:
    sizes = STUDENTS.get(job["dataset"], STUDENT)
    return {name: round(job.get("size", 1) * size) for name, size in sizes.items()}


def _begin(job: Mapping[str, Any]) -> Task:
    torch.set_num_threads(1)  # the jobs run side by side
    torch.manual_seed(job["seed"])
    task = load(job["dataset"], job["seed"])
    if "absent" not in job:
        return task
    return replace(task, maskers={**task.maskers, "image": Fill(pixels=job["absent"])})


def _regularisation(settings: Settings) -> dict[str, float]:
    return {name: settings[name] for name in ("word_dropout", "dropout") if name in settings}
