"""Reference formulas of the losses, in 60 digits with mpmath or in NumPy.

They share no code with the library. A batch is a list of samples, a sample a list of logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from mpmath import exp, fsum, inf, log, mpf, sqrt, workdps
from scipy.spatial.distance import cdist

DIGITS = 60
ROUNDING = 16 * 2.3e-16
"""Vectors that are this short, relative to the data, have no direction in float64."""

Sample = Sequence[float]
Batch = Sequence[Sample]


def each(oracle: Callable[..., float], **options: float) -> Callable[[Batch, Batch], list[float]]:
    """Apply the oracle of one sample to every sample of a batch."""

    def values(student: Batch, teacher: Batch) -> list[float]:
        with workdps(DIGITS):
            pairs = zip(student, teacher, strict=True)
            return [float(oracle(s, t, **options)) for s, t in pairs]

    return values


# Softmax and KL divergences


def softmax(logits: Sequence[mpf], temperature: float = 1.0) -> list[mpf]:
    powers = [exp(mpf(x) / mpf(temperature)) for x in logits]
    return [x / fsum(powers) for x in powers]


def relative_entropy(p: Sequence[mpf], q: Sequence[mpf]) -> mpf:
    return fsum(_relative_entropy(a, b) for a, b in zip(p, q, strict=True))


def _relative_entropy(p: mpf, q: mpf) -> mpf:
    if p == 0:
        return mpf(0)
    return p * log(p / q) if q else inf


def mixture(p: Sequence[mpf], q: Sequence[mpf], share: float) -> list[mpf]:
    return [mpf(share) * a + (1 - mpf(share)) * b for a, b in zip(p, q, strict=True)]


def softmax_kl(student: Sample, teacher: Sample, *, temperature: float, skew: float = 0.0) -> mpf:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return mpf(temperature) ** 2 * relative_entropy(p, mixture(p, q, skew))


def reverse_kl(student: Sample, teacher: Sample, *, temperature: float, skew: float = 0.0) -> mpf:
    return softmax_kl(teacher, student, temperature=temperature, skew=skew)


def standardized_kl(student: Sample, teacher: Sample, *, temperature: float) -> mpf:
    return softmax_kl(standardized(student), standardized(teacher), temperature=temperature)


def standardized(logits: Sample) -> list[mpf]:
    present = [mpf(x) for x in logits if x > -inf]
    mean = fsum(present) / len(present)
    deviation = sqrt(fsum((x - mean) ** 2 for x in present) / len(present))
    return [(mpf(x) - mean) / max(deviation, mpf("0.01")) for x in logits]


def jensen_shannon(student: Sample, teacher: Sample, *, beta: float, temperature: float) -> mpf:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    m = mixture(p, q, beta)
    parts = mpf(beta) * relative_entropy(p, m), (1 - mpf(beta)) * relative_entropy(q, m)
    return mpf(temperature) ** 2 * fsum(parts)


def binary_kl(student: Sample, teacher: Sample, *, temperature: float) -> mpf:
    tau = mpf(temperature)
    p, q = (
        [1 / (1 + exp(-sign * mpf(x) / tau)) for x in logits for sign in (1, -1)]
        for logits in (teacher, student)
    )
    return tau**2 * relative_entropy(p, q)


def decoupled_kl(
    student: Sample, teacher: Sample, *, temperature: float, alpha: float, beta: float
) -> mpf:
    """Decoupled knowledge distillation, with the target of `laws.pick_target`."""
    target = max(range(len(student)), key=lambda c: teacher[c] + 1e-7 * student[c])
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    others = [c for c in range(len(student)) if c != target]
    rest = [fsum(x[c] for c in others) for x in (p, q)]
    target_kl = relative_entropy([p[target], rest[0]], [q[target], rest[1]])
    others_kl = mpf(0)
    if all(rest):
        parts = ([x[c] / total for c in others] for x, total in zip((p, q), rest, strict=True))
        others_kl = relative_entropy(*parts)
    return mpf(temperature) ** 2 * (alpha * target_kl + beta * others_kl)


# Distances of vectors


def squared_distance(student: Sample, teacher: Sample, *, factor: float) -> mpf:
    pairs = [(s, t) for s, t in zip(student, teacher, strict=True) if not s == t == -inf]
    return factor * fsum((mpf(s) - mpf(t)) ** 2 for s, t in pairs)


# Correlations (DIST)


def correlations(student: Batch, teacher: Batch, *, temperature: float) -> list[float]:
    """One minus the Pearson correlation, within each sample and within each class.

    Probabilities that are constant have no correlation. Their centered direction counts as 0, so
    that one minus the correlation becomes half the squared distance of the directions.
    """
    with workdps(DIGITS):
        p, q = ([softmax(logits, temperature) for logits in batch] for batch in (teacher, student))
        share = mpf(len(p)) / max(len(p[0]) if p else 1, 1)
        inter = [half_squares(q[n], p[n]) for n in range(len(p))]
        columns = ([*zip(*probabilities, strict=True)] for probabilities in (q, p))
        intra = [half_squares(*pair) for pair in zip(*columns, strict=True)]
        tau = mpf(temperature) ** 2
        return [
            float(tau * (fsum(inter[n]) + share * fsum(column[n] for column in intra)))
            for n in range(len(p))
        ]


def half_squares(student: Sample, teacher: Sample) -> list[mpf]:
    """Half the squared differences of two directions; they sum to one minus the correlation."""
    a, b = direction(student), direction(teacher)
    return [(x - y) ** 2 / 2 for x, y in zip(a, b, strict=True)]


def direction(values: Sample) -> list[mpf]:
    """Center and normalize; constant values become 0."""
    mean = fsum(values) / len(values)
    length = sqrt(fsum((x - mean) ** 2 for x in values))
    size = sqrt(fsum(x**2 for x in values))
    constant = length <= max(ROUNDING * size, mpf("1e-76"))
    return [mpf(0) if constant else (x - mean) / length for x in values]


# Relations between samples (RKD, SP)


def relations(student: Batch, teacher: Batch, *, distance: float, angle: float) -> list[float]:
    q, p = (np.array(batch, dtype=np.longdouble) for batch in (student, teacher))
    count, total = len(q), np.zeros(len(q))
    if count > 1:
        losses = huber(relative_distances(q) - relative_distances(p))
        total += distance * (losses.sum(1) - np.diag(losses)) / (count - 1)
    if count > 2:
        for n in range(count):
            losses = huber(cosines_at(q, n) - cosines_at(p, n))
            total[n] += angle * (losses.sum() - np.trace(losses)) / ((count - 1) * (count - 2))
    return total.tolist()


def huber(x: np.ndarray) -> np.ndarray:
    return np.where(abs(x) < 1, x**2 / 2, abs(x) - 0.5)


def relative_distances(x: np.ndarray) -> np.ndarray:
    """Pairwise distances over their mean."""
    distances = cdist(x.astype(float), x.astype(float))
    distances[distances <= ROUNDING * abs(x).max()] = 0
    mean = distances.sum() / (len(x) * (len(x) - 1))
    return distances / mean if mean else distances


def cosines_at(x: np.ndarray, n: int) -> np.ndarray:
    """Cosines between the directions from sample n to all others."""
    edges = np.delete(x - x[n], n, 0)
    lengths = np.linalg.norm(edges.astype(float), axis=1)
    nonzero = lengths > ROUNDING * abs(x).max()
    units = np.where(nonzero[:, None], edges / np.where(nonzero, lengths, 1)[:, None], 0)
    return units @ units.T


def similarities(student: Batch, teacher: Batch) -> list[float]:
    if not len(student):
        return []
    q, p = (np.array(batch, dtype=np.longdouble) for batch in (student, teacher))
    unit = [g / np.sqrt((g**2).sum(1, keepdims=True)) for g in (q @ q.T, p @ p.T)]
    return ((unit[0] - unit[1]) ** 2).mean(1).tolist()
