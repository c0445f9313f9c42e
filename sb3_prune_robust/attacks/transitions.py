"""The victim's own play, as Robust Sarsa learns from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_prune_robust.actor import Actor, action_masks
from sb3_prune_robust.attacks.base import Attack
from sb3_prune_robust.attacks.engines import NetworkReader
from sb3_prune_robust.attacks.fitting import NothingToLearnError
from sb3_prune_robust.attacks.objectives import policy_outputs
from sb3_prune_robust.network import box_of, is_greedy, samples

Array = npt.NDArray[Any]
_FEWEST = 2  # transitions


@dataclass(frozen=True)
class Transitions:
    """
    Steps of the victim, ``n`` rows.

    :param states: true observations, flattened, float32, shape ``(n, d)``
    :param actions: what the victim did: actions before clipping (``Box``), or indicators of its choices; shape ``(n, k)``
    :param rewards: raw, shape ``(n,)``
    :param next_states: shape ``(n, d)``; at the end of an episode its last observation
    :param next_actions: what the victim does there, shape ``(n, k)``: probabilities of its choices where they are categorical
    :param terminal: True where no reward can follow (not at a time limit), shape ``(n,)``
    :param ends: True where an episode ends or the rollout is cut, shape ``(n,)``; rows of an episode follow each other
    """

    states: Array
    actions: Array
    rewards: Array
    next_states: Array
    next_actions: Array
    terminal: Array
    ends: Array

    def returns(self, gamma: float) -> Array:
        """Discounted sums of centred rewards to the end of each row's episode, shape ``(n,)``: their spread scales Q."""
        mean, total = self.rewards.mean(), 0.0
        result = np.zeros(len(self.rewards))
        for i in range(len(result) - 1, -1, -1):
            if self.ends[i]:
                total = -mean / (1.0 - gamma) if self.terminal[i] else 0.0
            result[i] = total = self.rewards[i] - mean + gamma * total
        return result

    def informative(self, gamma: float) -> bool:
        """Whether returns differ: where every step pays the same and no episode terminates, all actions are worth the same."""
        return bool(self.returns(gamma).std() > 1e-6 * (1.0 + np.abs(self.rewards).max()))

    def arrays(self) -> dict[str, Array]:
        """By name, for files."""
        return asdict(self)


def collect(
    policy: Any, env: VecEnv, attack: Attack | None, deterministic: bool, seed: int, may_go_on: Callable[[int], bool]
) -> Transitions:
    """
    Let the victim play.

    :param policy: the victim
    :param env: its environments, rewards raw
    :param attack: on its observations; ``None``: none
    :param deterministic: it plays its mode
    :param seed: of the episodes and of the victim's noise
    :param may_go_on: from the number of transitions so far to whether one more of each environment may be played
    :raises NothingToLearnError: if not even two were
    """
    rows: list[tuple[Array, ...]] = []
    playing = _play(_Victim(policy, attack, deterministic, seed), env, seed)
    while may_go_on(len(rows) * env.num_envs):
        rows.append(next(playing))
    if len(rows) * env.num_envs < _FEWEST:
        raise NothingToLearnError(
            f"the budget gave {len(rows) * env.num_envs} transitions to learn from; at least {_FEWEST} are needed"
        )
    rows[-1][-1][:] = True
    # Environment after environment, so that the rows of an episode follow each other.
    return Transitions(*(np.concatenate(np.swapaxes(np.array(column), 0, 1)) for column in zip(*rows, strict=True)))


def _play(victim: _Victim, env: VecEnv, seed: int) -> Iterator[tuple[Array, ...]]:
    """The columns of :class:`Transitions`, one row per environment."""
    env.seed(seed)
    states = np.array(env.reset())
    done, chosen, _ = victim.act(states, action_masks(victim.policy, env))
    while True:
        arrived, rewards, dones, infos = env.step(done)
        last, terminal = np.array(arrived), np.zeros(len(dones), bool)
        for i in np.flatnonzero(dones):
            last[i], terminal[i] = infos[i]["terminal_observation"], not infos[i].get("TimeLimit.truncated", False)
        done, acted, meant = victim.act(np.array(arrived), action_masks(victim.policy, env))
        following = np.where(dones[:, None], victim.act(last)[2], meant) if dones.any() else meant
        yield _flat(states), chosen, np.array(rewards, np.float32), _flat(last), following, terminal, np.array(dones)
        states, chosen = np.array(arrived), acted


class _Victim:
    """What the victim does, for the environment and for Q."""

    def __init__(self, policy: Any, attack: Attack | None, deterministic: bool, seed: int) -> None:
        self.policy, self.attack, self.deterministic = policy, attack, deterministic or is_greedy(policy)
        self.squashed = box_of(policy) is not None
        self.reader, self.actor, self.streams = NetworkReader(), Actor(policy, deterministic), [np.random.default_rng(seed)]
        self.nvec = choices(policy.action_space)

    def act(self, states: Array, masks: Array | None = None) -> tuple[Array, Array, Array]:
        """Actions for the environment; as Q sees them, ``(n, k)``; and, where they are categorical, their probabilities."""
        seen = states if self.attack is None else self.attack(self.policy, states)
        done, noise = self.actor(seen, self.streams * len(seen), masks)
        outputs = policy_outputs(self.policy, _flat(seen), self.reader)
        if self.nvec:
            acted = indicators(done.reshape(len(done), -1), self.nvec)
            return done, acted, acted if self.deterministic else probabilities(outputs, self.nvec)
        if self.squashed:
            outputs = done.reshape(outputs.shape)
        elif not self.deterministic and samples(self.policy):
            # Where it is not known before clipping (gSDE): what the environment receives.
            outputs = done.reshape(outputs.shape) if noise is None else outputs + noise * np.exp(_log_std(self.policy))
        acted = outputs.astype(np.float32)
        return done, acted, acted


def _log_std(policy: Any) -> Array:
    result: Array = policy.log_std.detach().cpu().numpy()
    return result


def _flat(states: Array) -> Array:
    return states.reshape(len(states), -1).astype(np.float32)


def choices(space: spaces.Space[Any]) -> tuple[int, ...]:
    """
    Number of choices of each categorical; empty for ``Box``.

    :raises ValueError: for other action spaces
    """
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in np.ravel(space.nvec))
    if not isinstance(space, spaces.Box):
        raise ValueError(f"model has action space {space}; learned attacks cover Box, Discrete, MultiDiscrete")
    return ()


def indicators(chosen: Array, nvec: tuple[int, ...]) -> Array:
    """
    Choices as zeros and ones.

    :param chosen: shape ``(n, n_groups)``
    :param nvec: number of choices of each
    :return: float32, shape ``(n, sum(nvec))``
    """
    return np.concatenate([np.eye(n, dtype=np.float32)[chosen[:, i]] for i, n in enumerate(nvec)], axis=1)


def probabilities(logits: Array, nvec: tuple[int, ...]) -> Array:
    """
    Softmax of each group.

    :param logits: shape ``(n, sum(nvec))``
    :param nvec: number of choices of each group
    """
    parts = np.split(logits, np.cumsum(nvec)[:-1], axis=1)
    powers = [np.exp(part - part.max(axis=1, keepdims=True)) for part in parts]
    return np.concatenate([power / power.sum(axis=1, keepdims=True) for power in powers], axis=1)
