"""The recipe for `Trainer`: a step equals one on the whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import float64
from integration import trainers
from integration.launch import launch
from integration.trainers import LR, Sample, Student, make_arguments, make_samples, make_setting
from recipes import headings, run, snippets
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from msdlosses import Fill, KDLoss, LearnedFill, ModalityViews, MSDLoss, UncertaintyWeighting

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with float64():
        yield


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    launch("trainers.py", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def mean_loss(setting: dict[str, Any], samples: Sequence[Sample]) -> Tensor:
    """The mean over all labels that are not -100, one label at a time."""
    total, count = torch.zeros(()), 0
    for sample in samples:
        full = {name: sample[name].unsqueeze(0) for name in ("pixels", "tokens")}
        views = [
            full,
            {**full, "tokens": 0 * full["tokens"]},
            {**full, "pixels": torch.zeros(1, 4)},
        ]
        kept = sample["labels"] != -100
        for number, view in enumerate(views):
            s, t = (setting[model](**view)[0, kept] for model in ("student", "teacher"))
            s_log, t_log = (s / 2).log_softmax(-1), (t.detach() / 2).log_softmax(-1)
            total = total + 0.5 * 4 * (t_log.exp() * (t_log - s_log)).sum()
            if number == 0:
                total = total + 0.5 * F.cross_entropy(s, sample["labels"][kept], reduction="sum")
        count += int(kept.sum())
    return total / count


def plain_step(*parts: Sequence[Sample]) -> dict[str, Tensor]:
    """The state after a plain step on the average of the means over some parts."""
    setting = make_setting()
    loss = torch.stack([mean_loss(setting, samples) for samples in parts]).mean()
    gradients = torch.autograd.grad(loss, list(setting["student"].parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(setting["student"].parameters(), gradients, strict=True):
            parameter -= LR * gradient
    return trainers.state(setting)


@pytest.mark.parametrize(("batch", "parts"), [(8, 1), (4, 2), (2, 4), (3, 3)])
@pytest.mark.parametrize("average", [True, False])
def test_accumulated_step_equals_a_plain_loop_on_the_whole_batch(
    tmp_path: Path, batch: int, parts: int, average: bool
) -> None:
    """Three micro-batches of three samples are not full."""
    actual, _ = trainers.train(tmp_path, batch, parts, average_tokens_across_devices=average)
    assert_close(actual, plain_step(make_samples(8)))


def test_two_processes_equal_one_with_the_whole_batch(processes: list[Any]) -> None:
    expected = plain_step(make_samples(8))
    for result in processes:
        assert_close(result["all labels"], expected)


def test_processes_with_equally_many_labels_may_count_their_own(processes: list[Any]) -> None:
    expected = plain_step(make_samples(8, even=True))
    for result in processes:
        assert_close(result["even"], expected)


def test_processes_that_count_their_own_labels_average_their_means(processes: list[Any]) -> None:
    seen = [
        [{n: x[i] for n, x in part.items()} for part in result["own labels"][1] for i in range(2)]
        for result in processes
    ]
    counts = [sum(int((sample["labels"] != -100).sum()) for sample in part) for part in seen]
    assert counts[0] != counts[1]
    expected = plain_step(*seen)
    for result in processes:
        assert_close(result["own labels"][0], expected)


def test_trainer_trains_everything_in_the_distillation_module(tmp_path: Path) -> None:
    views = ModalityViews(image=LearnedFill(pixels=(4,)), text=Fill(tokens=0))
    msd = MSDLoss(KDLoss(2.0), UncertaintyWeighting(views.names))

    class Classifier(Student):
        def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
            return super().forward(pixels, tokens).mean(1)

    module = run("distributed", "One module")["Distillation"](Classifier(), views, msd)
    teacher = Classifier()

    class Distiller(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            return model(teacher, inputs, inputs.pop("labels"))

    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    data = [{**sample, "labels": sample["labels"][0]} for sample in make_samples(4)]
    args = make_arguments(tmp_path, 4, learning_rate=0.1, optim="adamw_torch")
    Distiller(module, args, train_dataset=data).train()
    assert len(before) == 5
    assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_evaluation_returns_the_mean_loss_and_the_logits_on_the_full_view(tmp_path: Path) -> None:
    setting, samples = make_setting(), make_samples(4, even=True)
    output = trainers.make_trainer(make_arguments(tmp_path, 2), None, setting).predict(samples)
    expected = setting["student"](
        **{name: trainers.stack(samples)[name] for name in ("pixels", "tokens")}
    )
    assert_close(torch.from_numpy(output.predictions), expected.detach())
    assert output.metrics["test_loss"] == pytest.approx(mean_loss(setting, samples).item())


def test_loss_without_the_count_of_the_trainer_is_the_mean(tmp_path: Path) -> None:
    setting, samples = make_setting(), make_samples(4)
    trainer = trainers.make_trainer(make_arguments(tmp_path, 4), None, setting)
    loss = trainer.compute_loss(setting["student"], trainers.stack(samples))
    assert_close(loss, mean_loss(setting, samples))


def test_causal_language_model_predicts_the_next_token(tmp_path: Path) -> None:
    """The recipe with the changes for causal language models, on micro-batches of three and one."""
    block = snippets("trainer", "Distillation")[0]
    changed = block.replace('inputs.pop("labels") ', 'inputs.pop("labels")[:, 1:] ')
    assert changed != block
    names: dict[str, Any] = {}
    exec(changed, names)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    teacher, student = (transformers.GPT2LMHeadModel(config) for _ in range(2))
    start = [p.detach().clone().requires_grad_() for p in student.parameters()]
    views = ModalityViews(
        image=Fill(attention_mask=0, keep=[0, 3, 4, 5]),
        text=Fill(attention_mask=0, keep=[0, 1, 2]),
        output=lambda out: out.logits[:, :-1],
    )
    tokens = torch.randint(20, (4, 6))
    labels = tokens.where(torch.arange(6) >= torch.tensor([[1], [2], [3], [5]]), -100)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    data = [{**{n: x[i] for n, x in batch.items()}, "labels": labels[i]} for i in range(4)]
    options = {"teacher": teacher, "views": views, "msd": names["msd"], "train_dataset": data}
    names["Distiller"](student, make_arguments(tmp_path, 3, 2), **options).train()

    parameters = dict(zip(dict(student.named_parameters()), start, strict=True))
    kept = labels[:, 1:] != -100
    total = torch.zeros(())
    for view, inputs in views.inputs(batch).items():
        s = functional_call(student, parameters, kwargs=inputs).logits[:, :-1][kept]
        t = teacher(**inputs).logits[:, :-1][kept].detach()
        total = total + 0.5 * KDLoss(2.0, reduction="sum")(s, t)
        if view == "full":
            total = total + 0.5 * F.cross_entropy(s, labels[:, 1:][kept], reduction="sum")
    gradients = torch.autograd.grad(total / kept.sum(), start)
    expected = [p - LR * gradient for p, gradient in zip(start, gradients, strict=True)]
    assert_close([p.detach() for p in student.parameters()], [p.detach() for p in expected])


def test_every_recipe_is_tested() -> None:
    with_code = {name for name in headings("trainer") if snippets("trainer", name)}
    assert with_code == {"Distillation", "Learned weights", "Weights first"}
