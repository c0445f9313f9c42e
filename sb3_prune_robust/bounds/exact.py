"""
The change of a policy's actions up to a tolerance, by branch and bound over the ball: the yardstick for small networks.

Boxes of perturbations are bounded by CROWN around their own centres; those that may hold the maximum are halved until the best
point found is within the tolerance of the largest bound left. The time grows exponentially with the number of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sb3_prune_robust.bounds.action import inverse_std
from sb3_prune_robust.bounds.ball import Ball, rounding_margin
from sb3_prune_robust.bounds.crown import CHUNK, LinearChange, linear_change
from sb3_prune_robust.bounds.interval import output_interval
from sb3_prune_robust.bounds.local import joint_norm, logit_pairs
from sb3_prune_robust.network import ActionNetwork, Array

# Rounding errors of the outputs at a state, this often, are not worth halving boxes for.
_ROUNDING = 30.0
_LONGEST = 32.0


@dataclass(frozen=True)
class ExactChange:
    """
    What branch and bound found for one state.

    :param lower: a distance that a point of the ball reaches: ``delta``, or the largest ``omega`` of the categoricals
    :param upper: a bound on the distance over the whole ball
    :param point: that point, a perturbation ``d`` of shape ``(n_inputs,)``
    :param n_boxes: boxes bounded
    """

    lower: float
    upper: float
    point: Array
    n_boxes: int


def exact_change(
    network: ActionNetwork, observation: Array, ball: Ball, tolerance: float = 0.01, max_boxes: int = 200_000
) -> ExactChange:
    """
    The largest ``delta`` or ``omega`` over the ball around one state.

    :param network: the policy's network in float64
    :param observation: shape ``(n_inputs,)``
    :param ball: the perturbations
    :param tolerance: stop when ``upper <= (1 + tolerance) lower``, or what is above it may be rounding alone
    :param max_boxes: stop after so many boxes in any case: ``upper`` is then a bound all the same
    :return: lower and upper bound
    :raises ValueError: for a tolerance that is not positive
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance!r}")
    search = _Search(network, observation, ball)
    while search.upper > (1.0 + tolerance) * search.lower + search.rounding and search.n_boxes < max_boxes:
        search.split()
    return ExactChange(search.lower, search.upper, search.point, search.n_boxes)


class _Search:
    """Open boxes ``centre +- half`` in units of ``eps``, a bound for each, and the best point so far."""

    def __init__(self, network: ActionNetwork, observation: Array, ball: Ball) -> None:
        self.network, self.observation, self.ball = network, observation, ball
        self.output = network(observation[None])[0]
        self.rows = self._rows()
        self.rounding = _ROUNDING * float(self._reduce(self._errors(observation[None]))[0])
        d = network.n_inputs
        self.lower, self.point, self.n_boxes = 0.0, np.zeros(d), 0
        self.centres, self.halves = np.zeros((0, d)), np.zeros((0, d))
        self.bounds, self.shares = np.zeros(0), np.zeros((0, d))
        self._add(np.zeros((1, d)), np.where(ball.eps > 0, 1.0, 0.0)[None])

    def _rows(self) -> Array:
        identity = np.eye(self.network.n_outputs)
        if self.network.is_gaussian:
            return identity
        pairs = logit_pairs(self.network)
        if sum(n * (n - 1) // 2 for n in self.network.nvec) != len(pairs):
            raise ValueError(f"categoricals of {max(self.network.nvec)} choices are too large for branch and bound")
        return np.array([identity[i] - identity[j] for i, j in pairs]).reshape(-1, self.network.n_outputs)

    @property
    def upper(self) -> float:
        return max(self.lower, float(self.bounds.max(initial=0.0)))

    def split(self) -> None:
        """Halve the most promising boxes, each across the input that its bound depends on most."""
        chosen = np.argsort(-self.bounds)[:CHUNK]
        centres, halves = self.centres[chosen], self.halves[chosen]
        # Boxes may be so many times as long as wide: a line may be flat, but no input is to be left whole for ever.
        narrowest = np.where(halves > 0, halves, np.inf).min(axis=1, keepdims=True)
        row, widest = np.arange(len(chosen)), (self.shares[chosen] + halves / narrowest / _LONGEST).argmax(axis=1)
        keep = np.ones(len(self.bounds), bool)
        keep[chosen] = False
        self._keep(keep)
        halves[row, widest] *= 0.5
        shift = np.zeros_like(centres)
        shift[row, widest] = halves[row, widest]
        self._add(np.concatenate([centres - shift, centres + shift]), np.concatenate([halves, halves]))
        self._keep(self.bounds > self.lower)

    def _keep(self, keep: Array) -> None:
        self.centres, self.halves = self.centres[keep], self.halves[keep]
        self.bounds, self.shares = self.bounds[keep], self.shares[keep]

    def _add(self, centres: Array, halves: Array) -> None:
        if self.ball.norm == "l2":  # boxes outside the ball
            nearest = np.linalg.norm(np.maximum(np.abs(centres) - halves, 0.0), axis=1)
            centres, halves = centres[nearest <= 1.0], halves[nearest <= 1.0]
        if not len(centres):
            return
        self.n_boxes += len(centres)
        states = self.observation + centres * self.ball.eps
        # A little wider, as the centres are rounded.
        width = halves * self.ball.eps + rounding_margin(4) * (np.abs(self.observation) + self.ball.eps) * (self.ball.eps > 0)
        boxes = Ball(width, "linf")
        change = linear_change(self.network, states, boxes, self.rows)
        moved = (self.network(states) - self.output) @ self.rows.T
        slope = 0.5 * (change.lower_slope + change.upper_slope)
        direction = np.sign(np.einsum("nm,nmd->nd", moved, slope))
        self._try(np.concatenate([centres, centres + halves * direction]))
        bounds = self._bounds(moved, self._errors(states), change, boxes)
        self.centres, self.halves = np.concatenate([self.centres, centres]), np.concatenate([self.halves, halves])
        self.bounds = np.concatenate([self.bounds, bounds])
        self.shares = np.concatenate([self.shares, _shares(change)])

    def _errors(self, states: Array) -> Array:
        """Rounding of the rows' changes from the observation to the states, shape ``(n, m)``."""
        low, high = output_interval(self.network, np.concatenate([self.observation[None], states]))
        width = high - low
        return (width[1:] + width[:1]) @ np.abs(self.rows).T

    def _bounds(self, moved: Array, errors: Array, change: LinearChange, boxes: Ball) -> Array:
        """On the distance over each box, shape ``(n,)``; infinite where the computation overflowed."""
        below, above = change.bounds(boxes)
        bounds = self._reduce(np.maximum(np.abs(moved + below), np.abs(moved + above)) + errors)
        if self.network.is_gaussian:
            joint = joint_norm(change, inverse_std(self.network), boxes)
            bounds = np.fmin(bounds, self._reduce(np.abs(moved) + errors) + joint)
        bounds = bounds * (1.0 + rounding_margin(moved.shape[1] + 16))
        return np.where(np.isnan(bounds), np.inf, bounds)

    def _reduce(self, changes: Array) -> Array:
        """The distance from absolute changes of the rows, shape ``(n, m)`` to ``(n,)``."""
        if self.network.is_gaussian:
            return np.asarray(np.linalg.norm(changes * inverse_std(self.network), axis=1))
        return changes.max(axis=1, initial=0.0)

    def _try(self, points: Array) -> None:
        if self.ball.norm == "l2":
            points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1.0)
        reached = self._reduce(np.abs((self.network(self.observation + points * self.ball.eps) - self.output) @ self.rows.T))
        reached = np.where(np.isfinite(reached), reached, 0.0)
        if reached.max() > self.lower:
            self.lower, self.point = float(reached.max()), points[reached.argmax()] * self.ball.eps


def _shares(change: LinearChange) -> Array:
    """How much of a box's bound is due to each input, relative to the one that matters most, shape ``(n, n_inputs)``."""
    size = (np.abs(change.lower_slope) + np.abs(change.upper_slope)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(size / np.maximum(size.max(axis=1, keepdims=True), 1e-300))
