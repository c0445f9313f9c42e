"""
Clean, stochastic episodes of an agent, and the certified returns that can be made from them.

The episodes are played once, and certificates for any eps are computed from them. The first only choose (the budget ``D`` of
certified return 3, the cap of 2), the others certify.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_normalize

from sb3_prune_robust.bounds import GLOBAL_METHODS, Ball
from sb3_prune_robust.bounds.action import groups, inverse_std
from sb3_prune_robust.certificates import (
    Certificate,
    ReturnBound,
    RewardRange,
    categorical_log_ratio,
    certify,
    clipped_rewards,
    gaussian_log_ratio,
    likelihood_return_bound,
    likelihood_samples,
    loss_bound,
    noise_certificate,
    promised_bound,
    return_lower_bound,
    reward_range,
    total_discount,
)
from sb3_prune_robust.certificates.observations import policy_of, read_noise
from sb3_prune_robust.evaluation.loading import horizon_of
from sb3_prune_robust.evaluation.rollouts import Episodes, rollout
from sb3_prune_robust.network import ActionNetwork

Array = npt.NDArray[Any]

SMOOTHING = "policy-smoothing"


@dataclass(frozen=True)
class CleanPlay:
    """
    Clean stochastic episodes of an agent, from which certificates for any eps are made.

    :param policy: the policy
    :param calibration: episodes that only choose
    :param episodes: episodes that certify, their number fixed beforehand
    :param rewards: range of the rewards
    :param gamma: discount in ``(0, 1]``
    :param horizon: cap on the steps, ``None`` for an infinite horizon
    :param noise_std: policy smoothing: standard deviation of the noise added to observations, on which the policy played its
        mode; ``None``: none, the policy as sampled
    """

    policy: Any
    calibration: Episodes
    episodes: Episodes
    rewards: RewardRange
    gamma: float
    horizon: int | None
    noise_std: float | None = None

    @property
    def quantity(self) -> str:
        """The return that is certified, in words."""
        kind = "undiscounted return" if self.gamma == 1 else f"return discounted by {self.gamma:g}"
        over = "an infinite horizon" if self.horizon is None else f"whole episodes of at most {self.horizon} steps"
        clip = f", each reward clipped to [{self.rewards.low:g}, {self.rewards.high:g}]" if self.rewards.clipped else ""
        return f"{kind} of {over}{clip}"

    @property
    def floor(self) -> float | None:
        """A lower bound on every reward, the 0 after an end included."""
        return None if self.rewards.low is None else min(self.rewards.low, 0.0)

    def clean_return(self) -> float:
        """Mean of the certified quantity over the certifying episodes, without attack."""
        return self.mean_return(self.episodes)

    def mean_return(self, episodes: Episodes) -> float:
        """Mean of the certified quantity over some episodes, e.g. attacked ones."""
        return float(np.mean([np.sum(self.gamma ** np.arange(len(r)) * r) for r in self.reward_arrays(episodes)]))

    def smallest_return(self) -> float:
        """What the range of the rewards alone says: a bound of this size is vacuous."""
        if self.rewards.limits is None:
            return -np.inf
        return self.rewards.limits[0] * total_discount(self.gamma, self.horizon)

    def reward_arrays(self, episodes: Episodes) -> list[Array]:
        """The rewards that count, clipped if the range says so."""
        return [self.rewards.clip(rewards) for rewards in episodes.rewards]

    def bounds(self, episodes: Episodes, eps: npt.ArrayLike, norm: str, bound: str) -> StepBounds:
        """What is certified of each step of some episodes."""
        states = np.concatenate(episodes.observations).reshape(-1, *self.policy.observation_space.shape)
        return StepBounds(read_noise(policy_of(self.policy)), episodes, certify(self.policy, states, eps, norm, bound))

    def likelihood_certificate(self, chosen: StepBounds, certified: StepBounds, alpha: float) -> ReturnBound:
        """
        Certified return 2.

        :param chosen: what is certified of each step of the calibration episodes
        :param certified: of the certifying episodes
        :param alpha: probability that the bound fails
        :return: the bound
        """
        seen, rest = self.calibration, self._arguments()
        cap = likelihood_samples(self.reward_arrays(seen), chosen.log_ratios(), seen.terminated.tolist(), **rest).max()
        rewards, ended = self.reward_arrays(self.episodes), self.episodes.terminated.tolist()
        return likelihood_return_bound(rewards, certified.log_ratios(), ended, **rest, cap=float(cap), alpha=alpha)

    def noise_certificate(self, chosen: Sequence[Array], shifts: Sequence[Array], alpha: float) -> ReturnBound:
        """
        Certified return 3: by the policy's own noise, or by that on its observations where these episodes were smoothed.

        :param chosen: ``d`` of each step of the calibration episodes
        :param shifts: of the certifying episodes
        :param alpha: probability that the bound fails
        :return: the bound
        """
        budget, _ = self.promised(chosen, alpha)
        rewards, ended = self.reward_arrays(self.episodes), self.episodes.terminated.tolist()
        method = "action-noise" if self.noise_std is None else SMOOTHING
        return noise_certificate(rewards, shifts, ended, budget, **self._arguments(), alpha=alpha, method=method)

    def shifts(self, episodes: Episodes, eps: npt.ArrayLike, norm: str, bound: str) -> list[Array]:
        """``d(s_t)`` of each step."""
        if self.noise_std is None:
            return self.bounds(episodes, eps, norm, bound).shifts()
        ball = Ball.create(eps, norm, self.policy.observation_space.shape)
        largest = np.linalg.norm(ball.eps) if norm == "linf" else ball.eps.max()
        return [np.full(n, largest / self.noise_std * (1.0 + 1e-12)) for n in episodes.lengths]

    def promised(self, shifts: Sequence[Array], alpha: float) -> tuple[float, float]:
        """
        The budget ``D`` that suits the calibration episodes, and the bound that they promise; it certifies nothing.

        :param shifts: ``d`` of each of their steps
        :param alpha: as it will be used to certify
        :return: both
        """
        seen = self.calibration
        return promised_bound(
            self.reward_arrays(seen), shifts, seen.terminated.tolist(), **self._arguments(), alpha=alpha,
            n_certify=len(self.episodes.returns),
        )  # fmt: skip

    def _arguments(self) -> dict[str, Any]:
        return dict(gamma=self.gamma, horizon=self.horizon, floor=self.floor)

    def difference_certificate(self, certified: StepBounds, alpha: float) -> ReturnBound | None:
        """
        Certified return 1: clean return, from below, minus what any adversary can take; each may fail with half of alpha.

        :param certified: what is certified of each step of the certifying episodes
        :param alpha: probability that the bound fails
        :return: the bound, ``None`` where the range of the rewards is not known on both sides
        """
        rewards, ended = self.reward_arrays(self.episodes), self.episodes.terminated.tolist()
        rest: dict[str, Any] = dict(gamma=self.gamma, horizon=self.horizon, alpha=alpha / 2)
        clean = return_lower_bound(rewards, ended, self.rewards, **rest)
        loss = loss_bound(certified.tv(), ended, self.rewards, **rest, tv_everywhere=certified.tv_everywhere())
        if clean is None or loss is None:
            return None
        smallest = self.smallest_return()
        return ReturnBound(
            max(clean.bound - loss.value, smallest), clean.mean, 1.0 - alpha, clean.n_episodes, "performance-difference"
        )


@dataclass(frozen=True)
class StepBounds:
    """
    A per-state certificate at each step of some episodes.

    :param network: the policy's network
    :param episodes: the episodes
    :param certificate: of all their states, one after the other
    """

    network: ActionNetwork
    episodes: Episodes
    certificate: Certificate

    def _split(self, values: Array) -> list[Array]:
        return np.split(values, np.cumsum(self.episodes.lengths)[:-1])

    def tv(self) -> list[Array]:
        """``TV_max(s_t)`` of each step."""
        return self._split(self.certificate.tv)

    def tv_everywhere(self) -> float:
        """A bound on ``TV_max`` at every state, visited or not, by the methods that look at no state."""
        by_method = self.certificate.by_method
        return min((float(by_method[name].tv[0]) for name in GLOBAL_METHODS if name in by_method), default=1.0)

    def shifts(self) -> list[Array]:
        """``d(s_t)`` of certified return 3, a function of the true state."""
        return self._split(self.certificate.shift)

    def log_ratios(self) -> list[Array]:
        """Lower bounds on ``log w(s_t, a_t)`` of certified return 2."""
        samples = np.concatenate(self.episodes.samples)
        if self.certificate.delta is not None:
            whitened = self.certificate.radius * inverse_std(self.network) * (1.0 + 1e-12)
            return self._split(gaussian_log_ratio(samples, self.certificate.delta, whitened))
        assert self.certificate.omega is not None
        logits = self.network(np.concatenate(self.episodes.observations).astype(np.float64))
        chosen = [np.take_along_axis(log_softmax(logits[:, group], axis=1), samples[:, [g]].astype(int), axis=1)
                  for g, group in enumerate(groups(self.network))]  # fmt: skip
        return self._split(categorical_log_ratio(np.minimum(np.concatenate(chosen, axis=1), 0.0), self.certificate.omega))


class ObservationNoise:
    """
    Gaussian noise on observations, as policy smoothing adds it at run time.

    :param std: its standard deviation
    :param seed: its seed
    """

    def __init__(self, std: float, seed: int) -> None:
        self.std, self.rng = std, np.random.default_rng([seed, 1])

    def __call__(self, policy: Any, observations: Array) -> Array:
        noise = self.std * self.rng.standard_normal(observations.shape)
        return np.asarray((observations + noise).astype(observations.dtype))


def play_clean(
    model: Any,
    env: VecEnv,
    *,
    gamma: float = 1.0,
    horizon: int | None = None,
    n_episodes: int = 500,
    n_calibration: int = 100,
    reward_min: float | None = None,
    reward_max: float | None = None,
    clip_rewards: tuple[float, float] | None = None,
    deterministic: bool = False,
    noise_std: float | None = None,
    seed: int = 0,
    on_episode: Callable[[], None] | None = None,
) -> CleanPlay:
    """
    Play the clean episodes that certificates are made from.

    :param model: a PPO, A2C or TRPO model or policy with a state-independent covariance
    :param env: environments on ``DummyVecEnv``, with the agent's VecNormalize, its statistics frozen (``training=False``)
    :param gamma: discount in ``(0, 1]``; 1: whole episodes
    :param horizon: cap on the steps of an episode; ``None``: the environment's time limit if ``gamma`` is 1, else no cap
    :param n_episodes: episodes that certify
    :param n_calibration: episodes that choose
    :param reward_min: smallest reward possible, if you vouch for one; ``None``: where proved for the environment
    :param reward_max: largest reward possible, likewise
    :param clip_rewards: instead, take each reward as clipped to this range: the return certified is then that one
    :param deterministic: refused if true: a policy that plays its mode has no noise, and no certificate here covers it
    :param noise_std: for policy smoothing: noise to add to the observations, on which the policy plays its mode
    :param seed: seed of the first episode
    :param on_episode: called after each episode (progress)
    :return: the episodes
    :raises ValueError: naming the argument; if the statistics are still being updated; ``RewardRangeError`` if a reward lies
        outside the range given
    """
    if deterministic:
        raise ValueError(
            "deterministic=True: certified returns speak of the stochastic policy as sampled, whose own noise they rest on"
        )
    for name, value, least in (("n_episodes", n_episodes, 1), ("n_calibration", n_calibration, 1), ("seed", seed, 0)):
        _check_whole(name, value, least)
    check_environment(model, env)
    policy = policy_of(model)
    read_noise(policy)  # what no certificate covers is refused before anything is played
    _check_spaces(policy, env)
    cap = check_horizon(env, gamma, horizon)
    rewards = known_rewards(env, reward_min, reward_max, clip_rewards)
    limits = (-np.inf, np.inf) if rewards.clipped else _limits(rewards)
    if noise_std is not None and not 0 < noise_std < np.inf:
        raise ValueError(f"noise_std must be positive and finite, got {noise_std!r}")
    episodes = rollout(
        policy,
        env,
        n_calibration + n_episodes,
        attack=None if noise_std is None else ObservationNoise(noise_std, seed),
        deterministic=noise_std is not None,
        gamma=gamma,
        seed=seed,
        record=True,
        reward_range=limits,
        max_steps=cap,
        on_episode=on_episode,
    )
    chosen, certified = episodes.part(slice(n_calibration)), episodes.part(slice(n_calibration, None))
    return CleanPlay(policy, chosen, certified, rewards, gamma, cap, noise_std)


def _limits(rewards: RewardRange) -> tuple[float, float]:
    return (-np.inf if rewards.low is None else rewards.low, np.inf if rewards.high is None else rewards.high)


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_environment(model: Any, env: VecEnv) -> None:
    """
    Refuse an environment whose observations are not those that the agent's certificates speak of.

    :param model: the agent
    :param env: the environments it is to be certified in
    :raises TypeError: if it is not a vectorised environment
    :raises ValueError: if its statistics are still being updated, or it lacks those that the agent was trained with
    """
    if not isinstance(env, VecEnv):
        raise TypeError(f"env must be a VecEnv built on DummyVecEnv, e.g. of make_vec_env; got {type(env).__name__}")
    normalizer = unwrap_vec_normalize(env)
    if normalizer is not None and normalizer.training:
        raise ValueError(
            "env: its VecNormalize statistics are still being updated (training=True), so that eps and the policy as a "
            "function of the state would change as the episodes are played; set env.training = False"
        )
    trained_with = getattr(model, "get_vec_normalize_env", lambda: None)()
    if normalizer is None and trained_with is not None and trained_with.norm_obs:
        raise ValueError("env has no VecNormalize, and the model was trained on observations normalised by one")


def _check_spaces(policy: Any, env: VecEnv) -> None:
    ours, theirs = (policy.observation_space, policy.action_space), (env.observation_space, env.action_space)
    if ours[0].shape != theirs[0].shape or ours[1].shape != theirs[1].shape or type(ours[1]) is not type(theirs[1]):
        raise ValueError(f"env observes {theirs[0]} and acts in {theirs[1]}; the policy was made for {ours[0]} and {ours[1]}")


def check_horizon(env: VecEnv, gamma: float, horizon: int | None) -> int | None:
    """
    The cap on the steps of an episode.

    :param env: the environments
    :param gamma: discount
    :param horizon: the cap asked for, or ``None``
    :return: it, or the environment's time limit if ``gamma`` is 1, else ``None``
    :raises ValueError: for a cap above the time limit, another ``gamma``, and episodes that may never end
    """
    limit = horizon_of(env)
    if horizon is not None:
        _check_whole("horizon", horizon, 1)
        if limit is not None and horizon > limit:
            raise ValueError(f"horizon must be at most the environment's time limit of {limit}, got {horizon!r}")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1], got {gamma!r}")
    if horizon is None and limit is None:
        why = "gamma = 1 needs a horizon" if gamma == 1 else "horizon must be given"
        raise ValueError(f"{why}: the environment has no time limit, so its episodes may never end")
    return limit if gamma == 1 and horizon is None else horizon


def known_rewards(
    env: VecEnv, reward_min: float | None, reward_max: float | None, clip_rewards: tuple[float, float] | None
) -> RewardRange:
    """
    The range of the rewards: clipped, given, proved for the environment, or not known.

    :param env: the environments
    :param reward_min: smallest reward, if the user vouches for one
    :param reward_max: largest reward, likewise
    :param clip_rewards: range to clip rewards to
    :return: the range
    :raises ValueError: naming the argument
    """
    if clip_rewards is not None:
        if reward_min is not None or reward_max is not None:
            raise ValueError("clip_rewards was given together with reward_min or reward_max: it is one or the other")
        return _clipped(clip_rewards)
    specs = env.get_attr("spec")
    if any(spec is None or spec.id != specs[0].id for spec in specs):
        return reward_range("an environment with no one id", reward_min, reward_max)
    return reward_range(specs[0].id, reward_min, reward_max, _changes(env))


def _clipped(clip_rewards: Any) -> RewardRange:
    try:
        low, high = map(float, clip_rewards)
    except (TypeError, ValueError):
        raise ValueError(f"clip_rewards must be two numbers, the smaller first; got {clip_rewards!r}") from None
    return clipped_rewards(low, high)


# Wrappers that hand rewards on as they are, for an episode's return (of VecNormalize the original rewards are taken).
_KEEPS_REWARDS = (
    "VecNormalize",
    "VecFrameStack",
    "VecTransposeImage",
    "VecMonitor",
    "VecCheckNan",
    "VecExtractDictObs",
    "AdversarialVecEnv",
    "_Unattacked",
    "Monitor",
    "TimeLimit",
    "OrderEnforcing",
    "PassiveEnvChecker",
    "RecordEpisodeStatistics",
    "FlattenObservation",
)


def _changes(env: VecEnv) -> dict[str, Any]:
    """By what any of the environments, or a wrapper around them all, differs from what the id names."""
    changed: dict[str, Any] = {}
    for spec in env.get_attr("spec"):
        changed |= changed_arguments(spec)
    around = []
    while isinstance(env, VecEnvWrapper):
        around.append(type(env).__name__)
        env = env.venv
    unknown = [name for name in around if name not in _KEEPS_REWARDS]
    return {**changed, "wrappers": [*unknown, *changed.get("wrappers", [])]} if unknown else changed


def changed_arguments(spec: Any) -> dict[str, Any]:
    """
    By what an environment differs from the one that its id names: any of it may change the reward.

    :param spec: gymnasium's spec of the environment
    :return: arguments other than the registered ones, and wrappers that are not known to hand rewards on as they are
    """
    registered = gym.registry[spec.id].kwargs if spec.id in gym.registry else {}
    changed = {key: value for key, value in spec.kwargs.items() if key != "render_mode" and registered.get(key) != value}
    wrappers = [wrapper.name for wrapper in spec.additional_wrappers if wrapper.name not in _KEEPS_REWARDS]
    return {**changed, **({"wrappers": wrappers} if wrappers else {})}
