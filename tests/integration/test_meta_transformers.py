"""The look-ahead gradient of real students from `transformers`, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lookahead import Free, finite_differences, relative
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from msdlosses import Fill, KDLoss, ModalityViews, MSDLoss
from msdlosses.meta import meta_gradient

transformers = pytest.importorskip("transformers")

N, WORDS, CLASSES = 4, 6, 3
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def visual_bert() -> tuple[nn.Module, dict[str, Tensor], ModalityViews]:
    """The architecture of the paper, in small."""
    config = transformers.VisualBertConfig(**SMALL, visual_embedding_dim=8, num_labels=CLASSES)
    batch = {
        "input_ids": torch.randint(1, 30, (N, WORDS)),
        "attention_mask": torch.ones(N, WORDS, dtype=torch.long),
        "visual_embeds": torch.randn(N, 5, 8),
        "visual_attention_mask": torch.ones(N, 5, dtype=torch.long),
    }
    views = ModalityViews(image=Fill(visual_embeds=0.0), text=Fill(input_ids=0, keep=[0, -1]))
    return transformers.VisualBertForQuestionAnswering(config), batch, views


class Classifier(nn.Module):
    """A head on what two towers of CLIP say."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, **batch: Tensor) -> Any:
        output = self.body(**batch)
        return self.head(torch.cat([output.text_embeds, output.image_embeds], -1))


def clip() -> tuple[nn.Module, dict[str, Tensor], ModalityViews]:
    config = transformers.CLIPConfig(
        text_config={**SMALL, "eos_token_id": 2, "bos_token_id": 1},
        vision_config={**SMALL, "image_size": 8, "patch_size": 4},
        projection_dim=6,
    )
    batch = {
        "input_ids": torch.randint(3, 30, (N, WORDS)),
        "pixel_values": torch.randn(N, 3, 8, 8),
    }
    batch["input_ids"][:, -1] = 2
    views = ModalityViews(image=Fill(pixel_values=0.0), text=Fill(input_ids=1, keep=[0, -1]))
    return Classifier(transformers.CLIPModel(config), 12), batch, views


class Objectives:
    """The two losses of a student, on data of its own kind."""

    def __init__(self, batch: dict[str, Tensor], views: ModalityViews) -> None:
        self.batch, self.views, self.weighting = batch, views, Free(3)
        self.msd = MSDLoss(KDLoss(2.0), self.weighting)
        self.teacher = {view: 3 * torch.randn(N, CLASSES) for view in views.names}
        self.target = torch.randint(CLASSES, (N,))

    def inner(self, model: nn.Module) -> Tensor:
        return self.msd(self.views(model, self.batch), self.teacher)

    def outer(self, model: nn.Module) -> Tensor:
        return F.cross_entropy(self.views(model, self.batch)["full"], self.target)


# CLIP's own attention takes its softmax in single precision, where differences are noisy.
@pytest.mark.parametrize(("implementation", "accuracy"), [("sdpa", 1e-6), ("eager", 1e-3)])
@pytest.mark.parametrize("make", [visual_bert, clip])
def test_gradient_is_that_of_the_real_optimizer(
    make: Callable[[], Any], implementation: str, accuracy: float
) -> None:
    student, batch, views = make()
    getattr(student, "body", student).set_attn_implementation(implementation)
    student.train()  # with dropout
    task = Objectives(batch, views)
    optimizer = AdamW(student.parameters(), 1e-2, eps=1e-3)
    expected = finite_differences(student, optimizer, task, eps=1e-4)
    for engine in ("forward", "double-backward"):
        found = meta_gradient(
            task.inner, task.outer, student, optimizer, task.weighting, engine=engine
        )
        assert relative(found, expected) < accuracy, engine


def test_gradient_of_a_checkpointed_student() -> None:
    student, batch, views = visual_bert()
    task = Objectives(batch, views)
    optimizer = AdamW(student.train().parameters(), 1e-2, eps=1e-3)
    results = []
    for checkpoints in (False, True):
        if checkpoints:
            student.activation_checkpointing_enable({"use_reentrant": False})
        for engine in ("forward", "double-backward"):
            results.append(
                meta_gradient(
                    task.inner, task.outer, student, optimizer, task.weighting, engine=engine
                )
            )
    for other in results[1:]:
        assert relative(results[0], other) < 1e-9
