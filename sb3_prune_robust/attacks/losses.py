"""What an attack maximises, as functions of the network's output, each with its derivative by hand.

Every loss is called with outputs of shape ``(n, n_outputs)`` and gives its values, shape ``(n,)``, and their derivatives
with respect to the outputs, shape ``(n, n_outputs)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.network import Box

Array = npt.NDArray[Any]


# A saturated tanh has no slope, in float32 none at all, and an attack that climbs it would stay where it starts.
LEAST_SLOPE = 1e-3


class Loss(ABC):
    """
    A function of the network's output.

    :cvar flat_at_center: its derivative is zero at the true observation, so that a search must not start there
    """

    flat_at_center: bool = False

    @abstractmethod
    def __call__(self, outputs: Array) -> tuple[Array, Array]: ...


class SquaredDifference(Loss):
    """
    ``sum_i weight_i (mu_hat_i - mu_i)^2 / 2``; with ``weight = 1 / sigma^2`` the KL divergence of two Gaussians.

    :param clean: means at the true observations, shape ``(n, n_outputs)``
    :param weight: shape ``(n_outputs,)``
    """

    flat_at_center = True

    def __init__(self, clean: Array, weight: Array) -> None:
        self.clean, self.weight = clean, weight
        self._half = np.full(clean.shape[1], 0.5, clean.dtype)

    def __call__(self, outputs: Array) -> tuple[Array, Array]:
        difference = outputs - self.clean
        derivative = self.weight * difference
        return (derivative * difference).dot(self._half), derivative  # three times as fast as a sum over axis 1


class SquashedDifference(Loss):
    """
    ``||a(z_hat) - a(z)||^2 / 2``, ``a`` the action that an actor's output before its tanh stands for.

    A saturated tanh has no slope, and the attack would be blind where the actor plays the ends of its box: so a thousandth of
    the squared difference before the tanh, which costs the objective next to nothing and leads out of there, is added.

    :param clean: outputs at the true observations, shape ``(n, n_outputs)``
    :param box: the actions
    """

    flat_at_center = True
    share = 1e-3

    def __init__(self, clean: Array, box: Box) -> None:
        self.clean, self.half = clean, box.half.astype(clean.dtype)
        self.played = np.tanh(clean)

    def __call__(self, outputs: Array) -> tuple[Array, Array]:
        squashed = np.tanh(outputs)
        moved, before = self.half * (squashed - self.played), outputs - self.clean
        values = (moved**2 + self.share * before**2).sum(axis=1) / 2
        return values, moved * self.half * (1.0 - squashed**2) + self.share * before


class AfterSquash(Loss):
    """
    A loss of actions as one of an actor's outputs before its tanh, whose slope is taken as at least :data:`LEAST_SLOPE`.

    :param loss: of actions
    :param box: the actions
    """

    def __init__(self, loss: Loss, box: Box) -> None:
        self.loss, self.box, self.flat_at_center = loss, box, loss.flat_at_center

    def __call__(self, outputs: Array) -> tuple[Array, Array]:
        values, derivative = self.loss(self.box.action(outputs).astype(outputs.dtype))
        slope = np.maximum(1.0 - np.tanh(outputs) ** 2, LEAST_SLOPE)
        return values, (derivative * self.box.half * slope).astype(outputs.dtype)


class CategoricalKL(Loss):
    """
    ``sum_groups KL(softmax(z) || softmax(z_hat))``, whose derivative is ``softmax(z_hat) - softmax(z)``.

    :param clean: logits at the true observations, shape ``(n, n_outputs)``
    :param nvec: sizes of the groups, summing to ``n_outputs``
    """

    flat_at_center = True

    def __init__(self, clean: Array, nvec: tuple[int, ...]) -> None:
        self.clean = _log_softmax(clean, nvec)
        self.probabilities = np.exp(self.clean)
        self.nvec = nvec

    def __call__(self, outputs: Array) -> tuple[Array, Array]:
        log_probabilities = _log_softmax(outputs, self.nvec)
        values = (self.probabilities * (self.clean - log_probabilities)).sum(axis=1)
        return values, np.exp(log_probabilities) - self.probabilities


class Margin(Loss):
    """
    ``sum_groups max_{j != a} z_hat_j - z_hat_a``, ``a`` the most likely choice at the true observation: above 0 in a group,
    the victim that plays its most likely action plays another one.

    :param clean: logits at the true observations, shape ``(n, n_outputs)``
    :param nvec: sizes of the groups, summing to ``n_outputs``; a group of one choice has no margin and adds nothing
    """

    def __init__(self, clean: Array, nvec: tuple[int, ...]) -> None:
        self.groups = [(group, clean[:, group].argmax(axis=1)) for group in groups(nvec) if group.stop - group.start > 1]

    def __call__(self, outputs: Array) -> tuple[Array, Array]:
        values, derivative = np.zeros(len(outputs), outputs.dtype), np.zeros_like(outputs)
        rows = np.arange(len(outputs))
        for group, chosen in self.groups:
            rivals = outputs[:, group].copy()
            rivals[rows, chosen] = -np.inf
            rival = rivals.argmax(axis=1)
            values += outputs[rows, group.start + rival] - outputs[rows, group.start + chosen]
            derivative[rows, group.start + rival] = 1.0
            derivative[rows, group.start + chosen] = -1.0
        return values, derivative


class TowardsLowest(Loss):
    """
    ``log softmax(z_hat)_b`` after scaling, ``b`` the choice of lowest value at the true observation: the attack of
    Pattanaik et al. 2018 (section 3) on a Q network, which makes the victim play what it values least.

    Q values have any size: they are divided by their spread at the true observation, so that the softmax is not one-hot.

    :param clean: Q values at the true observations, shape ``(n, n_outputs)``
    :param nvec: ``(n_outputs,)``
    """

    def __init__(self, clean: Array, nvec: tuple[int, ...]) -> None:
        self.nvec = nvec
        self.scale = 1.0 / (clean.std(axis=1, keepdims=True) + 1e-6 * (1.0 + np.abs(clean).max(axis=1, keepdims=True)))
        self.wanted = np.zeros_like(clean)
        self.wanted[np.arange(len(clean)), clean.argmin(axis=1)] = 1.0

    def __call__(self, outputs: Array) -> tuple[Array, Array]:
        log_chances = _log_softmax(outputs * self.scale, self.nvec)
        return (self.wanted * log_chances).sum(axis=1), (self.wanted - np.exp(log_chances)) * self.scale


class NegativeValue(Loss):
    """``-V(s_hat)``: the attack looks for the observation that the critic likes least."""

    def __call__(self, outputs: Array) -> tuple[Array, Array]:
        return -outputs[:, 0], np.full_like(outputs, -1.0)


class Direction(Loss):
    """
    ``sum_i direction_i z_hat_i``: how far the output goes in a direction.

    :param direction: shape ``(n, n_outputs)``
    """

    def __init__(self, direction: Array) -> None:
        self.direction = direction

    def __call__(self, outputs: Array) -> tuple[Array, Array]:
        return (self.direction * outputs).sum(axis=1), self.direction


def groups(nvec: tuple[int, ...]) -> list[slice]:
    """Where each categorical's entries lie among all, given the number of choices of each."""
    stops = np.cumsum(nvec).tolist()
    return [slice(stop - n, stop) for n, stop in zip(nvec, stops, strict=True)]


def _log_softmax(logits: Array, nvec: tuple[int, ...]) -> Array:
    result = np.empty_like(logits)
    for group in groups(nvec):
        shifted = logits[:, group] - logits[:, group].max(axis=1, keepdims=True)
        result[:, group] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
