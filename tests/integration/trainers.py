"""The recipes for `Trainer`, run as they stand; under `torchrun`, by each of two processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from groups import float64, leave
from recipes import run
from torch import Tensor, distributed, nn

from msdlosses import Fill, KDLoss, ModalityViews, MSDLoss, Weighting, WeightNet

CLASSES, LENGTH, LR, MAX_NORM = 3, 6, 0.5, 0.02
LEARNED = ("MetaDistiller", "WeightsFirst")
"""The recipes with learned weights."""

Sample = dict[str, Tensor]


class Student(nn.Module):
    """A model with logits for each position: (N, L, C)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.text, self.last = nn.Embedding(9, 4), nn.Linear(8, CLASSES)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        image = pixels.unsqueeze(1).expand(-1, tokens.shape[1], -1)
        logits: Tensor = self.last(self.dropout(torch.cat([image, self.text(tokens)], -1).tanh()))
        return logits


def make_samples(count: int, even: bool = False) -> list[Sample]:
    """Samples whose labels are -100 after 1 to 6 positions, or after 3 if `even`."""
    torch.manual_seed(1)
    samples = []
    for i in range(count):
        labels = torch.randint(CLASSES, (LENGTH,))
        labels[3 if even else 1 + (5 * i) % LENGTH :] = -100
        tokens = torch.randint(1, 9, (LENGTH,))
        samples.append({"pixels": torch.randn(4), "tokens": tokens, "labels": labels})
    return samples


def stack(samples: Sequence[Sample]) -> Sample:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def make_recipe() -> dict[str, Any]:
    """The names of the page, without the blocks that train."""
    pages = [("Distillation", 0), ("Learned weights", 0), ("Learned weights", 1)]
    return run("trainer", *pages, ("Weights first", 0))


def make_setting(weighting: Weighting | None = None, dropout: float = 0.0) -> dict[str, Any]:
    torch.manual_seed(0)
    criterion = KDLoss(2.0, ignore_index=-100)
    return {
        "teacher": Student(),
        "student": Student(dropout),
        "views": ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0)),
        "msd": MSDLoss(criterion, weighting, reduction="sum", average="batch"),
    }


def make_weights() -> WeightNet:
    torch.manual_seed(3)
    weights = WeightNet(("full", "image", "text"), num_classes=CLASSES, hidden=16, synchronize=True)
    for parameter in weights.parameters():
        nn.init.normal_(parameter)
    return weights


def make_held_out() -> list[Sample]:
    samples = make_samples(16, even=True)[8:]
    return [stack(samples[:4]), stack(samples[4:])]


def make_arguments(folder: Path, batch: int, parts: int = 1, **options: Any) -> Any:
    from transformers import TrainingArguments

    defaults = {
        "max_steps": 1, "optim": "sgd", "learning_rate": LR, "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "remove_unused_columns": False, "label_names": ["labels"],
    }  # fmt: skip
    return TrainingArguments(
        str(folder), per_device_train_batch_size=batch, per_device_eval_batch_size=batch,
        gradient_accumulation_steps=parts, **{**defaults, **options},
    )  # fmt: skip


def make_trainer(args: Any, data: Any, setting: dict[str, Any], name: str = "Distiller") -> Any:
    if name != "Distiller":
        setting = {**setting, "held_out": make_held_out()}
    options = {key: value for key, value in setting.items() if key != "student"}
    trainer_class = make_recipe()[name]

    class Recorded(trainer_class):  # type: ignore[misc]
        """Records the micro-batches of this process."""

        seen: Sequence[Sample] = ()

        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            self.seen = (*self.seen, dict(inputs))
            return super().training_step(model, inputs, *rest)

    return Recorded(setting["student"], args, train_dataset=data, **options)


def state(setting: dict[str, Any]) -> dict[str, Tensor]:
    both = nn.ModuleDict({name: setting[name] for name in ("student", "msd")})
    return {name: tensor.detach().clone() for name, tensor in both.state_dict().items()}


def train(
    folder: Path, batch: int, parts: int = 1, *, even: bool = False, **options: Any
) -> tuple[dict[str, Tensor], Sequence[Sample]]:
    """Take one step on eight samples; return the state and the micro-batches of this process."""
    setting = make_setting()
    args = make_arguments(folder, batch, parts, **options)
    trainer = make_trainer(args, make_samples(8, even), setting)
    trainer.train()
    return state(setting), trainer.seen


def train_weights(folder: Path, name: str, batch: int) -> dict[str, Tensor]:
    """Take three clipped steps with learned weights on the same eight samples."""
    setting = make_setting(make_weights())
    args = make_arguments(folder, batch, max_steps=3, max_grad_norm=MAX_NORM)
    make_trainer(args, make_samples(8), setting, name).train()
    return state(setting)


def train_students(folder: Path) -> dict[str, Any]:
    return {
        "all labels": train(folder, 2, 2)[0],
        "even": train(folder, 2, 2, even=True, average_tokens_across_devices=False)[0],
        "own labels": train(folder, 2, 2, average_tokens_across_devices=False),
    }


def main(folder: Path, learned: bool) -> None:
    torch.set_num_threads(1)
    with float64():
        results = (
            {name: train_weights(folder, name, 4) for name in LEARNED}
            if learned
            else train_students(folder)
        )
    torch.save(results, folder / f"{distributed.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "learned" in sys.argv)
