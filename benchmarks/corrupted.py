"""Do learned weights find out which of a teacher's predictions are wrong?

    python -m benchmarks.corrupted

A teacher is trained on hanzi as in the study, and 40 % of what it says of the training data is
exchanged for what it would say of other classes, alike in all views. Students are distilled with
equal weights, with weights that are learned, and, for a bound, from the sound predictions alone.
Prints a table, and writes JSON and a picture of the weights to --out. Settings are the study's
for equal weights; none was chosen on these data.
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
from benchmarks.datasets import PICTURE_AND_TEXT, Batch, Split, Task, load
from benchmarks.full import TEACHER, settings_of
from benchmarks.jobs import cores, pool, run_all, save
from benchmarks.methods import EQUAL
from benchmarks.models import STUDENT, Towers
from benchmarks.report import COLOURS, paired, spread
from benchmarks.runs import RESULTS
from benchmarks.tables import plain
from benchmarks.training import BATCH, WRONG, corrupted, run_teacher
from msdlosses import KDLoss, MetaLearner, ModalityViews, MSDLoss, TeacherCache, WeightNet

SETTINGS = settings_of("hanzi")
HELD_OUT, META_RATE, BINS = 0.1, 1e-3, 25
VIEWS = ModalityViews(**PICTURE_AND_TEXT, ignore=("index",))
WHOLE = ModalityViews(**PICTURE_AND_TEXT, ignore=("index",), views=("full",))
LEARNED, SOUND = "MSD learned", "sound predictions alone"
METHODS = (EQUAL, LEARNED, SOUND)


def distil(job: Mapping[str, Any]) -> dict[str, Any]:
    """One student: its test accuracy, and where there are learned weights, what they know."""
    torch.set_num_threads(1)
    task = load("hanzi", job["seed"])
    torch.manual_seed(job["seed"])
    teacher, wrong = corrupted(TeacherCache.open(job["cache"]), len(task.train), task.classes)
    distiller = Distiller(task, job["method"], teacher, wrong)
    order = torch.randperm(len(task.train))
    cut = int(HELD_OUT * len(order)) if distiller.learns else 0
    split, unseen = task.train.items(order[cut:]), endless(task.train.items(order[:cut]))
    steps = job["epochs"] * -(-len(split) // BATCH)
    rate = OneCycleLR(distiller.optimizer, SETTINGS[EQUAL]["rate"], total_steps=steps)
    for batch, target in islice(endless(split), steps):
        distiller.step(batch, target, unseen)
        rate.step()
    told = {name: value for name, value in job.items() if name != "cache"}
    found = {"job": told, "views": accuracies(distiller.student, task.test)}
    if distiller.learns:
        found["weights"] = weigh(distiller.weighting, teacher, task.train, wrong)
    return found


class Distiller:
    """A student, and its training step by one of the methods."""

    def __init__(
        self, task: Task, method: str, teacher: Mapping[str, Tensor], wrong: Tensor
    ) -> None:
        settings = SETTINGS[EQUAL]
        regularisation = {name: settings[name] for name in ("word_dropout", "dropout")}
        self.student = Towers(task, **STUDENT, **regularisation)
        self.optimizer = AdamW(self.student.parameters(), weight_decay=settings["decay"])
        self.weighting = WeightNet(VIEWS.names, num_classes=task.classes)
        self.learns, self.sound_alone = method == LEARNED, method == SOUND
        self.msd = MSDLoss(KDLoss(settings["temperature"]), self.weighting if self.learns else None)
        update = Adam(self.weighting.parameters(), META_RATE)
        self.learner = MetaLearner(self.student, self.optimizer, self.weighting, update)
        self.teacher, self.wrong = teacher, wrong

    def step(self, batch: Batch, target: Tensor, unseen: Iterator[tuple[Batch, Tensor]]) -> None:
        teacher = {view: logits[batch["index"]] for view, logits in self.teacher.items()}
        sound = ~self.wrong[batch["index"]][:, None].expand(-1, len(teacher))
        valid = sound if self.sound_alone else None

        def inner(model: nn.Module) -> Tensor:
            return self.msd(VIEWS(model, batch), teacher, target, valid=valid)

        if self.learns:
            held_out, labels = next(unseen)
            self.learner.step(
                inner, lambda model: F.cross_entropy(WHOLE(model, held_out)["full"], labels)
            )
            return
        self.optimizer.zero_grad()
        inner(self.student).backward()
        self.optimizer.step()


def endless(split: Split) -> Iterator[tuple[Batch, Tensor]]:
    """Batches, shuffled anew each time round."""
    while True:
        yield from split.batches(BATCH, shuffle=True)


def accuracies(student: nn.Module, split: Split) -> dict[str, float]:
    """By view."""
    student.eval()
    with torch.no_grad():
        logits = [VIEWS(student, batch) for batch, _ in split.batches(512)]
    right = {v: torch.cat([views[v] for views in logits]).argmax(-1) for v in VIEWS.names}
    return {v: (found == split.target).double().mean().item() for v, found in right.items()}


def weigh(
    weighting: WeightNet, teacher: Mapping[str, Tensor], split: Split, wrong: Tensor
) -> dict[str, Any]:
    """How the weights of sound and of wrong predictions lie apart, by view."""
    terms = torch.zeros(len(split), len(VIEWS.names))
    with torch.no_grad():
        weights = weighting(terms, teacher, split.target, names=VIEWS.names)
    found = {}
    for view, column in zip(VIEWS.names, weights.unbind(1), strict=True):
        low, high = column[wrong], column[~wrong]
        top = float(column.max())
        shares = [torch.histc(part, BINS, 0, top) / len(part) for part in (high, low)]
        found[view] = {
            "area": round((low[:, None] < high).double().mean().item(), 6),
            "top": round(top, 4),
            "sound": [round(share, 5) for share in shares[0].tolist()],
            "wrong": [round(share, 5) for share in shares[1].tolist()],
        }
    return found


def table(runs: list[dict[str, Any]]) -> Table:
    """Accuracies, and what the others are ahead of equal weights."""
    drawn = Table(box=SIMPLE_HEAD, title=f"{WRONG:.0%} of the teacher's predictions are wrong")
    drawn.add_column("method")
    for title in ("whole input", "image alone", "text alone", "whole input, ahead of equal"):
        drawn.add_column(title, justify="right")
    by_method = {m: [run for run in runs if run["job"]["method"] == m] for m in METHODS}
    values = {
        (m, view): np.array([run["views"][view] for run in found])
        for m, found in by_method.items()
        for view in VIEWS.names
    }
    for method in METHODS:
        gain = 100 * (values[method, "full"] - values[EQUAL, "full"])
        told = "" if method == EQUAL or len(gain) < 2 else paired(gain)
        drawn.add_row(method, *(spread(100 * values[method, v]) for v in VIEWS.names), told)
    areas = [w["area"] for run in by_method[LEARNED] for w in run["weights"].values()]
    drawn.caption = (
        "accuracy in %, mean ± standard deviation; paired mean ± half of the 95 % interval, seeds "
        f"won. Area under the curve of the learned weights: {min(areas):.3f} or more"
    )
    return drawn


def text(content: Mapping[str, Any]) -> str:
    """What a run printed, from its JSON."""
    return plain([table(content["runs"])], measure.WIDTH)


def picture(runs: list[dict[str, Any]], path: Path) -> None:
    """The weights of sound and wrong predictions, by view, of the first seed."""
    weights = next(run["weights"] for run in runs if "weights" in run)
    figure, axes = plt.subplots(1, len(weights), figsize=(11, 3), layout="constrained")
    titles = ("whole input", "image alone", "text alone")
    for axis, title, told in zip(axes, titles, weights.values(), strict=True):
        borders = np.linspace(0, told["top"], BINS + 1)
        for kind, colour, hatch in (("sound", COLOURS[0], ""), ("wrong", COLOURS[1], "//")):
            axis.stairs(
                told[kind], borders, label=kind, color=colour, fill=True, alpha=0.55, hatch=hatch
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
    parser.add_argument("--epochs", type=int, default=16, help="passes over the data (default 16)")
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
        runs = list(run_all(executor, "students", distil, students))
    runs.sort(key=lambda run: (run["job"]["seed"], METHODS.index(run["job"]["method"])))
    content = {"machine": measure.machine(), "runs": runs}
    save(args.out / "corrupted.json", content)
    picture(runs, args.out / "corrupted.png")
    print(text(content))


if __name__ == "__main__":
    main()
