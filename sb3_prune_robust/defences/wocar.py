"""WocaR-PPO: actions that lead to where an adversary can do harm count for less."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_prune_robust.defences.base import check_number
from sb3_prune_robust.defences.regularized import Enclosing, StateAdversarial
from sb3_prune_robust.network import action_network, choices

_HIDDEN = 64
_FOLLOW = 1e-3  # share of Q that the target network takes over at each step
_DESCENT = 5  # gradient steps towards the worst action
_DRAWS = 8  # pairs of actions that Q is averaged over under a Gaussian policy

Array = npt.NDArray[Any]


class WorstCaseQ(nn.Module):
    """
    ``Q_w(s, a)``: the discounted return after ``a`` if at every later state an adversary chooses the action, of those that it
    can make the victim play (Liang et al. 2022, definition 4.1).

    :param n_inputs: of the network
    :param n_outputs: of the network
    :param lr: of its Adam
    :param seed: of the first weights
    """

    def __init__(self, n_inputs: int, n_outputs: int, lr: float, seed: int) -> None:
        super().__init__()
        with th.random.fork_rng(devices=[]):
            th.manual_seed(seed)
            self.body, self.target = _body(n_inputs, n_outputs), _body(n_inputs, n_outputs)
        self.target.load_state_dict(self.body.state_dict())
        self.optimizer = th.optim.Adam(self.body.parameters(), lr=lr)

    @abstractmethod
    def value(self, body: nn.Module, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Q as a network has it.

        :param body: the network or its target
        :param observations: flattened, shape ``(n, d)``
        :param actions: as the rollout buffer has them, shape ``(n, k)``
        :return: shape ``(n,)``
        """

    @abstractmethod
    def lowest(self, observations: th.Tensor, lower: th.Tensor, upper: th.Tensor) -> th.Tensor:
        """
        The target network's Q of the worst action that the victim can be made to play.

        :param observations: flattened, shape ``(n, d)``
        :param lower: of the policy's outputs over the ball, shape ``(n, n_outputs)``
        :param upper: same shape
        :return: shape ``(n,)``
        """

    @abstractmethod
    def average(self, policy: Any, observations: th.Tensor, outputs: th.Tensor, rng: np.random.Generator) -> th.Tensor:
        """
        Q's mean over the actions of the policy, exact for categorical ones, else over random draws.

        :param policy: the policy
        :param observations: flattened, shape ``(n, d)``
        :param outputs: the policy's means or logits, shape ``(n, n_outputs)``
        :param rng: of the draws
        :return: shape ``(n,)``
        """

    def update(self, observations: th.Tensor, actions: th.Tensor, targets: th.Tensor) -> float:
        """One gradient step on the squared error; the target network follows. Returns the error's mean."""
        loss = nn.functional.mse_loss(self.value(self.body, observations, actions), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        polyak_update(self.body.parameters(), self.target.parameters(), _FOLLOW)
        return loss.item()


class _OfBox(WorstCaseQ):
    """
    For Box actions: a network of observation and action. Q is of what the environment receives: actions clipped to their box.

    :param low: of the action space, shape ``(k,)``
    :param high: same shape
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, n_observations: int, low: Array, high: Array, lr: float, seed: int) -> None:
        super().__init__(n_observations + low.size, 1, lr, seed)
        for name, bound in (("low", low), ("high", high)):
            self.register_buffer(name, th.as_tensor(bound.ravel(), dtype=th.float32), persistent=False)

    def value(self, body: nn.Module, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        spread = (self.high - self.low).clamp(min=1e-8)  # 0 where an action has no choice
        scaled = 2.0 * (self._clipped(actions) - self.low) / spread - 1.0
        result: th.Tensor = body(th.cat([observations, scaled], dim=1))
        return result[:, 0]

    def lowest(self, observations: th.Tensor, lower: th.Tensor, upper: th.Tensor) -> th.Tensor:
        """By signed gradient steps from the middle of the box, the first one to a corner, each next one half as long."""
        lower, upper = self._clipped(lower), self._clipped(upper)
        actions, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
        found = self.value(self.target, observations, actions)
        for step in range(_DESCENT):
            with th.enable_grad():
                actions.requires_grad_()
                (slope,) = th.autograd.grad(self.value(self.target, observations, actions).sum(), actions)
            actions = (actions.detach() - half * 0.5**step * slope.sign()).maximum(lower).minimum(upper)
            found = found.minimum(self.value(self.target, observations, actions))
        return found

    def average(self, policy: Any, observations: th.Tensor, outputs: th.Tensor, rng: np.random.Generator) -> th.Tensor:
        total = outputs.new_zeros(len(outputs))
        for _ in range(_DRAWS):
            noise = policy.log_std.exp() * th.as_tensor(rng.standard_normal(outputs.shape)).to(outputs)
            for actions in (outputs + noise, outputs - noise):  # in pairs: what is linear in the noise cancels
                total = total + self.value(self.body, observations, actions)
        return total / (2 * _DRAWS)

    def _clipped(self, actions: th.Tensor) -> th.Tensor:
        return actions.maximum(self.low).minimum(self.high)


class _OfChoices(WorstCaseQ):
    """
    For Discrete and MultiDiscrete actions: a network of the observation, with a value for each choice; Q is the sum of those
    chosen. The adversary makes the victim play any choice that may have the largest logit.

    :param nvec: number of choices of each categorical
    """

    def __init__(self, n_observations: int, nvec: tuple[int, ...], lr: float, seed: int) -> None:
        super().__init__(n_observations, sum(nvec), lr, seed)
        self.nvec = nvec

    def value(self, body: nn.Module, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        starts = th.as_tensor(np.cumsum((0, *self.nvec[:-1])), device=actions.device)
        chosen: th.Tensor = body(observations).gather(1, actions.long() + starts)
        return chosen.sum(dim=1)

    def lowest(self, observations: th.Tensor, lower: th.Tensor, upper: th.Tensor) -> th.Tensor:
        groups = zip(*(part.split(self.nvec, dim=1) for part in (self.target(observations), lower, upper)), strict=True)
        lows = [
            values.masked_fill(high < low.max(dim=1, keepdim=True).values, th.inf).min(dim=1).values
            for values, low, high in groups
        ]
        return th.stack(lows).sum(dim=0)

    def average(self, policy: Any, observations: th.Tensor, outputs: th.Tensor, rng: np.random.Generator) -> th.Tensor:
        groups = zip(self.body(observations).split(self.nvec, dim=1), outputs.split(self.nvec, dim=1), strict=True)
        return th.stack([(values * logits.softmax(dim=1)).sum(dim=1) for values, logits in groups]).sum(dim=0)


class WocaRPPO(StateAdversarial, PPO):
    """
    WocaR-PPO (Liang et al. 2022, arXiv 2210.05927): SA-PPO with ``weight`` times the worst-case advantage in the advantages.

    A second critic learns from each rollout, ``n_epochs`` times over, the value of actions under attack,

        ``Q_w(s, a) = r + gamma (1 - done) min_(a' in A(s')) Q_w(s', a')``,

    with ``A(s')`` the actions that the policy's mode can be moved to by a perturbation in the ball around ``s'``, by interval
    bounds of the WHOLE action network (the released code bounds another function), clipped to the action space; for
    categorical policies the choices that these bounds allow to be the most likely. The minimum is found by gradient steps, or
    exactly for categorical ones. A time limit is no end: ``s'`` is then the episode's last observation. Rewards are those that
    the agent sees: ``VecNormalize`` keeps ``Q_w`` in a range that it learns fast.

    PPO then trains with ``A + weight_now * std(A) * (A_w - mean(A_w)) / std(A_w)``, ``A_w`` being ``Q_w(s, a)`` minus its mean
    over the actions of the policy at ``s``, and means and spreads those of the rollout. ``weight_now`` rises from 0 at the
    start of training to ``weight`` at ``eps_end``.

    Logged, too: ``defence/weight``, ``defence/worst_case_loss`` (mean squared error of ``Q_w``), ``defence/worst_case_value``
    (mean of the least ``Q_w`` at the next states).
    Arguments as in ``PPO``, :class:`~sb3_prune_robust.defences.regularized.StateAdversarial` (the released code has
    ``inner="sgld"``, and ``kappa`` half of what is given here), ``Regularized`` and
    :class:`~sb3_prune_robust.defences.base.RobustTraining`, and

    :param weight: of the worst-case advantage, at least 0; 0 is SA-PPO. Released: .8 (HalfCheetah .5)
    :param worst_case_lr: learning rate of ``Q_w``. Released: 4e-4, Ant 3e-5
    :raises ValueError: for a value outside its range
    :raises UnsupportedNetworkError: for a policy without bounds: gSDE, MultiBinary actions, images, unknown layers
    """

    worst_case_q: WorstCaseQ

    def __init__(self, *args: Any, weight: float = 0.8, worst_case_lr: float = 4e-4, **kwargs: Any) -> None:
        self.weight, self.worst_case_lr = weight, worst_case_lr
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_number("weight", self.weight, lambda value: value >= 0, "a finite number >= 0")
        check_number("worst_case_lr", self.worst_case_lr, lambda value: value > 0, "a finite number > 0")

    def _setup_model(self) -> None:
        super()._setup_model()
        n, seed = int(np.prod(self.observation_space.shape or ())), int(np.random.default_rng(self.seed).integers(2**31))
        nvec, space, lr = choices(self.policy), self.action_space, self.worst_case_lr
        made = _OfChoices(n, nvec, lr, seed) if nvec else _OfBox(n, space.low, space.high, lr, seed)  # type: ignore[attr-defined]
        self.worst_case_q = made.to(self.device)
        self._cut: dict[tuple[int, int], tuple[Array, float]] = {}

    def _check_policy(self) -> None:
        super()._check_policy()
        action_network(self.policy)  # refuses what has no bounds, or no formula here

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "worst_case_q", "worst_case_q.optimizer"], variables

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_cut"]

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Any = None) -> None:
        """Called at each step of a rollout: keeps what the buffer does not, the last observations of episodes cut short."""
        super()._update_info_buffer(infos, dones)
        step = self.rollout_buffer.pos
        if step == 0:
            self._cut = {}
        for i in np.flatnonzero(dones):
            if infos[i].get("TimeLimit.truncated", False):
                last = infos[i]["terminal_observation"]
                with th.no_grad():  # what SB3 is about to add to the reward
                    value = self.policy.predict_values(self.policy.obs_to_tensor(last)[0]).item()
                self._cut[step, int(i)] = np.array(last), self.gamma * value

    @property
    def weight_now(self) -> float:
        """The weight that is due."""
        return self.weight * self.share_due

    def train(self) -> None:
        if self.weight_now and self.is_due:
            with th.no_grad():
                self._learn_worst_case()
                self._weigh_advantages()
        self.logger.record("defence/weight", self.weight_now)
        super().train()

    def _learn_worst_case(self) -> None:
        """An epoch's targets are computed before it: within one the target network hardly moves."""
        following, rewards, goes_on = self._successors()
        observations, actions = self._played()
        enclosing, q, losses = Enclosing.of(self), self.worst_case_q, []
        lower, upper = enclosing.chain.interval(following, enclosing.eps, enclosing.norm)
        for _ in range(self.n_epochs):
            lowest = q.lowest(following, lower, upper)
            targets = rewards + self.gamma * goes_on * lowest
            order = th.as_tensor(self._defence_rng.permutation(len(targets)), device=self.device)
            for rows in order.split(self.batch_size):
                with th.enable_grad():
                    losses.append(q.update(observations[rows], actions[rows], targets[rows]))
        self._log_defence(worst_case_loss=float(np.mean(losses)), worst_case_value=lowest.mean().item())

    def _weigh_advantages(self) -> None:
        observations, actions = self._played()
        q, outputs = self.worst_case_q, Enclosing.of(self).chain.outputs(observations)
        worst = q.value(q.body, observations, actions) - q.average(self.policy, observations, outputs, self._defence_rng)
        standardised = ((worst - worst.mean()) / (worst.std() + 1e-8)).cpu().numpy()
        buffer = self.rollout_buffer
        buffer.advantages += self.weight_now * buffer.advantages.std() * standardised.reshape(buffer.advantages.shape)

    def _played(self) -> tuple[th.Tensor, th.Tensor]:
        """Observations, flattened, and actions of the rollout, one row per step and environment."""
        buffer = self.rollout_buffer
        return self._rows(buffer.observations), self._rows(buffer.actions)

    def _successors(self) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Next observations, flattened; rewards without SB3's value of what a time limit cut off; 0 where an episode ended."""
        buffer = self.rollout_buffer
        following = np.concatenate([buffer.observations[1:], np.asarray(self._last_obs)[None]])
        ended = np.concatenate([buffer.episode_starts[1:], np.asarray(self._last_episode_starts)[None]]).astype(bool)
        rewards = buffer.rewards.copy()
        for where, (last, value) in self._cut.items():
            following[where], ended[where] = last, False
            rewards[where] -= value
        return self._rows(following), self._rows(rewards)[:, 0], self._rows(~ended)[:, 0]

    def _rows(self, array: Array) -> th.Tensor:
        n_steps, n_envs = array.shape[:2]
        return th.as_tensor(array.reshape(n_steps * n_envs, -1), dtype=th.float32, device=self.device)


def _body(n_inputs: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_inputs, _HIDDEN), nn.Tanh(), nn.Linear(_HIDDEN, _HIDDEN), nn.Tanh(), nn.Linear(_HIDDEN, n_outputs)
    )
