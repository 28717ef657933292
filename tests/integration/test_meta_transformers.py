"""The look-ahead gradient of models from `transformers`, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from groups import float64
from lookahead import EXACT, FreeWeights, finite_differences, relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from msdlosses import Fill, KDLoss, ModalityViews, MSDLoss
from msdlosses.meta import meta_gradient

transformers = pytest.importorskip("transformers")

SAMPLES, TOKENS, CLASSES = 4, 6, 3
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with float64():
        yield


def visual_bert() -> tuple[nn.Module, dict[str, Tensor], ModalityViews]:
    """A small model with the architecture of the paper."""
    config = transformers.VisualBertConfig(**SMALL, visual_embedding_dim=8, num_labels=CLASSES)
    batch = {
        "input_ids": torch.randint(1, 30, (SAMPLES, TOKENS)),
        "attention_mask": torch.ones(SAMPLES, TOKENS, dtype=torch.long),
        "visual_embeds": torch.randn(SAMPLES, 5, 8),
        "visual_attention_mask": torch.ones(SAMPLES, 5, dtype=torch.long),
    }
    views = ModalityViews(image=Fill(visual_embeds=0.0), text=Fill(input_ids=0, keep=[0, -1]))
    return transformers.VisualBertForQuestionAnswering(config), batch, views


class ClipClassifier(nn.Module):
    """A fusion head on the embeddings of CLIP's two towers."""

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
        "input_ids": torch.randint(3, 30, (SAMPLES, TOKENS)),
        "pixel_values": torch.randn(SAMPLES, 3, 8, 8),
    }
    batch["input_ids"][:, -1] = 2
    views = ModalityViews(image=Fill(pixel_values=0.0), text=Fill(input_ids=1, keep=[0, -1]))
    return ClipClassifier(transformers.CLIPModel(config), 12), batch, views


class Task:
    """The two losses of a student."""

    def __init__(self, batch: dict[str, Tensor], views: ModalityViews) -> None:
        self.batch, self.views, self.weighting = batch, views, FreeWeights(3)
        self.msd = MSDLoss(KDLoss(2.0), self.weighting)
        self.teacher = {view: 3 * torch.randn(SAMPLES, CLASSES) for view in views.names}
        self.target = torch.randint(CLASSES, (SAMPLES,))

    def inner(self, model: nn.Module) -> Tensor:
        return self.msd(self.views(model, self.batch), self.teacher)

    def outer(self, model: nn.Module) -> Tensor:
        return F.cross_entropy(self.views(model, self.batch)["full"], self.target)

    def gradient(self, student: nn.Module, optimizer: AdamW, engine: str) -> tuple[Tensor, ...]:
        return meta_gradient(
            self.inner, self.outer, student, optimizer, self.weighting, engine=engine
        )


# CLIP's eager attention computes its softmax in single precision, so differences are noisy.
@pytest.mark.parametrize(("implementation", "tolerance"), [("sdpa", 1e-6), ("eager", 1e-3)])
@pytest.mark.parametrize("make", [visual_bert, clip])
def test_gradient_matches_finite_differences(
    make: Callable[[], Any], implementation: str, tolerance: float
) -> None:
    student, batch, views = make()
    getattr(student, "body", student).set_attn_implementation(implementation)
    student.train()  # with dropout
    task = Task(batch, views)
    optimizer = AdamW(student.parameters(), 1e-2, eps=1e-3)
    expected = finite_differences(student, optimizer, task, eps=1e-4)
    for engine in EXACT:
        actual = task.gradient(student, optimizer, engine)
        assert relative_error(actual, expected) < tolerance, engine


def test_activation_checkpointing_keeps_the_gradient() -> None:
    student, batch, views = visual_bert()
    task = Task(batch, views)
    optimizer = AdamW(student.train().parameters(), 1e-2, eps=1e-3)
    gradients = [task.gradient(student, optimizer, engine) for engine in EXACT]
    student.activation_checkpointing_enable({"use_reentrant": False})
    gradients += [task.gradient(student, optimizer, engine) for engine in EXACT]
    for other in gradients[1:]:
        assert relative_error(gradients[0], other) < 1e-9
