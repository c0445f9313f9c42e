"""Distributions: how a sparsity is shared over layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

DISTRIBUTIONS: dict[str, Callable[[Sequence[int]], float] | None] = {
    "uniform": lambda shape: 1.0,
    # Erdos-Renyi: the share kept is proportional to (n_in + n_out) / (n_in n_out), so that thin layers stay denser (Mocanu et
    # al. 2018); of a convolution to (n_in + n_out + height + width) / (n_in n_out height width) (Evci et al. 2020).
    "erk": lambda shape: sum(shape) / math.prod(shape),
    "global": None,  # no share a layer: all weights are ranked together
}


def check_distribution(distribution: str) -> None:
    """:raises ValueError: for an unknown name"""
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution={distribution!r} is unknown; known: {', '.join(DISTRIBUTIONS)}")


def share(distribution: str, shapes: Mapping[str, Sequence[int]], alive: Mapping[str, int], n_keep: int) -> dict[str, int]:
    """
    How many weights each layer keeps, summing to ``n_keep`` exactly.

    Layer ``l`` keeps ``c * factor_l`` of its weights, ``c`` the same for all, but never more than it has left: what one layer
    cannot keep, the others do. Each layer keeps one weight at least: a layer with none would cut the network in two.

    :param distribution: ``"uniform"`` (factor 1) or ``"erk"`` (factor: sum of the weight's dimensions over their product)
    :param shapes: shape of each layer's weight
    :param alive: number of weights that are not pruned yet, a layer
    :param n_keep: number of weights to keep in all, at most the sum of ``alive``
    :return: number of weights to keep, a layer
    """
    factor = DISTRIBUTIONS[distribution]
    assert factor is not None and n_keep <= sum(alive.values())
    wishes = {name: factor(shape) * math.prod(shape) for name, shape in shapes.items()}
    ideal: dict[str, float] = {}
    free = set(shapes)
    while True:
        scale = (n_keep - sum(ideal.values())) / (sum(wishes[name] for name in free) or 1.0)
        full = {name for name in free if wishes[name] * scale >= alive[name]}
        if not full:
            break
        ideal.update({name: alive[name] for name in full})
        free -= full
    ideal.update({name: wishes[name] * scale for name in free})
    return _round_to_sum({name: ideal[name] for name in shapes}, n_keep)


def _round_to_sum(ideal: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers >= 1 that sum to ``total``, near the ideal: the largest remainders are rounded up."""
    counts = {name: max(math.floor(value + 1e-9), 1) for name, value in ideal.items()}
    by_remainder = sorted(ideal, key=lambda name: counts[name] - ideal[name])
    for name in by_remainder[: max(total - sum(counts.values()), 0)]:
        counts[name] += 1
    while sum(counts.values()) > total:  # a layer was given its one weight at the cost of the others
        counts[max(counts, key=lambda name: counts[name])] -= 1
    return counts
