"""A task with weights to learn, students of many kinds, and differences of the real step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer
from torch.utils.checkpoint import checkpoint

from msdlosses import Fill, KDLoss, MetaLearner, ModalityViews, MSDLoss, Weighting

SAMPLES, CLASSES, LR, LAMBDA = 4, 3, 0.5, 0.5
VIEWS = ("full", "image", "text")

Objective = Callable[[nn.Module], Tensor]
Batch = dict[str, Tensor]


# --- students: pixels (N, 2, 4) and tokens (N, 1, 4) to logits (N, 3)


class Student(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.body(torch.cat([pixels, tokens], dim=1))
        return logits


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(x).mean(1))
        return logits


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, *, packed: bool = False) -> None:
        super().__init__()
        self.layer = kind(4, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, CLASSES)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            lengths = [x.shape[1]] + [1] * (len(x) - 1)
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            outputs, _ = nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        else:
            outputs = self.layer(x)[0]
        logits: Tensor = self.head(outputs.mean(1))
        return logits


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(x.flatten(1)).tanh()).tanh())
        return logits


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(nn.Dropout(0.3))

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.layers, x, use_reentrant=False)


class Aside(nn.Module):
    """A student that also keeps a parameter where no module sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()
        self.aside = [self.layers[3].weight]

    def forward(self, x: Tensor) -> Any:
        return self.layers(x) + sum(weight.sum() * x.flatten(1)[:, :1] for weight in self.aside)


class Words(nn.Module):
    """An embedding of which most rows get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        words = self.words((3 * x[:, 2].abs()).long().clamp(max=9)).mean(1)
        return self.head((words + x[:, :2].mean(1)).tanh())


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)
    )


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), *between, nn.Tanh(), nn.Linear(6, CLASSES))


def weight_normed() -> nn.Module:
    body = mlp()
    nn.utils.parametrizations.weight_norm(body[1])
    return body


def spectrally_normed() -> nn.Module:
    """With buffers that move at every pass and that the pass depends on."""
    body = mlp()
    nn.utils.parametrizations.spectral_norm(body[1])
    return body


def hooked() -> nn.Module:
    """Features are taken, and changed, by hooks: the usual way to distil features."""
    body = mlp()
    body[1].register_forward_hook(lambda module, args, output: output.sin())
    body[3].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return body


def replaced() -> nn.Module:
    """An instance whose `forward` was exchanged, as accelerate does."""
    body = mlp()
    forward = body.forward
    body.forward = lambda x: forward(x).sin()
    return body


def compiled() -> nn.Module:
    body = mlp(nn.Dropout(0.5))
    body.compile(backend="aot_eager")
    return body


STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "batch norm": lambda: mlp(nn.BatchNorm1d(6)),
    "dropout": lambda: mlp(nn.Dropout(0.5)),
    "convolution": convolutional,
    "attention": Attention,
    "attention, dropout": lambda: Attention(0.2),
    "LSTM": Recurrent,
    "GRU": lambda: Recurrent(nn.GRU),
    "packed LSTM": lambda: Recurrent(packed=True),
    "embedding": Words,
    "tied": Tied,
    "checkpointed": Checkpointed,
    "weight norm": weight_normed,
    "spectral norm": spectrally_normed,
    "hooks": hooked,
    "replaced forward": replaced,
    "compiled": compiled,
    "parameters aside": Aside,
}


# --- one task, with weights for every sample and view


class Free(Weighting):
    """A free weight for each sample and view."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        return self.weights[: len(terms)] if self.weights.ndim > 1 else self.weights


def make_batch(size: int) -> Batch:
    return {"pixels": torch.randn(size, 2, 4), "tokens": torch.randn(size, 1, 4)}


class Task:
    """Data, views and the two losses; the weighting is in the inner one."""

    def __init__(self, weighting: Weighting | None = None) -> None:
        self.views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
        self.weighting = weighting or Free(SAMPLES, 3)
        self.msd = MSDLoss(KDLoss(temperature=2.0), self.weighting)
        self.batch, self.held_out = make_batch(SAMPLES), make_batch(5)
        self.target = torch.randint(CLASSES, (SAMPLES,))
        self.held_out_target = torch.randint(CLASSES, (5,))
        self.teacher = {view: 3 * torch.randn(SAMPLES, CLASSES) for view in self.views.names}

    def inner(self, model: Callable[..., Any]) -> Tensor:
        return self.part(model, slice(None))

    def part(self, model: Callable[..., Any], rows: slice) -> Tensor:
        """The inner loss on some of the samples."""
        teacher = {view: logits[rows] for view, logits in self.teacher.items()}
        s = self.views(model, {name: entry[rows] for name, entry in self.batch.items()})
        task = F.cross_entropy(s["full"], self.target[rows])
        return (1 - LAMBDA) * task + LAMBDA * self.msd(s, teacher, self.target[rows])

    def outer(self, model: Callable[..., Any]) -> Tensor:
        return F.cross_entropy(self.views(model, self.held_out)["full"], self.held_out_target)

    def learner(self, student: nn.Module, optimizer: Optimizer, **options: Any) -> MetaLearner:
        steps = Adam(self.weighting.parameters(), 0.1)
        return MetaLearner(student, optimizer, self.weighting, steps, **options)


def to_float(student: nn.Module, task: Task) -> None:
    """Single precision, which has kernels of its own: oneDNN's LSTM, fused attention."""
    student.float()
    task.msd.float()
    for values in (task.batch, task.held_out, task.teacher):
        values.update({name: value.float() for name, value in values.items()})


# --- the real step, and differences through it


def plain_step(
    student: nn.Module, optimizer: Optimizer, loss: Objective, max_norm: float | None = None
) -> None:
    optimizer.zero_grad()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trained = [p for p in parameters if p.requires_grad]
    for p, grad in zip(
        trained, torch.autograd.grad(loss(student), trained, allow_unused=True), strict=True
    ):
        p.grad = grad
    if max_norm is not None:
        nn.utils.clip_grad_norm_(trained, max_norm)
    optimizer.step()
    optimizer.zero_grad()


def finite_differences(
    student: nn.Module,
    optimizer: Optimizer,
    task: Task,
    *,
    eps: float = 1e-3,
    max_norm: float | None = None,
) -> list[Tensor]:
    """d outer / d weights through the step of the real optimiser, with the same dropout.

    By central differences of fourth order.
    """
    start = copy.deepcopy((student.state_dict(), optimizer.state_dict(), torch.get_rng_state()))

    def looked_ahead() -> float:
        torch.set_rng_state(start[2])
        plain_step(student, optimizer, task.inner, max_norm)
        return task.outer(student).item()

    def go_back() -> None:
        student.load_state_dict(start[0])
        optimizer.load_state_dict(copy.deepcopy(start[1]))
        torch.set_rng_state(start[2])

    slopes = []
    with torch.no_grad():
        for parameter in task.weighting.parameters():
            slope = torch.zeros_like(parameter)
            for i in range(parameter.numel()):
                entry, before = parameter.view(-1)[i : i + 1], parameter.view(-1)[i].item()
                values = {}
                for k in (-2, -1, 1, 2):
                    entry.fill_(before + k * eps)
                    with torch.enable_grad():
                        values[k] = looked_ahead()
                    go_back()
                entry.fill_(before)
                wide, near = values[2] - values[-2], values[1] - values[-1]
                slope.view(-1)[i] = (8 * near - wide) / (12 * eps)
            slopes.append(slope)
    return slopes


def relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    a, b = (torch.cat([t.flatten() for t in tensors]) for tensors in (found, expected))
    assert b.norm() > 1e-6
    return ((a - b).norm() / b.norm()).item()


def assert_same(left: Any, right: Any) -> None:
    """Bit by bit."""
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert_same(list(left.items()), list(right.items()))
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right
