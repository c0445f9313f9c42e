"""A regulariser of the policy in an SB3 algorithm's loss: state-adversarial, or the certificate itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_prune_robust.attacks import Attack
from sb3_prune_robust.bounds import Ball
from sb3_prune_robust.defences.auxiliary import carry, wrapped
from sb3_prune_robust.defences.base import SCHEDULES, RobustTraining, check_choice, check_number
from sb3_prune_robust.defences.convex import Chain
from sb3_prune_robust.defences.smoothness import INNER, action_distance, bound, chain_of, divergence, make_inner
from sb3_prune_robust.network import UnsupportedNetworkError, action_network, choices, kind_of


class Regularized(RobustTraining):
    """
    Adds ``kappa`` times the mean over the minibatch of a term of the policy to the loss that steps the actor.

    Logged: ``defence/eps``, ``defence/kappa`` and ``defence/regularizer``, the term's mean over the update, without ``kappa``;
    ``train/loss`` and its like are what the algorithm computes by itself.

    :param kappa: weight of the term, at least 0
    :param kappa_schedule: ``"constant"``, or ``"linear"``: from 0 at the start of training to ``kappa`` at ``eps_end``
    """

    def __init__(self, *args: Any, kappa: float = 0.2, kappa_schedule: str = "constant", **kwargs: Any) -> None:
        self.kappa, self.kappa_schedule = kappa, kappa_schedule
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_number("kappa", self.kappa, lambda value: value >= 0, "a finite number >= 0")
        check_choice("kappa_schedule", self.kappa_schedule, SCHEDULES)

    def _setup_model(self) -> None:
        super()._setup_model()
        if not isinstance(self.observation_space, spaces.Box):
            raise ValueError(f"{type(self).__name__} needs Box observations, got {self.observation_space}")
        Ball.create(self.eps, self.norm, self.observation_space.shape)  # refuses another shape
        if not hasattr(self, "_defence_rng"):  # after load it goes on where it was
            self._defence_rng = np.random.default_rng(self.seed)
        if max(choices(self.policy), default=2) == 1:
            raise ValueError(f"{type(self).__name__} has nothing to defend: action space {self.action_space} is of one choice")
        if any(isinstance(module, nn.modules.dropout._DropoutNd) for module in self.policy.modules()):
            raise UnsupportedNetworkError(
                f"{type(self).__name__} does not cover dropout: its noise would pass for an attack's"
            )
        self._check_policy()

    @abstractmethod
    def _check_policy(self) -> None:
        """:raises UnsupportedNetworkError: for a policy that the term does not cover"""

    @abstractmethod
    def _term(self, observations: th.Tensor) -> th.Tensor:
        """The term at each observation of a minibatch, shape ``(n,)``."""

    def _prepare(self) -> None:
        """Called before each update in which the term takes part."""

    @property
    def kappa_now(self) -> float:
        """The weight that is due."""
        return self.kappa * (self.share_due if self.kappa_schedule == "linear" else 1.0)

    def train(self, *args: Any, **kwargs: Any) -> None:
        kappa = self.kappa_now
        if not kappa or not self.is_due:
            self._log_defence(kappa=kappa)
            return super().train(*args, **kwargs)
        self._prepare()
        sizes: list[th.Tensor] = []

        def with_term(observations: th.Tensor, result: Any) -> Any:
            term = self._term(observations).mean()
            sizes.append(term.detach())
            if isinstance(result, tuple):
                return carry(result[0], kappa * term), *result[1:]
            return carry(result, kappa * term)

        with wrapped(*_acting(self.policy), with_term):
            super().train(*args, **kwargs)
        # None where no step of the actor was due: TD3 delays them.
        self._log_defence(kappa=kappa, **({"regularizer": th.stack(sizes).mean().item()} if sizes else {}))


def _acting(policy: Any) -> tuple[Any, str]:
    """The method whose result an algorithm's loss of the actor is made of, and whose it is."""
    kind = kind_of(policy)
    if kind == "q":
        return policy.q_net, "forward"
    if kind == "actor":
        return policy.actor, "forward"
    return (policy.actor, "action_log_prob") if kind == "squashed" else (policy, "evaluate_actions")


class StateAdversarial(Regularized):
    """
    The regulariser of SA-PPO and its like (Zhang et al. 2020, arXiv 2003.08938): how far an adversary can move the policy's
    actions, the largest over the ball of the measure in :mod:`~sb3_prune_robust.defences.smoothness`.

    :param inner: how the largest is found: ``"pgd"`` (one search, best point kept), ``"sgld"`` (as the released code) or
        ``"convex"``: an upper bound, the interval bound at first, moving to the linear relaxation as ``eps`` grows
    :param steps: gradient steps of ``"pgd"`` and ``"sgld"``
    """

    margin = 1.0

    def __init__(self, *args: Any, inner: str = "convex", steps: int = 10, **kwargs: Any) -> None:
        self.inner, self.steps = inner, steps
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_choice("inner", self.inner, INNER)
        check_number("steps", self.steps, lambda value: value >= 1 and value == int(value), "a whole number >= 1")

    def _check_policy(self) -> None:
        kind_of(self.policy)
        if self.inner == "convex":
            checked_chain(self, "inner='convex'; use inner='pgd'")
        else:
            check_attackable(self.observation_space, self.eps, self.inner)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_attack", "_enclosing"]

    def _prepare(self) -> None:
        self._attack: Attack | None = None
        if self.inner == "convex":
            self._enclosing = Enclosing.of(self)
        else:
            seed = int(self._defence_rng.integers(2**31))
            self._attack = make_inner(self.policy, self.inner, self.eps_now, self.norm, int(self.steps), seed)

    def _term(self, observations: th.Tensor) -> th.Tensor:
        if self._attack is None:
            return self._enclosing.bound(self.policy, observations, self.margin)
        return divergence(self.policy, observations, self._attack(self.policy, observations), self.margin)


class Enclosing:
    """
    The bounds of an algorithm's policy at the radius of the moment.

    :param chain: the policy's action network
    :param eps: radius, shape ``(d,)``
    :param norm: ``"linf"`` or ``"l2"``
    :param linear: share of the linear relaxation
    """

    def __init__(self, chain: Chain, eps: th.Tensor, norm: str, linear: float) -> None:
        self.chain, self.eps, self.norm, self.linear = chain, eps, norm, linear

    @classmethod
    def of(cls, model: RobustTraining) -> Enclosing:
        """The share of the linear relaxation rises from 0 to 1 at ``eps_end``, as 1 - beta does in the released code."""
        ball = Ball.create(model.eps_now, model.norm, model.observation_space.shape or ())
        weight = next(model.policy.parameters())
        eps = th.as_tensor(ball.eps, dtype=weight.dtype, device=weight.device)
        return cls(chain_of(model.policy), eps, model.norm, model.share_due)

    def bound(self, policy: Any, observations: th.Tensor, margin: float) -> th.Tensor:
        """:func:`~sb3_prune_robust.defences.smoothness.bound`, shape ``(n,)``"""
        return bound(policy, self.chain, observations, self.eps, self.norm, self.linear, margin)

    def distance(self, policy: Any, observations: th.Tensor) -> th.Tensor:
        """The whitened radius of a Gaussian policy, or the sum of its categoricals' ``omega``; shape ``(n,)``."""
        flat = observations.flatten(start_dim=1).to(self.eps.dtype)
        found = action_distance(policy, self.chain, flat, self.eps, self.norm, self.linear)
        gaussian = hasattr(policy, "log_std")
        return th.linalg.vector_norm(found, dim=1) if gaussian else found.sum(dim=1)


def check_attackable(space: spaces.Space[Any], eps: Any, inner: str) -> None:
    """:raises ValueError: for observations that attacks do not cover, and images that ``eps`` cannot change"""
    if space.dtype == np.uint8 and 0 < np.max(eps) < 1:
        raise ValueError(f"eps={eps!r} changes no image by inner={inner!r}, which moves whole pixel values: give at least 1")
    if space.dtype not in (np.uint8, np.float32, np.float64):
        raise ValueError(f"inner={inner!r} attacks observations of floats or uint8, got {space}; use inner='convex'")


def checked_chain(model: Regularized, what: str) -> None:
    """:raises UnsupportedNetworkError: if the policy has no bounds, saying what needs them"""
    try:
        action_network(model.policy)  # refuses gSDE and MultiBinary actions, too
        chain_of(model.policy)
    except UnsupportedNetworkError as error:
        raise UnsupportedNetworkError(
            f"{type(model).__name__} needs bounds of the policy's network for {what}: {error}"
        ) from None
