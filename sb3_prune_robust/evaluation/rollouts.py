"""Episodes of an agent, clean or attacked, on fixed seeds: the same episodes for every agent, attack and sparsity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize, unwrap_vec_wrapper

from sb3_prune_robust.actor import Actor, action_masks
from sb3_prune_robust.attacks import AdversarialVecEnv
from sb3_prune_robust.observations import Observations, copied, difference, flattened, rows

Array = npt.NDArray[Any]

# attack(policy, observations) -> perturbed observations
Attack = Callable[[Any, Any], Any]


class NoAttackError(RuntimeError):
    """An attack with a positive budget changed no observation: its return would be a clean one under a wrong name."""


class RewardRangeError(ValueError):
    """A reward outside the range that the user stated: no certificate that rests on the range holds."""


class FixedEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """
    Plays one seeded episode at each reset, and stands still when all are played.

    Automatic resets do not seed, so this wrapper does; standing still costs nothing while other environments finish.

    :param env: the environment
    :param seeds: seeds of its episodes
    :param max_steps: a time limit of its own; ``None``: none but the environment's
    """

    def __init__(self, env: gym.Env[Any, Any], seeds: Sequence[int], max_steps: int | None = None) -> None:
        super().__init__(env)
        self.seeds, self.max_steps, self.steps = list(seeds), max_steps, 0
        self.played = -1
        self._last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.played, self.steps = self.played + 1, 0
        if self.played < len(self.seeds) or self._last is None:
            episode_seed = self.seeds[self.played] if self.seeds else 0
            self._last, info = self.env.reset(seed=episode_seed, options=options)
            return self._last, info
        return self._last, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.played >= len(self.seeds):
            return self._last, 0.0, False, False, {}
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        return observation, reward, terminated, truncated or self.steps == self.max_steps, info


@dataclass(frozen=True)
class Episodes:
    """
    What ``n`` episodes gave, in order of their seeds.

    :param returns: raw returns (sums of the environment's own rewards), shape ``(n,)``
    :param discounted: discounted raw returns, shape ``(n,)``
    :param lengths: steps, shape ``(n,)``
    :param terminated: whether each ended by itself rather than by the time limit, shape ``(n,)``
    :param reward_min: the smallest reward seen
    :param reward_max: the largest reward seen
    :param perturbed: share of the observations that an attack changed; 0 when there was none
    :param rewards: for each episode the raw reward of each step, shape ``(length,)``
    :param observations: for each episode the true observations as the policy would receive them, shape
        ``(length, n_inputs)``; empty unless recorded
    :param samples: for each episode what a stochastic policy drew at each step
        (:class:`~sb3_prune_robust.actor.Actor`), shape ``(length, n)``; empty unless recorded, or where it is not
        known
    """

    returns: Array
    discounted: Array
    lengths: Array
    terminated: Array
    reward_min: float
    reward_max: float
    perturbed: float
    rewards: tuple[Array, ...]
    observations: tuple[Array, ...] = ()
    samples: tuple[Array, ...] = ()

    def part(self, chosen: slice) -> Episodes:
        """Some of the episodes; what is of all of them together (``reward_min``, ``reward_max``, ``perturbed``) stays."""
        per_episode = ("returns", "discounted", "lengths", "terminated", "rewards", "observations", "samples")
        return replace(self, **{name: getattr(self, name)[chosen] for name in per_episode})


def rollout(
    policy: Any,
    venv: VecEnv,
    n_episodes: int,
    *,
    attack: Attack | None = None,
    deterministic: bool = False,
    gamma: float = 0.99,
    seed: int = 0,
    record: bool = False,
    reward_range: tuple[float, float] | None = None,
    max_steps: int | None = None,
    on_episode: Callable[[], object] | None = None,
) -> Episodes:
    """
    Play ``n_episodes`` fixed episodes: episode ``k`` has seed ``seed + k`` in environment ``k % n_envs``.

    Which episodes an environment plays is settled beforehand (taking whichever finish first would favour the short ones).
    The policy's noise has a stream for each episode as well, so that the same episode meets the same noise whatever the agent,
    the attack or the number of environments: differences between two rollouts are paired.

    :param policy: an SB3 policy, or an algorithm with one; a recurrent one's memory is kept, a maskable one's masks are asked
        of the environments
    :param venv: environments; the base must be a ``DummyVecEnv``. VecNormalize's statistics are frozen while this runs, and
        its settings given back afterwards
    :param n_episodes: number of episodes in all
    :param attack: called with the policy and a batch of true observations; ``None``: no attack
    :param deterministic: the mode of the action rather than a sample
    :param gamma: discount of :attr:`Episodes.discounted`
    :param seed: seed of the first episode
    :param record: keep the true observations, and what a stochastic policy drew
    :param reward_range: smallest and largest reward possible, infinite where not known; checked at every step
    :param max_steps: cut episodes after so many steps, as a time limit does; ``None``: the environment's own limit alone
    :param on_episode: called at the end of each episode (progress)
    :return: the episodes
    :raises NoAttackError: if an attack with ``eps > 0`` changed nothing
    :raises RewardRangeError: if a reward lies outside ``reward_range``
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, got {n_episodes!r}")
    player = _Player(getattr(policy, "policy", policy), venv, n_episodes, deterministic, seed, record)
    player.gamma, player.reward_range = gamma, reward_range
    player.on_episode = on_episode or _nothing
    with fixed_episodes(venv, n_episodes, seed, max_steps):
        player.play(attack)
    if attack is not None and not player.n_perturbed and _may_perturb(attack):
        raise NoAttackError(
            f"attack {attack!r} left all {player.n_steps} observations unchanged although its eps is positive: "
            "no attack happened, so there is no attacked return to report"
        )
    return player.episodes()


def _may_perturb(attack: Any) -> bool:
    known: bool | None = getattr(attack, "can_perturb", None)
    return bool(np.any(np.asarray(getattr(attack, "eps", 1.0)) > 0)) if known is None else known


def _alike(received: Observations, true: Observations) -> bool:
    if isinstance(true, dict):
        return isinstance(received, dict) and list(received) == list(true) and all(_alike(received[k], true[k]) for k in true)
    return isinstance(received, np.ndarray) and received.shape == true.shape


def _nothing() -> None:
    """No progress to show."""


@contextmanager
def fixed_episodes(venv: VecEnv, n_episodes: int, seed: int, max_steps: int | None = None) -> Iterator[None]:
    """
    While in use, the environments of ``venv`` play fixed episodes, with VecNormalize frozen and rewards raw.

    :param venv: environments over a ``DummyVecEnv``
    :param n_episodes: number of episodes in all
    :param seed: seed of the first
    :param max_steps: cut episodes after so many steps; ``None``: the environment's own limit alone
    :raises TypeError: for another base than ``DummyVecEnv``
    :raises ValueError: if the environments are attacked already
    """
    base = venv.unwrapped
    if not isinstance(base, DummyVecEnv):
        raise TypeError(f"env must be built on DummyVecEnv to have its episodes seeded, got {type(base).__name__}")
    if unwrap_vec_wrapper(venv, AdversarialVecEnv) is not None:
        raise ValueError(
            "env already holds an AdversarialVecEnv: clean episodes would be attacked ones; give the env below it"
        )
    normalizer, envs = unwrap_vec_normalize(venv), base.envs
    settings = None if normalizer is None else (normalizer.training, normalizer.norm_reward)
    base.envs = [FixedEpisodes(env, range(seed + i, seed + n_episodes, len(envs)), max_steps) for i, env in enumerate(envs)]
    try:
        if normalizer is not None:
            normalizer.training = normalizer.norm_reward = False
        yield
    finally:
        base.envs = envs
        if normalizer is not None and settings is not None:
            normalizer.training, normalizer.norm_reward = settings


class _Player:
    """The loop of :func:`rollout` and its bookkeeping."""

    gamma: float
    reward_range: tuple[float, float] | None
    on_episode: Callable[[], object]

    def __init__(self, policy: Any, venv: VecEnv, n_episodes: int, deterministic: bool, seed: int, record: bool) -> None:
        self.policy, self.venv, self.seed, self.record = policy, venv, seed, record
        self.actor = Actor(policy, deterministic)
        self.returns, self.discounted = np.zeros(n_episodes), np.zeros(n_episodes)
        self.lengths, self.terminated = np.zeros(n_episodes, np.int64), np.zeros(n_episodes, bool)
        self.seen: list[list[Array]] = [[] for _ in range(n_episodes)]
        self.drawn: list[list[Array]] = [[] for _ in range(n_episodes)]
        self.rewards: list[list[float]] = [[] for _ in range(n_episodes)]
        self.reward_min, self.reward_max = np.inf, -np.inf
        self.n_steps = self.n_perturbed = 0

    def play(self, attack: Attack | None) -> None:
        observations: Observations = copied(self.venv.reset())
        # Environment i plays the episodes i, i + n_envs, ...; those past the last episode stand still.
        episode = np.arange(self.venv.num_envs)
        streams = {int(k): self._stream(int(k)) for k in episode}
        actions = np.zeros((self.venv.num_envs, *self.venv.action_space.shape), self.venv.action_space.dtype)  # type: ignore[misc]
        while len(active := np.flatnonzero(episode < len(self.returns))):
            true, own = rows(observations, active), [streams[int(k)] for k in episode[active]]
            received = true if attack is None else self._attacked(attack, true, self.actor.victim(own))
            actions[active], drawn = self.actor(received, own, action_masks(self.policy, self.venv, active))
            if self.record:
                self._record(episode[active], flattened(true), drawn)
            observations, rewards, dones, infos = self.venv.step(actions)
            self._count(episode[active], rewards[active])
            for i in active[dones[active]]:
                self.terminated[episode[i]] = not infos[i].get("TimeLimit.truncated", False)
                self.on_episode()
                episode[i] += self.venv.num_envs
                streams[int(episode[i])] = self._stream(int(episode[i]))

    def _record(self, episodes: Array, true: Array, drawn: Array | None) -> None:
        for k, observation in zip(episodes, true, strict=True):
            self.seen[k].append(observation.ravel())
        if drawn is not None:
            for k, sample in zip(episodes, drawn, strict=True):
                self.drawn[k].append(sample)

    def _stream(self, episode: int) -> np.random.Generator:
        # The last entry: [seed, 0] would be the very stream that gymnasium seeds the first episode with.
        return np.random.default_rng([self.seed, episode, 1])

    def _attacked(self, attack: Attack, true: Observations, victim: Any) -> Observations:
        received = attack(victim, copied(true))
        change = difference(received, true) if _alike(received, true) else np.array([[np.nan]])
        if not np.isfinite(change).all():
            raise RuntimeError(f"attack {attack!r} returned observations of another kind or shape than it was given, or NaN")
        self.n_perturbed += int(change.any(axis=1).sum())
        return received

    def _count(self, episodes: Array, rewards: Array) -> None:
        self.reward_min = min(self.reward_min, float(rewards.min()))
        self.reward_max = max(self.reward_max, float(rewards.max()))
        if self.reward_range is not None:
            self._check_rewards(self.reward_range)
        for k, reward in zip(episodes, rewards, strict=True):
            self.rewards[k].append(float(reward))
        self.returns[episodes] += rewards
        self.discounted[episodes] += self.gamma ** self.lengths[episodes] * rewards
        self.lengths[episodes] += 1
        self.n_steps += len(episodes)

    def _check_rewards(self, bounds: tuple[float, float]) -> None:
        low, high = np.float32(bounds[0]), np.float32(bounds[1])  # DummyVecEnv hands rewards on in float32
        if self.reward_min < low or self.reward_max > high:
            outside = self.reward_min if self.reward_min < low else self.reward_max
            raise RewardRangeError(
                f"reward_min, reward_max: a reward of {outside:g} was seen outside [{bounds[0]:g}, {bounds[1]:g}], so "
                "no certificate that rests on it holds; give a range that holds, or none"
            )

    def episodes(self) -> Episodes:
        observations = tuple(np.stack(steps) for steps in self.seen) if self.record else ()
        samples = tuple(np.stack(steps) for steps in self.drawn) if all(self.drawn) else ()
        return Episodes(
            self.returns,
            self.discounted,
            self.lengths,
            self.terminated,
            self.reward_min,
            self.reward_max,
            self.n_perturbed / self.n_steps,
            tuple(np.array(rewards) for rewards in self.rewards),
            observations,
            samples,
        )
