"""The observation at which the victim does what a learned Q likes least: the attack of Robust Sarsa."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.attacks.base import Array
from sb3_prune_robust.attacks.engines import AnalyticObjective, Objective, OutputObjective
from sb3_prune_robust.attacks.gradient import PGD
from sb3_prune_robust.attacks.losses import (
    AfterSquash,
    CategoricalKL,
    Loss,
    Margin,
    SquaredDifference,
    SquashedDifference,
    groups,
)
from sb3_prune_robust.attacks.objectives import policy_outputs
from sb3_prune_robust.attacks.robust_q import QFunction
from sb3_prune_robust.attacks.transitions import choices, probabilities
from sb3_prune_robust.network import UnsupportedNetworkError, box_of, is_greedy, kind_of


class LowQ(Loss):
    """
    ``-Q(s, a)`` in the network's units, a function of the victim's output ``a`` alone.

    For ``Box`` actions ``a`` is the mean (of a tanh-squashed actor: the action). For categorical ones of a victim that
    samples, ``Q`` is its mean over the choices' probabilities; for one that plays its most likely choice it is, in each group,
    the margin by which the choice of lowest ``Q`` leads the others (below 0: it does not).

    :param q: what was learned
    :param states: true observations, shape ``(n, d)``
    :param nvec: number of choices of each categorical; empty for ``Box``
    :param deterministic: the victim's mode
    """

    def __init__(self, q: QFunction, states: Array, nvec: tuple[int, ...], deterministic: bool) -> None:
        self.inputs, self.nvec, self.deterministic = q.standardised(states), nvec, deterministic
        self.network = q.network
        if nvec:
            self.values = self.network(self.inputs)
            lowest = np.zeros_like(self.values)
            for group in groups(nvec):
                lowest[np.arange(len(lowest)), group.start + self.values[:, group].argmin(axis=1)] = np.inf
            self.margin = Margin(lowest, nvec)
        else:
            first, d = self.network.weights[0], self.inputs.shape[1]
            self.before = self.inputs @ first[:, :d].T + self.network.biases[0]
            self.first = first[:, d:]

    def __call__(self, outputs: Array) -> tuple[Array, Array]:
        if not self.nvec:
            return self._of_means(outputs)
        if self.deterministic:
            values, derivative = self.margin(outputs)
            return -values, -derivative
        return self._of_logits(outputs)

    def _of_means(self, means: Array) -> tuple[Array, Array]:
        (_, second, last), (_, bias, offset) = self.network.weights, self.network.biases
        low = np.tanh(self.before + means.dot(self.first.T))
        high = np.tanh(low.dot(second.T) + bias)
        back = ((1.0 - high * high) * last[0]).dot(second) * (1.0 - low * low)
        return -(high.dot(last[0]) + offset[0]).astype(means.dtype), -back.dot(self.first).astype(means.dtype)

    def _of_logits(self, logits: Array) -> tuple[Array, Array]:
        chances = probabilities(logits, self.nvec)
        values, derivative = np.zeros(len(logits), logits.dtype), np.empty_like(logits)
        for group in groups(self.nvec):
            mean = (chances[:, group] * self.values[:, group]).sum(axis=1)
            values -= mean
            derivative[:, group] = -chances[:, group] * (self.values[:, group] - mean[:, None])
        return values, derivative


class Mixed(Loss):
    """
    ``ratio * first + (1 - ratio) * second``.

    :param ratio: in [0, 1]
    :param first: a loss
    :param second: a loss
    """

    def __init__(self, ratio: float, first: Loss, second: Loss) -> None:
        self.ratio, self.first, self.second = ratio, first, second

    def __call__(self, outputs: Array) -> tuple[Array, Array]:
        (one, slope), (other, other_slope) = self.first(outputs), self.second(outputs)
        return self.ratio * one + (1 - self.ratio) * other, self.ratio * slope + (1 - self.ratio) * other_slope


class QDescent(PGD):
    """
    The observation at which the victim does what ``Q`` likes least, by :class:`PGD`. Other arguments as there.

    :param q: what was learned
    :param ratio: of the mix with :class:`MAD`'s objective, in [0, 1)
    """

    def __init__(self, eps: float | npt.ArrayLike, *args: Any, q: QFunction, ratio: float, **kwargs: Any) -> None:
        super().__init__(eps, *args, **kwargs)
        self.q, self.ratio = q, ratio

    def objective_on(self, policy: Any, clean: Array) -> Objective:
        expected, nvec = len(self.q.mean), choices(policy.action_space)
        if clean.shape[1] != expected:
            raise ValueError(f"obs has {clean.shape[1]} entries; Q was learned on a victim that has {expected}")
        deterministic, box = self.deterministic or is_greedy(policy), box_of(policy)
        loss: Loss = LowQ(self.q, clean, nvec, deterministic)
        if box is not None:
            loss = AfterSquash(loss, box)
        if self.ratio:
            loss = Mixed(self.ratio, self._difference(policy_outputs(policy, clean, self._reader), nvec, policy), loss)
        if self.engine != "autograd":
            try:
                return AnalyticObjective(self._reader.read(policy, "action"), loss)
            except UnsupportedNetworkError:
                if self.engine == "analytic":
                    raise
        return OutputObjective(policy, loss)

    def _difference(self, outputs: Array, nvec: tuple[int, ...], policy: Any) -> Loss:
        """MAD's objective."""
        box = box_of(policy)
        if nvec:
            return (Margin if self.deterministic or is_greedy(policy) else CategoricalKL)(outputs, nvec)
        if box is not None:
            return SquashedDifference(outputs, box)
        if self.deterministic or kind_of(policy) == "linear":
            return SquaredDifference(outputs, np.ones_like(outputs[0]))
        if policy.use_sde:
            raise UnsupportedNetworkError(
                "gSDE's covariance depends on the state, so MAD has no weight here; give ratios=(0.0,)"
            )
        return SquaredDifference(outputs, np.exp(policy.log_std.detach().cpu().numpy()) ** -2)
