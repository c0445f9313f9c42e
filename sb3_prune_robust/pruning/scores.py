"""Scores: what ranks weights. The lowest are pruned first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch as th


class Score(ABC):
    """
    Ranks the weights of a layer. A score that learns from gradients sets ``needs_gradient`` and fills ``observe``; one that
    looks at what the policy does at states sets ``needs_states`` and fills ``prepare`` and ``look``.
    """

    needs_gradient = False
    needs_states = False
    rounds = 1  # in so many equal prunes does `prune_policy` reach its sparsity

    @abstractmethod
    def __call__(self, name: str, weight: th.Tensor) -> th.Tensor:
        """
        :param name: the layer's name
        :param weight: its weight matrix
        :return: a score for each weight, same shape; the lowest are pruned first
        """

    def observe(self, name: str, weight: th.Tensor) -> None:  # noqa: B027 (most scores need none)
        """Called before each optimiser step, with the gradient in ``weight.grad``."""

    def check(self, policy: Any, names: Iterable[str]) -> None:  # noqa: B027
        """
        Called before a policy is pruned for the first time.

        :param policy: the policy
        :param names: of the layers that will be ranked
        :raises ValueError: if the score does not cover them
        """

    def prepare(self, policy: Any, observations: Any) -> None:  # noqa: B027
        """
        Called before the policy is pruned to its next sparsity, in one prune or in :attr:`rounds`.

        :param policy: the policy
        :param observations: states, as the policy receives them, shape ``(n, *obs_shape)``; in training the latest; ``None``
            where there are none
        """

    def look(self) -> None:  # noqa: B027
        """Called before each prune: the weights may have changed."""

    def reset(self, seed: int) -> None:  # noqa: B027
        """
        Called when the score meets another model: forget what was seen of the last one.

        :param seed: that of the model's training
        """


class MagnitudeScore(Score):
    """``|w|`` (Han et al. 2015)."""

    def __call__(self, name: str, weight: th.Tensor) -> th.Tensor:
        return weight.detach().abs()


class UnitScore(Score):
    """
    The Euclidean norm of the incoming weights of a weight's unit (or filter): whole units are pruned, the smallest first.

    Pruned weight by weight, nearly all units keep some; pruned by units, the network can be made smaller and so faster
    (:func:`~sb3_prune_robust.deployment.shrink`).
    """

    def __call__(self, name: str, weight: th.Tensor) -> th.Tensor:
        norms = weight.detach().flatten(start_dim=1).to(th.float64).norm(dim=1)
        # Orthogonal initialisation gives all units one norm: a tie between units would leave both in part.
        norms = norms * (1 + 1e-9 * th.arange(len(norms), device=norms.device))
        return norms.view(-1, *[1] * (weight.ndim - 1)).expand_as(weight)


class RandomScore(Score):
    """
    Uniform random numbers: the control that every other score must beat.

    :param seed: seed of a generator of its own, so that training's random numbers are not touched; ``None``: in training that
        of the model, else 0
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._generator = th.Generator().manual_seed(seed or 0)

    def reset(self, seed: int) -> None:
        self._generator.manual_seed(seed if self.seed is None else self.seed)

    def __call__(self, name: str, weight: th.Tensor) -> th.Tensor:
        return th.rand(weight.shape, generator=self._generator).to(weight.device)


class _GradientScore(Score):
    needs_gradient = True

    def __init__(self) -> None:
        self._sums: dict[str, th.Tensor] = {}

    def reset(self, seed: int) -> None:
        self._sums.clear()

    def _add(self, name: str, weight: th.Tensor, value: th.Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    @staticmethod
    def _gradient(name: str, weight: th.Tensor) -> th.Tensor:
        if weight.grad is None:
            raise ValueError(
                f"scores: {name} has no gradient at the optimiser's step, so it cannot be ranked by one (its requires_grad "
                f"is {weight.requires_grad}; TRPO moves the actor without filling .grad); use scores='magnitude' or 'random'"
            )
        return weight.grad.detach()

    def _seen(self, name: str) -> th.Tensor:
        if name not in self._sums:
            raise ValueError(
                f"scores: no gradient of {name} has been seen; this score needs training, use 'magnitude' or 'random'"
            )
        return self._sums[name]


class SaliencyScore(_GradientScore):
    """
    ``|w g|``, the first-order change of the loss when ``w`` is removed (Molchanov et al. 2017; SNIP, Lee et al. 2019).

    ``g`` is summed over all optimiser steps so far, each weighted by half of the one before 100 steps later, so that the noise
    of single minibatches averages out and old gradients are forgotten.
    """

    decay = 0.5**0.01

    def observe(self, name: str, weight: th.Tensor) -> None:
        if name in self._sums:
            self._sums[name] = self._sums[name] * self.decay
        self._add(name, weight, self._gradient(name, weight).clone())

    def __call__(self, name: str, weight: th.Tensor) -> th.Tensor:
        return (weight.detach() * self._seen(name)).abs()


class MovementScore(_GradientScore):
    """``-sum w g`` over all optimiser steps so far: low where training moves weights towards zero (Sanh et al. 2020)."""

    def observe(self, name: str, weight: th.Tensor) -> None:
        self._add(name, weight, -weight.detach() * self._gradient(name, weight))

    def __call__(self, name: str, weight: th.Tensor) -> th.Tensor:
        return self._seen(name)
