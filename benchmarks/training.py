"""Training and testing one network; one job of the study."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets import Split, Task, load
from benchmarks.methods import METHODS, NEEDS_HELD_OUT, VIEWS, WHOLE, Objective, Run, Settings
from benchmarks.models import STUDENT, TEACHER, TwoTowers
from msdlosses import ModalityDropout, TeacherCache

BATCH = 128
BINS = 20  # of the histograms of the probability that a network gives the right class


def run_teacher(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train a teacher under modality dropout, keep its logits on the training part."""
    task = _begin(job)
    settings = job["settings"]
    teacher = TwoTowers(task, **TEACHER, **_regularisation(settings)).to(job["device"])
    drop = ModalityDropout(WHOLE, settings["drop"])

    def objective(model: nn.Module, batch: Mapping[str, Tensor], target: Tensor) -> Tensor:
        logits = WHOLE(model, drop(batch))["full"]
        return F.cross_entropy(logits, target, label_smoothing=settings["smoothing"])

    seconds = train(teacher, objective, task.train, job)
    batches = task.train.to(job["device"]).batches(512)
    TeacherCache.build(teacher, VIEWS, batches, job["cache"], fingerprint=job["fingerprint"])
    return result(teacher, task, job, seconds)


def run_student(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train a student by one of the methods."""
    task = _begin(job)
    method, settings = job["method"], job["settings"]
    student = TwoTowers(task, **STUDENT, **_regularisation(settings)).to(job["device"])
    cache = TeacherCache.open(job["cache"], fingerprint=job["fingerprint"])
    split, held_out = task.train, task.train
    if method in NEEDS_HELD_OUT:
        order = torch.randperm(len(split))
        cut = int(settings["held_out"] * len(split))
        split, held_out = split.items(order[cut:]), split.items(order[:cut])
    run = Run(student, cache, held_out.to(job["device"]), task.classes, settings)
    seconds = train(student, METHODS[method](run), split, job)
    return result(student, task, job, seconds)


def train(network: nn.Module, objective: Objective, split: Split, job: Mapping[str, Any]) -> float:
    """Train by AdamW with one cycle of the learning rate; returns the seconds it took."""
    settings, split = job["settings"], split.to(job["device"])
    rate, steps = settings["rate"], job["epochs"] * -(-len(split) // BATCH)
    optimizer = torch.optim.AdamW(
        network.parameters(), rate, weight_decay=settings["decay"], fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    start = time.perf_counter()
    network.train()
    for _ in range(job["epochs"]):
        for batch, target in split.batches(BATCH, shuffle=True):
            loss = objective(network, batch, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start


def result(
    network: nn.Module, task: Task, job: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """What a job reports: the metrics on the part that it was asked to be judged on."""
    network.eval()
    split = getattr(task, job["part"])
    with torch.no_grad():
        batches = split.to(job["device"]).batches(512)
        logits = [VIEWS(network, batch) for batch, _ in batches]
    metrics = {
        view: _metrics(torch.cat([views[view] for views in logits]).cpu(), split.target)
        for view in VIEWS.names
    }
    weights = sum(p.numel() for p in network.parameters())
    told = {name: value for name, value in job.items() if name != "cache"}  # a path of this machine
    return {"job": told, "views": metrics, "parameters": weights, "seconds": round(seconds, 2)}


def _metrics(logits: Tensor, target: Tensor) -> dict[str, Any]:
    right = (logits.argmax(-1) == target).float().mean()
    chance = logits.softmax(-1).gather(1, target[:, None])
    density = torch.histc(chance, BINS, 0, 1) / len(chance)
    return {
        "accuracy": round(right.item(), 6),
        "nll": round(F.cross_entropy(logits, target).item(), 6),
        "density": [round(share, 5) for share in density.tolist()],
    }


def _begin(job: Mapping[str, Any]) -> Task:
    torch.set_num_threads(1)  # the jobs run side by side
    torch.manual_seed(job["seed"])
    return load(job["dataset"], job["seed"])


def _regularisation(settings: Settings) -> dict[str, float]:
    return {name: settings[name] for name in ("word_dropout", "dropout")}
