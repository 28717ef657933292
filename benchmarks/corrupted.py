"""Do learned weights identify the wrong predictions of a teacher?

    python -m benchmarks.corrupted

A teacher is trained on hanzi as in the study. In 40 % of its predictions on the training data, the
classes are then rotated, equally in all views. Students learn with equal weights, with learned
weights, and, as an upper bound, from the clean predictions only. The command prints a table, and
writes JSON and a picture of the weights to --out. The hyperparameters are those of equal weights
in the study, and were not tuned for wrong predictions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks import measure
from benchmarks.datasets import IMAGE_AND_TEXT, Batch, Split, Task, load, make_views
from benchmarks.full import TEACHER, settings_of
from benchmarks.jobs import cores, pool, run_all, save
from benchmarks.methods import EQUAL
from benchmarks.models import STUDENT, Towers
from benchmarks.report import paired, spread
from benchmarks.runs import RESULTS, Job, Result
from benchmarks.tables import plain
from benchmarks.training import BATCH, WRONG, corrupt, run_teacher
from msdlosses import KDLoss, MetaLearner, MSDLoss, TeacherCache, WeightNet
from msdlosses.plot import COLORS

SETTINGS = settings_of("hanzi")
HELD_OUT, META_RATE, BINS = 0.1, 1e-3, 25
VIEWS = make_views(IMAGE_AND_TEXT)
WHOLE = make_views(IMAGE_AND_TEXT, "full")
LEARNED, CLEAN = "MSD learned", "sound predictions alone"
METHODS = (EQUAL, LEARNED, CLEAN)


def distill(job: Job) -> Result:
    """Train a student, and return its accuracies and statistics of its learned weights, if any."""
    torch.set_num_threads(1)
    task = load("hanzi", job["seed"])
    torch.manual_seed(job["seed"])
    teacher, wrong = corrupt(TeacherCache.open(job["cache"]), len(task.train), task.classes)
    distiller = Distiller(task, job["method"], teacher, wrong)
    order = torch.randperm(len(task.train))
    cut = int(HELD_OUT * len(order)) if distiller.learns else 0
    split, held_out = task.train.items(order[cut:]), endless(task.train.items(order[:cut]))
    steps = job["epochs"] * -(-len(split) // BATCH)
    rate = OneCycleLR(distiller.optimizer, SETTINGS[EQUAL]["rate"], total_steps=steps)
    for batch, target in islice(endless(split), steps):
        distiller.step(batch, target, held_out)
        rate.step()
    public = {name: value for name, value in job.items() if name != "cache"}  # a local path
    result = {"job": public, "views": accuracies(distiller.student, task.test)}
    if distiller.learns:
        result["weights"] = separation(distiller.weighting, teacher, task.train, wrong)
    return result


class Distiller:
    """A student, and its training step with one of the methods."""

    def __init__(
        self, task: Task, method: str, teacher: Mapping[str, Tensor], wrong: Tensor
    ) -> None:
        settings = SETTINGS[EQUAL]
        self.student = Towers(
            task,
            **STUDENT,
            word_dropout=settings["word_dropout"],
            dropout=settings["dropout"],
        )
        self.optimizer = AdamW(self.student.parameters(), weight_decay=settings["decay"])
        self.weighting = WeightNet(VIEWS.names, num_classes=task.classes)
        self.learns, self.clean_only = method == LEARNED, method == CLEAN
        self.msd = MSDLoss(KDLoss(settings["temperature"]), self.weighting if self.learns else None)
        adam = Adam(self.weighting.parameters(), META_RATE)
        self.learner = MetaLearner(self.student, self.optimizer, self.weighting, adam)
        self.teacher, self.wrong = teacher, wrong

    def step(self, batch: Batch, target: Tensor, held_out: Iterator[tuple[Batch, Tensor]]) -> None:
        teacher = {view: logits[batch["index"]] for view, logits in self.teacher.items()}
        clean = ~self.wrong[batch["index"]][:, None].expand(-1, len(teacher))
        valid = clean if self.clean_only else None

        def inner(model: nn.Module) -> Tensor:
            return self.msd(VIEWS(model, batch), teacher, target, valid=valid)

        if self.learns:
            held_out_batch, labels = next(held_out)
            self.learner.step(
                inner, lambda model: F.cross_entropy(WHOLE(model, held_out_batch)["full"], labels)
            )
            return
        self.optimizer.zero_grad()
        torch.autograd.backward(inner(self.student))
        self.optimizer.step()


def endless(split: Split) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches forever, and shuffle them in each epoch."""
    while True:
        yield from split.batches(BATCH, shuffle=True)


def accuracies(student: nn.Module, split: Split) -> dict[str, float]:
    """Return the accuracy on each view."""
    student.eval()
    with torch.no_grad():
        batches = [VIEWS(student, batch) for batch, _ in split.batches(512)]
    logits = {v: torch.cat([views[v] for views in batches]) for v in VIEWS.names}
    return {v: (x.argmax(-1) == split.target).double().mean().item() for v, x in logits.items()}


def separation(
    weighting: WeightNet, teacher: Mapping[str, Tensor], split: Split, wrong: Tensor
) -> dict[str, Any]:
    """Return the histograms of the weights of clean and wrong predictions, by view."""
    terms = torch.zeros(len(split), len(VIEWS.names))
    with torch.no_grad():
        weights = weighting(terms, teacher, split.target, names=VIEWS.names)
    by_view = {}
    for view, column in zip(VIEWS.names, weights.unbind(1), strict=True):
        low, high = column[wrong], column[~wrong]
        top = float(column.max())
        shares = [torch.histc(part, BINS, 0, top) / len(part) for part in (high, low)]
        by_view[view] = {
            "area": round((low[:, None] < high).double().mean().item(), 6),
            "top": round(top, 4),
            "sound": [round(share, 5) for share in shares[0].tolist()],
            "wrong": [round(share, 5) for share in shares[1].tolist()],
        }
    return by_view


def make_table(runs: list[Result]) -> Table:
    """Return the accuracies, and the gain over equal weights."""
    table = Table(box=SIMPLE_HEAD, title=f"{WRONG:.0%} of the teacher's predictions are wrong")
    table.add_column("method")
    for title in ("whole input", "image alone", "text alone", "whole input, ahead of equal"):
        table.add_column(title, justify="right")
    by_method = {m: [run for run in runs if run["job"]["method"] == m] for m in METHODS}
    values = {
        (method, view): np.array([run["views"][view] for run in results])
        for method, results in by_method.items()
        for view in VIEWS.names
    }
    for method in METHODS:
        gain = 100 * (values[method, "full"] - values[EQUAL, "full"])
        ahead = "" if method == EQUAL or len(gain) < 2 else paired(gain)
        table.add_row(method, *(spread(100 * values[method, v]) for v in VIEWS.names), ahead)
    areas = [w["area"] for run in by_method[LEARNED] for w in run["weights"].values()]
    table.caption = (
        "accuracy in %, mean ± standard deviation; paired mean ± half of the 95 % interval, seeds "
        f"won. Area under the curve of the learned weights: {min(areas):.3f} or more"
    )
    return table


def text(content: Mapping[str, Any]) -> str:
    """Return the table of a run, from its JSON."""
    return plain([make_table(content["runs"])], measure.WIDTH)


def picture(runs: list[Result], path: Path) -> None:
    """Draw the weights of clean and wrong predictions, by view, for the first seed."""
    weights = next(run["weights"] for run in runs if "weights" in run)
    figure, axes = plt.subplots(1, len(weights), figsize=(11, 3), layout="constrained")
    titles = ("whole input", "image alone", "text alone")
    for axis, title, shares in zip(axes, titles, weights.values(), strict=True):
        edges = np.linspace(0, shares["top"], BINS + 1)
        for kind, color, hatch in (("sound", COLORS[0], ""), ("wrong", COLORS[1], "//")):
            axis.stairs(
                shares[kind], edges, label=kind, color=color, fill=True, alpha=0.55, hatch=hatch
            )
        axis.set(title=title, xlabel="learned weight")
    axes[0].set_ylabel("share of the predictions")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of splits (default 5)")
    parser.add_argument("--epochs", type=int, default=16, help="number of epochs (default 16)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    with pool(cores()) as executor, TemporaryDirectory() as folder:
        jobs = [
            {
                "dataset": "hanzi", "seed": seed, "epochs": args.epochs, "device": "cpu",
                "part": "test", "method": TEACHER, "settings": SETTINGS[TEACHER],
                "cache": f"{folder}/{seed}", "fingerprint": str(seed),
            }
            for seed in range(args.seeds)
        ]  # fmt: skip
        list(run_all(executor, "teachers", run_teacher, jobs))
        students = [
            {key: job[key] for key in ("seed", "epochs", "cache")} | {"method": method}
            for job in jobs
            for method in METHODS
        ]
        runs = list(run_all(executor, "students", distill, students))
    runs.sort(key=lambda run: (run["job"]["seed"], METHODS.index(run["job"]["method"])))
    content = {"machine": measure.machine(), "runs": runs}
    save(args.out / "corrupted.json", content)
    picture(runs, args.out / "corrupted.png")
    print(text(content))


if __name__ == "__main__":
    main()
