"""Time and memory of the loss over three views, forward and backward, against plain PyTorch.

    python -m benchmarks.losses

The baseline, `naive`, is `F.kl_div` for each view, times tau squared and a weight. Two limits are
measured as well: a copy of as many bytes as the loss has to move, and a softmax of the student's
and the teacher's logits. The loss reads student and teacher twice and writes the gradient, which
is 5U if U are the bytes of the student's logits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import measure
from benchmarks.by_hand import PAIRS, TAU
from msdlosses import FixedWeighting, KDLoss, MSDLoss

SHAPES = {
    "64 x 2": (64, 2),
    "64 x 23": (64, 23),
    "1024 x 23": (1024, 23),
    "1024 x 3129": (1024, 3129),
}
SHAPES |= {"256 x 30522": (256, 30522)}
CHUNKS = {"1024 x 3129": 40, "256 x 30522": 4}  # chunk sizes of half a megabyte
WEIGHTS = {"full": 1.0, "image": 0.5, "text": 0.25}
SINGLE = (1024, 1000)  # the logits that single losses are compared on
PEERS = {"torchdistill": "not installed", "Liger-Kernel": "needs a GPU, triton and the package"}

Logits = dict[str, Tensor]
Loss = Callable[[Logits, Logits], Tensor]


def naive(student: Logits, teacher: Logits) -> Tensor:
    loss = torch.zeros((), device=student["full"].device)
    for view, weight in WEIGHTS.items():
        log_q = F.log_softmax(student[view] / TAU, -1)
        p = F.softmax(teacher[view] / TAU, -1)
        loss = loss + weight * TAU**2 * F.kl_div(log_q, p, reduction="batchmean")
    return loss


def peers(device: str) -> Iterator[tuple[str, Loss]]:
    """Yield the equal losses of other packages that are installed."""
    # Only the group `bench` installs the two packages, so mypy may not find them.
    try:
        from torchdistill.losses.mid_level import (
            KDLoss as TorchdistillLoss,
        )

        # With alpha = 0 the loss has no factor of tau squared.
        distill = TorchdistillLoss(".", "output", ".", "output", temperature=TAU, alpha=0.0)
        yield (
            "torchdistill",
            lambda s, t: sum(
                w * TAU**2 * distill({".": {"output": s[v]}}, {".": {"output": t[v]}})
                for v, w in WEIGHTS.items()
            ),
        )
    except ImportError:
        pass
    try:
        from liger_kernel.transformers import (
            LigerKLDIVLoss,
        )

        liger = LigerKLDIVLoss(reduction="batchmean")
        if device.startswith("cuda"):
            yield (
                "Liger-Kernel",
                lambda s, t: sum(
                    w * TAU**2 * liger(F.log_softmax(s[v] / TAU, -1), F.softmax(t[v] / TAU, -1))
                    for v, w in WEIGHTS.items()
                ),
            )
    except ImportError:
        pass


def group(name: str, shape: tuple[int, ...], args: argparse.Namespace) -> dict[str, Any]:
    student, teacher = (_logits(shape, args.device) for _ in range(2))
    for logits in student.values():
        logits.requires_grad_()
    msd = MSDLoss(KDLoss(TAU), FixedWeighting(**WEIGHTS)).to(args.device)
    torch.compiler.reset()
    losses: dict[str, Loss] = {"naive": naive, **dict(peers(args.device))}
    losses |= {"msdlosses": msd, "msdlosses, compiled": torch.compile(msd, fullgraph=True)}
    losses["naive, compiled"] = torch.compile(naive, fullgraph=True)
    if (size := CHUNKS.get(name)) is not None:
        chunked = MSDLoss(KDLoss(TAU, chunk_size=size), FixedWeighting(**WEIGHTS))
        losses[f"msdlosses, {size} rows at once"] = chunked.to(args.device)
    _check_equal(losses, student, teacher)
    losses["msdlosses, equal weights"] = MSDLoss(KDLoss(TAU))
    variants = {n: _forward_backward(loss, student, teacher) for n, loss in losses.items()}
    if args.device.startswith("cuda"):
        variants["msdlosses, CUDA graph"] = _graph(variants["msdlosses"])
    elements = sum(logits.numel() for logits in student.values())
    result = measure.compare(
        f"KD over three views of {name}, U = {4e-6 * elements:.3g} MB",
        variants | _limits(student, teacher, elements),
        baseline="naive",
        device=args.device,
        rounds=args.rounds,
        # Compiled functions and CUDA graphs run no operators that could be counted, and the
        # tensors that a chunk saves are freed before the next chunk.
        uncounted=[
            name for name in variants if any(w in name for w in ("compiled", "graph", "at once"))
        ],
    )
    return {**result, "skipped": {k: why for k, why in PEERS.items() if k not in losses}}


def single_losses(args: argparse.Namespace) -> dict[str, Any]:
    """Compare each loss with its own baseline, whose row has the same name."""
    student, teacher = (3 * torch.randn(SINGLE, device=args.device) for _ in range(2))
    target = torch.randint(SINGLE[1], SINGLE[:1], device=args.device)
    student.requires_grad_()
    rows: dict[str, Any] = {}
    for name, pair in PAIRS.items():
        by_hand, loss = (_gradient(function, student, teacher, target) for function in pair)
        torch.testing.assert_close(loss(), by_hand(), rtol=1e-3, atol=1e-6)
        variants = {"by hand": by_hand, name: loss}
        result = measure.compare(
            name, variants, baseline="by hand", device=args.device, rounds=args.rounds
        )
        rows |= {f"{name}, by hand": result["rows"]["by hand"], name: result["rows"][name]}
    title = "one view of {} x {}, forward and backward".format(*SINGLE)
    return {"title": title, "baseline": "the loss written by hand", "second": None, "rows": rows}


def _gradient(loss: Any, student: Tensor, *others: Tensor) -> measure.Variant:
    return lambda: torch.autograd.grad(loss(student, *others), student)


def _logits(shape: tuple[int, ...], device: str) -> Logits:
    return {view: 3 * torch.randn(shape, device=device) for view in WEIGHTS}


def _forward_backward(loss: Loss, student: Logits, teacher: Logits) -> measure.Variant:
    # With `backward`, the gradients of an earlier call would be freed while memory is measured.
    return lambda: torch.autograd.grad(loss(student, teacher), list(student.values()))


def _graph(variant: measure.Variant) -> measure.Variant:
    """Return the replay of a variant that is captured in a CUDA graph."""
    new_stream: Callable[[], torch.cuda.Stream] = torch.cuda.Stream  # torch does not type it
    stream = new_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            variant()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        variant()
    return graph.replay


def _limits(student: Logits, teacher: Logits, elements: int) -> dict[str, measure.Variant]:
    # A copy reads and writes: 2.5 times the elements are read, and as many are written.
    source = torch.randn(5 * elements // 2, device=student["full"].device)
    copy = torch.empty_like(source)
    both = [logits.detach() for views in (student, teacher) for logits in views.values()]
    return {
        "limit: copy of 5U": lambda: copy.copy_(source),
        "limit: softmax of both": lambda: [F.softmax(logits, -1) for logits in both],
    }


def _check_equal(losses: dict[str, Loss], student: Logits, teacher: Logits) -> None:
    expected = losses["naive"](student, teacher)
    for loss in losses.values():
        torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-4, atol=1e-5)


def main() -> None:
    args = measure.arguments(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    groups = [group(name, shape, args) for name, shape in SHAPES.items()]
    measure.publish("losses", [*groups, single_losses(args)], args)


if __name__ == "__main__":
    main()
