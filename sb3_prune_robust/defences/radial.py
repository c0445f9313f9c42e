"""RADIAL-PPO: half of the surrogate at the least favourable outputs that interval bounds allow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_prune_robust.bounds import Ball
from sb3_prune_robust.defences.auxiliary import carry, wrapped
from sb3_prune_robust.defences.base import RobustTraining, check_number
from sb3_prune_robust.defences.regularized import Enclosing
from sb3_prune_robust.network import action_network, choices


class _Update(NamedTuple):
    """
    What the worst-case term needs during one update.

    :param enclosing: the bounds of the policy at the radius of the moment
    :param clip_range: PPO's, as of now
    :param sizes: the term of each minibatch so far
    """

    enclosing: Enclosing
    clip_range: float
    sizes: list[th.Tensor]


class RADIALPPO(RobustTraining, PPO):
    """
    RADIAL-PPO (Oikarinen et al. 2021, arXiv 2008.01976): the surrogate in PPO's loss is ``1 - weight`` times the clean one and
    ``weight`` times the one in which each action has the least favourable probability that interval bounds of the means or
    logits allow (:func:`worst_log_prob`). Entropy and value terms are not touched; sigma is taken as it is, and learns.

    As in the released code, the worst-case term takes advantages as they are, also where the clean one normalises them: with
    rewards that are not normalised its share in the gradient is not ``weight``. The bounds are pure interval bounds, wide at
    first: let ``eps`` rise slowly.

    Logged: ``defence/eps``, ``defence/worst_case_loss`` (the worst-case term's mean over the update, without ``weight``).
    Arguments as in ``PPO``, :class:`~sb3_prune_robust.defences.base.RobustTraining`, and

    :param weight: share of the worst-case term, in [0, 1]
    :raises ValueError: for a value outside its range, or observations that are no Box
    :raises UnsupportedNetworkError: for a policy without bounds: gSDE, MultiBinary actions, images, unknown layers
    """

    def __init__(self, *args: Any, weight: float = 0.5, **kwargs: Any) -> None:
        self.weight = weight
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_number("weight", self.weight, lambda value: 0 <= value <= 1, "in [0, 1], a share of the surrogate")

    def _setup_model(self) -> None:
        super()._setup_model()
        if not isinstance(self.observation_space, spaces.Box):
            raise ValueError(f"{type(self).__name__} needs Box observations, got {self.observation_space}")
        Ball.create(self.eps, self.norm, self.observation_space.shape)  # refuses another shape
        action_network(self.policy)  # refuses what has no bounds, or no formula here

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_minibatch", "_update"]

    def train(self) -> None:
        if not self.weight or not self.is_due:
            self._log_defence()
            return super().train()
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator, unused-ignore]
        self._update = _Update(Enclosing.of(self), clip_range, [])
        # PPO hands the policy observations and actions only: the rest of the minibatch is kept as the buffer yields it.
        with wrapped(self.rollout_buffer, "get", self._kept), wrapped(self.policy, "evaluate_actions", self._with_worst_case):
            super().train()
        self._log_defence(worst_case_loss=th.stack(self._update.sizes).mean().item())

    def _kept(self, _: Any, minibatches: Iterator[RolloutBufferSamples]) -> Iterator[RolloutBufferSamples]:
        for self._minibatch in minibatches:
            yield self._minibatch

    def _with_worst_case(self, observations: th.Tensor, result: Any) -> Any:
        values, log_prob, entropy = result
        enclosing, clip_range, sizes = self._update
        flat = observations.flatten(start_dim=1).to(enclosing.eps.dtype)
        lower, upper = enclosing.chain.interval(flat, enclosing.eps, enclosing.norm)
        batch = self._minibatch
        worst = worst_log_prob(self.policy, lower, upper, batch.actions, batch.advantages > 0)
        loss = surrogate_loss(worst - batch.old_log_prob, batch.advantages, clip_range)
        sizes.append(loss.detach())
        return values, carry(log_prob, self.weight * loss, share=1.0 - self.weight), entropy


def worst_log_prob(policy: Any, lower: th.Tensor, upper: th.Tensor, actions: th.Tensor, lowest: th.Tensor) -> th.Tensor:
    """
    The lowest or highest log-probability of actions while the policy's outputs stay in a box; it is attained.

    :param policy: an SB3 actor-critic policy
    :param lower: of means or logits, shape ``(n, n_outputs)``
    :param upper: same shape
    :param actions: as the rollout buffer has them, shape ``(n, k)``
    :param lowest: whether the lowest is asked for, else the highest; shape ``(n,)``
    :return: shape ``(n,)``, differentiable
    """
    lowest = lowest[:, None]
    nvec = choices(policy)
    if not nvec:
        below, above = actions - lower, upper - actions
        distance = th.where(lowest, th.maximum(below.abs(), above.abs()), (-th.minimum(below, above)).clamp(min=0.0))
        log_probs: th.Tensor = th.distributions.Normal(0.0, policy.log_std.exp()).log_prob(distance)
        return log_probs.sum(dim=1)
    total = lower.new_zeros(len(lower))
    starts = np.cumsum((0, *nvec[:-1]))
    for chosen, start, n in zip(actions.long().unbind(dim=1), starts, nvec, strict=True):
        own = th.arange(n, device=lower.device) == chosen[:, None]
        group = slice(start, start + n)
        logits = th.where(own == lowest, lower[:, group], upper[:, group])
        total = total + logits.log_softmax(dim=1).gather(1, chosen[:, None])[:, 0]
    return total


def surrogate_loss(log_ratio: th.Tensor, advantages: th.Tensor, clip_range: float) -> th.Tensor:
    """
    PPO's clipped surrogate, negated (Schulman et al. 2017, equation 7).

    :param log_ratio: of new to old probability, shape ``(n,)``
    :param advantages: same shape
    :param clip_range: of the ratio around 1
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -th.min(advantages * ratio, advantages * clipped).mean()
