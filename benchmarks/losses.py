"""The loss over three views, forward and backward, against what one would write without it.

    python -m benchmarks.losses

Naive is `F.kl_div` for each view, times tau squared and a weight. The limits are measured in the
same run: a copy that moves as many bytes as the loss must (student and teacher read twice, the
gradient written: 5U, where U are the student's logits), and a softmax of student and teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import measure
from msdlosses import FixedWeighting, KDLoss, MSDLoss

SHAPES = {"64 x 2": (64, 2), "1024 x 23": (1024, 23), "1024 x 3129": (1024, 3129)}
SHAPES |= {"256 x 30522": (256, 30522)}
CHUNKS = {"1024 x 3129": 40, "256 x 30522": 4}  # rows at once, of half a megabyte together
WEIGHTS = {"full": 1.0, "image": 0.5, "text": 0.25}
TAU = 2.0
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
    """Other packages' losses of the same value, those that are there."""
    try:
        from torchdistill.losses.mid_level import KDLoss as Distill

        # With alpha at 0 it leaves out tau squared.
        distill = Distill(".", "output", ".", "output", temperature=TAU, alpha=0.0)
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
        from liger_kernel.transformers import LigerKLDIVLoss

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


def group(name: str, shape: tuple[int, ...], args: Any) -> dict[str, Any]:
    student, teacher = (_logits(shape, args.device) for _ in range(2))
    for logits in student.values():
        logits.requires_grad_()
    msd = MSDLoss(KDLoss(TAU), FixedWeighting(**WEIGHTS)).to(args.device)
    torch.compiler.reset()
    losses: dict[str, Loss] = {"naive": naive, **dict(peers(args.device))}
    losses |= {"msdlosses": msd, "msdlosses, compiled": torch.compile(msd, fullgraph=True)}
    losses["naive, compiled"] = torch.compile(naive, fullgraph=True)
    if (rows := CHUNKS.get(name)) is not None:
        chunked = MSDLoss(KDLoss(TAU, rows_at_once=rows), FixedWeighting(**WEIGHTS))
        losses[f"msdlosses, {rows} rows at once"] = chunked.to(args.device)
    _check_alike(losses, student, teacher)
    variants = {n: _both_ways(loss, student, teacher) for n, loss in losses.items()}
    if args.device.startswith("cuda"):
        variants["msdlosses, CUDA graph"] = _graph(variants["msdlosses"])
    size = sum(logits.numel() for logits in student.values())
    result = measure.compare(
        f"KD over three views of {name}, U = {4e-6 * size:.3g} MB",
        variants | _limits(student, teacher, size),
        baseline="naive",
        device=args.device,
        rounds=args.rounds,
        # Inside a compiled function or a graph there are no operators to count; and what each
        # chunk of rows keeps for itself is gone before the next.
        uncounted=[
            name for name in variants if any(w in name for w in ("compiled", "graph", "at once"))
        ],
    )
    return {**result, "skipped": {k: why for k, why in PEERS.items() if k not in losses}}


def _logits(shape: tuple[int, ...], device: str) -> Logits:
    return {view: 3 * torch.randn(shape, device=device) for view in WEIGHTS}


def _both_ways(loss: Loss, student: Logits, teacher: Logits) -> measure.Variant:
    # Not `backward`: the gradients of the last call would be freed while memory is measured.
    return lambda: torch.autograd.grad(loss(student, teacher), list(student.values()))


def _graph(variant: measure.Variant) -> measure.Variant:
    """Forward and backward, captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            variant()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        variant()
    return graph.replay


def _limits(student: Logits, teacher: Logits, size: int) -> dict[str, measure.Variant]:
    source = torch.randn(5 * size // 2, device=student["full"].device)
    copy = torch.empty_like(source)
    both = [logits.detach() for views in (student, teacher) for logits in views.values()]
    return {
        "limit: copy of 5U": lambda: copy.copy_(source),
        "limit: softmax of both": lambda: [F.softmax(logits, -1) for logits in both],
    }


def _check_alike(losses: dict[str, Loss], student: Logits, teacher: Logits) -> None:
    expected = losses["naive"](student, teacher)
    for loss in losses.values():
        torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-4, atol=1e-5)


def main() -> None:
    args = measure.arguments(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    groups = [group(name, shape, args) for name, shape in SHAPES.items()]
    measure.publish("losses", groups, args)


if __name__ == "__main__":
    main()
