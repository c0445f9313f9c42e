"""SA-PPO and its like for SAC, TD3 and DQN, and training against the certificate."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3 import DQN, PPO, SAC, TD3

from sb3_prune_robust.defences.base import check_number
from sb3_prune_robust.defences.regularized import Enclosing, Regularized, StateAdversarial, checked_chain


class SAPPO(StateAdversarial, PPO):
    """
    SA-PPO (Zhang et al. 2020, arXiv 2003.08938): PPO with ``kappa`` times the largest KL divergence over the ball between the
    policy's distributions at the true and at the perturbed observation.

    Arguments as in ``PPO``, :class:`~sb3_prune_robust.defences.regularized.StateAdversarial`, ``Regularized`` and
    :class:`~sb3_prune_robust.defences.base.RobustTraining`. The released code's term lacks the KL's 1/2: its ``kappa`` (Hopper
    .1 convex, 1.0 SGLD; Walker2d .1; HalfCheetah .1; Ant .003) is half of what is given here.
    """


class SASAC(StateAdversarial, SAC):
    """
    SAC whose actor's loss holds ``kappa`` times the largest ``||a(s') - a(s)||^2 / 2`` over the ball, ``a`` the deterministic
    action in [-1, 1] (Zhang et al. 2020, section 3.4, has it for DDPG). Arguments as in ``SAC`` and :class:`SAPPO`.
    """


class SATD3(StateAdversarial, TD3):
    """As :class:`SASAC`, for TD3, whose predecessor DDPG is the paper's (Zhang et al. 2020, section 3.4)."""


class SADQN(StateAdversarial, DQN):
    """
    SA-DQN (Zhang et al. 2020, section 3.5): DQN with ``kappa`` times the largest over the ball of the hinge
    ``max(max_(j != i) Q(s', j) - Q(s', i), -margin)``, ``i`` the greedy choice at ``s``. Arguments as in ``DQN`` and
    :class:`SAPPO`, and

    :param margin: by how much the greedy choice must stay ahead, in units of Q; beyond it the term has no gradient
    """

    def __init__(self, *args: Any, margin: float = 1.0, **kwargs: Any) -> None:
        self.margin = margin
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_number("margin", self.margin, lambda value: value >= 0, "a finite number >= 0, in units of Q")


class CertifiedPPO(Regularized, PPO):
    """
    PPO with ``kappa`` times the mean certified distance between the policy's distributions over the ball: the whitened radius
    ``||r / sigma||_2`` of a Gaussian policy, ``r`` the bound on the change of each mean by interval bounds and, as ``eps``
    grows, their linear relaxation; the change of log-odds ``omega`` of a categorical one. It is the shift that a step of the
    certified return by action noise (:func:`~sb3_prune_robust.certify_return`) may cost.

    SA-PPO's convex form penalises half its square, which hardly touches states that are nearly certified; this does.
    Arguments as in ``PPO``, :class:`~sb3_prune_robust.defences.regularized.Regularized` and
    :class:`~sb3_prune_robust.defences.base.RobustTraining`.
    """

    def _check_policy(self) -> None:
        checked_chain(self, "its term")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_enclosing"]

    def _prepare(self) -> None:
        self._enclosing = Enclosing.of(self)

    def _term(self, observations: th.Tensor) -> th.Tensor:
        return self._enclosing.distance(self.policy, observations)
