"""Use the installed package as a new user would; run as a script, outside the repository."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn import functional as F

import msdlosses
from msdlosses import Fill, KDLoss, MetaLearner, ModalityViews, MSDLoss, TeacherCache, WeightNet


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, 3), nn.Embedding(10, 3)

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.image(pixels) + self.text(tokens).mean(1)


def main() -> None:
    installed = Path(msdlosses.__file__)
    assert "site-packages" in installed.parts, f"{installed} is not an installed package"
    torch.manual_seed(0)
    views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0), ignore=("index",))
    batch = {
        "pixels": torch.randn(8, 4),
        "tokens": torch.randint(1, 10, (8, 5)),
        "index": torch.arange(8),
    }
    target = torch.randint(3, (8,))
    teacher, student = Model(), Model()
    weighting = WeightNet(views.names, num_classes=3)
    msd = MSDLoss(KDLoss(temperature=2.0), weighting)
    optimizer = torch.optim.AdamW(student.parameters(), 0.1)
    learner = MetaLearner(student, optimizer, weighting, torch.optim.Adam(weighting.parameters()))
    with TemporaryDirectory() as path:
        cache = TeacherCache.build(teacher, views, [batch], path)
        t = cache[batch["index"]]
        losses = [
            learner.step(
                lambda model: msd(views(model, batch), t, target),
                lambda model: F.cross_entropy(views(model, batch)["full"], target),
            ).inner
            for _ in range(20)
        ]
    assert losses[-1] < losses[0]


if __name__ == "__main__":
    main()
