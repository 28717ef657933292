"""Bodies for `lookahead.Student`: many architectures, with hooks, compiled, checkpointed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lookahead import CLASSES, ENGINES, mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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


class TiedWeights(nn.Module):
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


class HiddenParameter(nn.Module):
    """A student that also keeps one of its parameters in a list, which no module registers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()
        self.hidden = [self.layers[3].weight]

    def forward(self, x: Tensor) -> Any:
        return self.layers(x) + sum(weight.sum() * x.flatten(1)[:, :1] for weight in self.hidden)


class Embedding(nn.Module):
    """An embedding with mostly unused rows, which get no gradient."""

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


def weight_normed() -> nn.Module:
    body = mlp()
    nn.utils.parametrizations.weight_norm(body[1])
    return body


def spectrally_normed() -> nn.Module:
    """A student whose forward pass depends on buffers that it also updates."""
    body = mlp()
    nn.utils.parametrizations.spectral_norm(body[1])
    return body


def hooked() -> nn.Module:
    """A student whose hooks change its features; hooks are common in feature distillation."""
    body = mlp()
    body[1].register_forward_hook(lambda module, args, output: output.sin())
    body[3].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return body


def with_replaced_forward() -> nn.Module:
    """An instance with another `forward`, as accelerate sets it."""
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
    "embedding": Embedding,
    "tied weights": TiedWeights,
    "checkpoint": Checkpointed,
    "weight norm": weight_normed,
    "spectral norm": spectrally_normed,
    "hooks": hooked,
    "replaced forward": with_replaced_forward,
    "compiled": compiled,
    "hidden parameter": HiddenParameter,
}
NO_FORWARD_MODE = ("weight norm", "spectral norm")
NOT_COPIED_BY_HIGHER = ("hooks", "replaced forward", "compiled", "hidden parameter")


def engines_for(name: str) -> list[str]:
    """The engines that can differentiate a student."""
    unsupported = set()
    if name in NO_FORWARD_MODE:
        unsupported.add("forward")
    if name in NOT_COPIED_BY_HIGHER:
        unsupported.add("higher")
    return [engine for engine in ENGINES if engine not in unsupported]
