"""
L-BFGS with a line search that halves its steps, for functions that are infinite outside an open domain.

Nocedal & Wright, Numerical Optimization, 2006, algorithm 7.5. scipy's L-BFGS-B interpolates between values of its line search,
which an infinite one makes impossible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sb3_prune_robust.network import Array

_MEMORY = 10

Objective = Callable[[Array], tuple[float, Array]]


def minimised(objective: Objective, point: Array, n_iterations: int) -> Array:
    """
    A point at which a smooth function is lower than at the one given.

    :param objective: value and gradient at a point; an infinite value outside the function's domain
    :param point: the start, inside the domain, shape ``(n,)``
    :param n_iterations: at most
    :return: the last point, never higher than the start
    """
    value, gradient = objective(point)
    history: list[tuple[Array, Array]] = []
    for _ in range(n_iterations if math.isfinite(value) else 0):
        direction = _direction(gradient, history)
        found = _searched(objective, point, value, gradient, direction)
        if found is None:
            break
        step, value, new_gradient = found
        if step @ (new_gradient - gradient) > 0.0:
            history = [*history[1 - _MEMORY :], (step, new_gradient - gradient)]
        point, gradient = point + step, new_gradient
    return point


def _direction(gradient: Array, history: Sequence[tuple[Array, Array]]) -> Array:
    if not history:
        return -0.1 * gradient / (np.abs(gradient).max() + 1e-300)  # logarithms: the first step changes T by 10 %
    direction, weights = gradient.copy(), []
    for step, change in reversed(history):
        weights.append((step @ direction) / (step @ change))
        direction -= weights[-1] * change
    step, change = history[-1]
    direction *= (step @ change) / (change @ change)
    for (step, change), weight in zip(history, reversed(weights), strict=True):
        direction += step * (weight - (change @ direction) / (step @ change))
    return -direction


def _searched(
    objective: Objective, point: Array, value: float, gradient: Array, direction: Array
) -> tuple[Array, float, Array] | None:
    slope = float(gradient @ direction)
    length = min(1.0, 2.0 / float(np.abs(direction).max() + 1e-300))
    while slope < 0.0 and length > 1e-6:
        new_value, new_gradient = objective(point + length * direction)
        if new_value <= value + 1e-4 * length * slope:
            return length * direction, new_value, new_gradient
        length *= 0.5
    return None
