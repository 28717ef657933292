"""Tiny generative models with random weights, and questions about images for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from msdlosses import Fill, LinearLogits

transformers = pytest.importorskip("transformers")

PAD, BOS, EOS, ANSWER, START, END, IMAGE = 0, 1, 2, 3, 58, 59, 60
VOCABULARY, TOKENS_PER_IMAGE = 64, 4
Batch = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    index: int
    prompt: Tensor
    answer: Tensor
    images: Tensor
    """(images, 3, 8, 8)."""


def make_samples(count: int = 6, *, several: bool) -> list[Sample]:
    """Questions of different lengths about one or several images."""
    samples = []
    for index in range(count):
        images = torch.randn(1 + (index % 2 if several else 0), 3, 8, 8)
        marks = [START, *[IMAGE] * TOKENS_PER_IMAGE, END] * len(images)
        words = torch.randint(4, 50, (2 + index % 3,)).tolist()
        prompt = torch.tensor([BOS, *marks, *words, ANSWER])
        answer = torch.tensor([*torch.randint(4, 50, (1 + index % 4,)).tolist(), EOS])
        samples.append(Sample(index, prompt, answer, images))
    return samples


def collate_text(samples: Sequence[Sample], side: str) -> Batch:
    ids = [torch.cat([s.prompt, s.answer]) for s in samples]
    labels = [torch.cat([torch.full_like(s.prompt, -100), s.answer]) for s in samples]
    pad = partial(pad_sequence, batch_first=True, padding_side=side)
    return {
        "index": torch.tensor([s.index for s in samples]),
        "input_ids": pad(ids, padding_value=PAD),
        "attention_mask": pad([torch.ones_like(x) for x in ids]),
        "labels": pad(labels, padding_value=-100),
    }


# Images, as each processor packs them


def one_image(samples: Sequence[Sample], batch: Batch) -> Batch:
    return {"pixel_values": torch.cat([s.images for s in samples])}


def one_image_and_types(samples: Sequence[Sample], batch: Batch) -> Batch:
    return {**one_image(samples, batch), "token_type_ids": (batch["labels"] != -100).long()}


def image_types(samples: Sequence[Sample], batch: Batch) -> Batch:
    return {**one_image(samples, batch), "token_type_ids": (batch["input_ids"] == IMAGE).long()}


def padded_images(samples: Sequence[Sample], batch: Batch) -> Batch:
    """(N, images, 3, 8, 8), where missing images are zero."""
    return {"pixel_values": pad_sequence([s.images for s in samples], batch_first=True)}


def patches(samples: Sequence[Sample], batch: Batch) -> Batch:
    """16 patches of 4 x 4 pixels and two frames for each image, and the grid of each image."""
    images = torch.cat([s.images for s in samples])
    frames = images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3)
    rows = frames.reshape(-1, 12).repeat(1, 8)
    grid = torch.tensor([[1, 4, 4]]).repeat(len(images), 1)
    kinds = (batch["input_ids"] == IMAGE).int()
    mask = batch["attention_mask"]
    # With the images that are there, before attention to some of them is closed.
    ids, _ = qwen_body().get_rope_index(batch["input_ids"], kinds, grid, attention_mask=mask)
    return {"pixel_values": rows, "image_grid_thw": grid, "position_ids": ids}


# Families


def text_config(width: int, **options: Any) -> dict[str, Any]:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": width, "intermediate_size": 48}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        **sizes,
        **layers,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    } | options


VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 2, "image_size": 8}


def qwen(width: int) -> nn.Module:
    rope = {"rope_type": "default", "mrope_section": [1, 1, width // 8 - 2], "rope_theta": 1e4}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    vision |= {"patch_size": 4, "out_hidden_size": width, "spatial_merge_size": 2}
    vision |= {"fullatt_block_indexes": [1], "window_size": 16}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_config(width, rope_parameters=rope),
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=61,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


@cache
def qwen_body() -> Any:
    return qwen(32).model


def llava(width: int) -> nn.Module:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text_config(width)),
        vision_config=transformers.CLIPVisionConfig(**VISION, patch_size=4),
        image_token_index=IMAGE,
        image_seq_length=TOKENS_PER_IMAGE,
    )
    return transformers.LlavaForConditionalGeneration(config)


def smolvlm(width: int) -> nn.Module:
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**text_config(width)),
        vision_config={**VISION, "patch_size": 2},
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return transformers.SmolVLMForConditionalGeneration(config)


def paligemma(width: int) -> nn.Module:
    config = transformers.PaliGemmaConfig(
        text_config=text_config(width, model_type="gemma", head_dim=8),
        vision_config={**VISION, "model_type": "siglip_vision_model", "patch_size": 4}
        | {"projection_dim": width},
        image_token_index=IMAGE,
        projection_dim=width,
        hidden_size=width,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def gemma3(width: int) -> nn.Module:
    config = transformers.Gemma3Config(
        text_config=text_config(width, head_dim=8, sliding_window=8),
        vision_config={**VISION, "patch_size": 2, "vision_use_head": False},
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        mm_tokens_per_image=TOKENS_PER_IMAGE,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def blip2(width: int) -> nn.Module:
    text = text_config(width, ffn_dim=48, word_embed_proj_dim=width, max_position_embeddings=64)
    qformer = {**VISION, "vocab_size": VOCABULARY, "encoder_hidden_size": 32}
    config = transformers.Blip2Config(
        text_config=transformers.OPTConfig(**text),
        vision_config={**VISION, "patch_size": 4},
        qformer_config={k: v for k, v in qformer.items() if k != "image_size"},
        num_query_tokens=TOKENS_PER_IMAGE,
        image_token_index=IMAGE,
    )
    return transformers.Blip2ForConditionalGeneration(config)


def images_of(batch: Batch) -> Tensor:
    """The number of images of each sample."""
    return (batch["input_ids"] == IMAGE).sum(1) // TOKENS_PER_IMAGE


def patches_of(batch: Batch) -> Tensor:
    return images_of(batch) * 16


def body_of(model: nn.Module) -> Any:
    """The part that returns hidden states."""
    return model.model


def hidden_of(out: Any) -> Tensor:
    return out.last_hidden_state


@dataclass(frozen=True)
class Family:
    """What differs between families of models."""

    build: Callable[[int], nn.Module]
    images: Callable[[Sequence[Sample], Batch], Batch]
    several: bool = True
    ragged: dict[str, Callable[[Batch], Tensor]] = field(default_factory=dict)
    batch_axis: dict[str, int] = field(default_factory=dict)
    body: Callable[[nn.Module], Any] = body_of
    hidden: Callable[[Any], Tensor] = hidden_of

    def make(self, width: int, seed: int) -> Any:
        torch.manual_seed(seed)
        model = self.build(width)
        for parameter in model.parameters():  # the logits of a new model are almost constant
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        return model

    def collate(self, samples: Sequence[Sample], side: str = "right") -> Batch:
        batch = collate_text(samples, side)
        return {**batch, **self.images(samples, batch)}

    def output(self, model: Any) -> Callable[[Any], LinearLogits]:
        head = model.get_output_embeddings()
        return lambda out: LinearLogits(self.hidden(out)[:, :-1], head.weight, head.bias)


FAMILIES = {
    "Qwen2.5-VL": Family(
        qwen,
        patches,
        ragged={"pixel_values": patches_of, "image_grid_thw": images_of},
        batch_axis={"position_ids": 1},
    ),
    "LLaVA": Family(llava, one_image, ragged={"pixel_values": images_of}),
    "SmolVLM": Family(smolvlm, padded_images),
    "PaliGemma": Family(paligemma, one_image_and_types, several=False),
    "Gemma 3": Family(gemma3, image_types, ragged={"pixel_values": images_of}),
    "BLIP-2": Family(
        blip2,
        one_image,
        several=False,
        # Logits of the last position only.
        body=lambda model: partial(model, output_hidden_states=True, logits_to_keep=1),
        hidden=lambda out: out.language_model_outputs.hidden_states[-1],
    ),
}


def not_image(batch: Batch) -> Tensor:
    return batch["input_ids"] != IMAGE


def not_prompt(batch: Batch) -> Tensor:
    """Keep special tokens, among them the last one of the prompt, and the answer."""
    special = torch.tensor([BOS, ANSWER, START, END, IMAGE])
    return torch.isin(batch["input_ids"], special) | (batch["labels"] != -100)


def answers(batch: Batch) -> Tensor:
    return batch["labels"][:, 1:] != -100


def spec(family: Family) -> dict[str, Any]:
    return {
        "image": Fill(attention_mask=0, keep=not_image),
        "text": Fill(attention_mask=0, keep=not_prompt),
        "ragged": family.ragged,
        "batch_axis": family.batch_axis,
        "ignore": ("index", "labels"),
    }
