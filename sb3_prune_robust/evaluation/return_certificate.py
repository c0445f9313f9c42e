"""
Certified returns of an agent: clean, stochastic episodes are played once, and bounds for any eps are computed from them.

The first episodes only choose (the budget ``D`` of certified return 3, the cap of 2); the others certify.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

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
)
from sb3_prune_robust.certificates.observations import policy_of, read_network
from sb3_prune_robust.certificates.return_bounds import total_discount
from sb3_prune_robust.evaluation.loading import horizon_of
from sb3_prune_robust.evaluation.rollouts import Episodes, rollout
from sb3_prune_robust.network import ActionNetwork

Array = npt.NDArray[Any]

METHODS = ("performance-difference", "likelihood-ratio", "action-noise")
SMOOTHING = "policy-smoothing"
# Radii tried to certify, as shares of the one forecast, until one fails.
_FACTORS = (0.3, 0.8, 0.95, 1.05, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
_FIRST_EPS, _SMALLEST_EPS, _LARGEST_EPS = 0.003, 1e-8, 100.0


@dataclass(frozen=True)
class ReturnCertificate:
    """
    Lower bounds on the expected return of one agent under every adversary within a ball.

    :param lower: the best of the bounds, which holds with probability ``confidence``; ``None``: not certified
    :param method: the method that gave it
    :param clean: mean of the same return without attack, over the same episodes; itself without guarantee
    :param confidence: of the best bound: each method has a third of what may fail
    :param by_method: each method's own bound, with the confidence of that one alone, and ``"policy-smoothing"`` if asked for:
        the bound of ANOTHER agent, which adds noise to its observations at run time; never the best
    :param not_certified: for each method that gives no bound, why
    :param quantity: the return that is certified, in words
    :param assumptions: what the bounds hold for, in words
    :param eps: radius of the ball, a number or one for each input
    :param norm: ``"linf"`` or ``"l2"``
    :param gamma: discount
    :param horizon: cap on the steps of an episode, ``None``: none
    :param n_episodes: episodes that certify
    """

    lower: float | None
    method: str | None
    clean: float
    confidence: float
    by_method: dict[str, ReturnBound]
    not_certified: dict[str, str]
    quantity: str
    assumptions: str
    eps: npt.ArrayLike
    norm: str
    gamma: float
    horizon: int | None
    n_episodes: int

    @property
    def share(self) -> float | None:
        """The best bound as a share of the mean clean return; ``None`` where there is none, or the mean is not positive."""
        return None if self.lower is None or self.clean <= 0 else self.lower / self.clean


@dataclass(frozen=True)
class LargestEps:
    """
    The largest eps at which a share of the clean return is certified.

    :param eps: radius of the ball; 0: none was found
    :param share: the share asked for
    :param bound: the certificate that shows it at that eps, ``None`` if there is none
    :param clean: mean clean return that the share is of
    :param tried: each radius tried on the certifying episodes, smallest first, with the share certified there
    """

    eps: float
    share: float
    bound: ReturnBound | None
    clean: float
    tried: tuple[tuple[float, float], ...]


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

    def certify(
        self, eps: npt.ArrayLike, norm: str = "linf", confidence: float = 0.999, bound: str = "best"
    ) -> ReturnCertificate:
        """
        The three certified returns at one eps.

        :param eps: radius of the ball, a number or one for each input
        :param norm: ``"linf"`` or ``"l2"``
        :param confidence: with which the best of them holds, in ``[0.5, 1)``
        :param bound: method of :func:`~sb3_prune_robust.certificates.certify` for each state
        :return: the certificate
        :raises ValueError: naming the argument
        """
        alpha = (1.0 - check_confidence(confidence)) / len(METHODS)
        chosen, certified = self.bounds(self.calibration, eps, norm, bound), self.bounds(self.episodes, eps, norm, bound)
        by_method: dict[str, ReturnBound] = {}
        missing: dict[str, str] = {}
        floor = self.floor
        if floor is None:
            missing = dict.fromkeys(METHODS, self.rewards.reason)
        else:
            by_method["likelihood-ratio"] = self._likelihood(chosen, certified, alpha)
            by_method["action-noise"] = self._noise(self.promised(chosen.shifts(), alpha)[0], certified.shifts(), alpha)
            difference = self._difference(certified, alpha)
            if difference is None:
                missing["performance-difference"] = self.rewards.reason
            else:
                by_method["performance-difference"] = difference
        return self._certificate(by_method, missing, confidence, certified.certificate, eps, norm)

    def _certificate(
        self,
        by_method: dict[str, ReturnBound],
        missing: dict[str, str],
        confidence: float,
        states: Certificate,
        eps: npt.ArrayLike,
        norm: str,
    ) -> ReturnCertificate:
        best = max(by_method.values(), key=lambda one: one.lower, default=None)
        return ReturnCertificate(
            None if best is None else best.lower,
            None if best is None else best.method,
            self.clean_return(),
            confidence,
            by_method,
            missing,
            self.quantity,
            f"{states.assumptions}; actions drawn afresh at each step from noise that the adversary cannot foresee; rewards: "
            f"{self.rewards.reason}",
            eps,
            norm,
            self.gamma,
            self.horizon,
            len(self.episodes.returns),
        )

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
        return StepBounds(read_network(policy_of(self.policy)), episodes, certify(self.policy, states, eps, norm, bound))

    def _likelihood(self, chosen: StepBounds, certified: StepBounds, alpha: float) -> ReturnBound:
        seen, rest = self.calibration, self._arguments()
        cap = likelihood_samples(self.reward_arrays(seen), chosen.log_ratios(), seen.terminated.tolist(), **rest).max()
        rewards, ended = self.reward_arrays(self.episodes), self.episodes.terminated.tolist()
        return likelihood_return_bound(rewards, certified.log_ratios(), ended, **rest, cap=float(cap), alpha=alpha)

    def noise_certificate(self, eps: npt.ArrayLike, norm: str, bound: str, alpha: float) -> ReturnBound:
        """
        Certified return 3 alone: by the policy's own noise, or by that on its observations where these episodes were smoothed.

        :param eps: radius of the ball
        :param norm: ``"linf"`` or ``"l2"``
        :param bound: per-state method
        :param alpha: probability that the bound fails
        :return: the bound
        """
        budget, _ = self.promised(self.shifts(self.calibration, eps, norm, bound), alpha)
        return self._noise(budget, self.shifts(self.episodes, eps, norm, bound), alpha)

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

    def _noise(self, budget: float, shifts: Sequence[Array], alpha: float) -> ReturnBound:
        rewards, ended = self.reward_arrays(self.episodes), self.episodes.terminated.tolist()
        method = "action-noise" if self.noise_std is None else SMOOTHING
        return noise_certificate(rewards, shifts, ended, budget, **self._arguments(), alpha=alpha, method=method)

    def _arguments(self) -> dict[str, Any]:
        return dict(gamma=self.gamma, horizon=self.horizon, floor=self.floor)

    def _difference(self, certified: StepBounds, alpha: float) -> ReturnBound | None:
        """Clean return, from below, minus what any adversary can take: each may fail with half of alpha."""
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


def certify_return(
    model: Any,
    env: VecEnv,
    eps: npt.ArrayLike,
    norm: str = "linf",
    *,
    confidence: float = 0.999,
    bound: str = "best",
    smoothing_std: float | None = None,
    **play: Any,
) -> ReturnCertificate:
    """
    Lower bounds on the expected return of a stochastic policy under EVERY adversary that perturbs its observations within a
    ball, history-dependent and randomised ones included.

    - ``"performance-difference"``: clean return minus ``rho / (1 - gamma)^2 F``, or its form for a capped horizon (THEORY:
      Pedley et al. 2025, Kakade and Langford 2002);
    - ``"likelihood-ratio"``: clean returns weighted by the least likelihood ratios along each trajectory;
    - ``"action-noise"``: the policy's own noise as its smoothing, after Kumar, Levine and Feizi 2022. Usually by far the best;
    - ``"policy-smoothing"``, on request: Kumar et al.'s own, of another agent: the same network playing its mode on
      observations with Gaussian noise added at run time. Its budget per step is that of the ball at every step of an episode.

    :param model: a PPO, A2C or TRPO model or policy with a state-independent covariance
    :param env: environments on ``DummyVecEnv``, with the agent's VecNormalize, its statistics frozen (``training=False``)
    :param eps: radius of the ball in units of the observation the policy receives, a number or one for each input
    :param norm: ``"linf"`` or ``"l2"``
    :param confidence: with which the best of the bounds holds
    :param bound: per-state method of :func:`~sb3_prune_robust.certificates.certify`
    :param smoothing_std: standard deviation of the noise on observations for ``"policy-smoothing"``; ``None``: leave it out
    :param play: arguments of :func:`play_clean`: ``gamma`` (1: whole episodes), ``horizon``, ``n_episodes``,
        ``n_calibration``, ``reward_min``, ``reward_max``, ``clip_rewards``, ``deterministic``, ``seed``, ``on_episode``
    :return: the certificate
    :raises ValueError: naming the argument
    """
    check_confidence(confidence)
    Ball.create(eps, norm, env.observation_space.shape or ())
    certificate = play_clean(model, env, **play).certify(eps, norm, confidence, bound)
    if smoothing_std is None:
        return certificate
    smoothed = play_clean(model, env, noise_std=smoothing_std, **play)
    alpha = (1.0 - confidence) / len(METHODS)
    return replace(
        certificate, by_method={**certificate.by_method, SMOOTHING: smoothed.noise_certificate(eps, norm, bound, alpha)}
    )


def largest_certified_eps(
    play: CleanPlay,
    share: float = 0.5,
    norm: str = "linf",
    *,
    confidence: float = 0.999,
    bound: str = "crown",
    clean: float | None = None,
) -> LargestEps:
    """
    The largest eps, the same for all inputs, at which ``"action-noise"`` certifies a share of the clean return.

    A bisection on the calibration episodes forecasts it; radii around the forecast are then tried on the certifying episodes
    from small to large until one fails. Tested in an order fixed beforehand, against a return fixed beforehand, and stopped at
    the first failure, each may use the whole of alpha (fixed-sequence testing, Maurer et al. 1995): at the eps returned the
    return is at least ``share * clean`` with the confidence asked for.

    :param play: the agent's clean episodes; smoothed ones (``noise_std``) give ``"policy-smoothing"``
    :param share: of the mean clean return, in ``(0, 1)``
    :param norm: ``"linf"`` or ``"l2"``
    :param confidence: with which the certificate at the eps returned holds
    :param bound: per-state method
    :param clean: mean clean return to take the share of; ``None``: that of the calibration episodes
    :return: the eps, and the certificate there
    :raises ValueError: for no known lower bound on the rewards, a share outside ``(0, 1)``, or a return that is not positive
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie in (0, 1), got {share!r}")
    alpha, floor = 1.0 - check_confidence(confidence), play.floor
    if floor is None:
        raise ValueError(f"no lower bound on the rewards is known: {play.rewards.reason}")
    clean = play.mean_return(play.calibration) if clean is None else clean
    if clean <= 0:
        raise ValueError(f"the mean clean return is {clean:g}: a share of it says nothing")
    forecast = _forecast(play, share * clean, norm, bound, alpha)
    tried: list[tuple[float, float]] = []
    best: tuple[float, ReturnBound | None] = (0.0, None)
    for factor in _FACTORS:
        found = play.noise_certificate(factor * forecast, norm, bound, alpha)
        tried.append((factor * forecast, found.lower / clean))
        if found.lower < share * clean:
            break
        best = (factor * forecast, found)
    return LargestEps(best[0], share, best[1], clean, tuple(tried))


def _forecast(play: CleanPlay, wanted: float, norm: str, bound: str, alpha: float) -> float:
    """
    The eps at which what the calibration episodes promise falls to what is wanted.

    Shifts are nearly proportional to a small eps, so they are computed thrice only, each time at the last forecast. Few
    episodes may promise less than is wanted at any eps: then the scale of eps is that of their own decline.
    """
    eps = _FIRST_EPS
    for _ in range(3):
        unit = [shifts / eps for shifts in play.shifts(play.calibration, eps, norm, bound)]
        top = play.promised([0.0 * shifts for shifts in unit], alpha)[1]
        goal = wanted if top > wanted else wanted / play.mean_return(play.calibration) * top
        eps = _bisect(unit, goal, play, alpha)
    return eps


def _bisect(unit: list[Array], goal: float, play: CleanPlay, alpha: float) -> float:
    low, high = _SMALLEST_EPS, _LARGEST_EPS
    while high > 1.02 * low:
        middle = float(np.sqrt(low * high))
        reached = play.promised([middle * shifts for shifts in unit], alpha)[1] >= goal
        low, high = (middle, high) if reached else (low, middle)
    return low


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


def check_confidence(confidence: float) -> float:
    """Refuse a confidence outside ``[0.5, 1)``."""
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must lie in [0.5, 1), got {confidence!r}")
    return confidence


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
    for name, value in (("n_episodes", n_episodes), ("n_calibration", n_calibration)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    _check_frozen(env)
    policy = policy_of(model)
    read_network(policy)  # what no certificate covers is refused before anything is played
    cap = _check_horizon(env, gamma, horizon)
    rewards = _rewards(env, reward_min, reward_max, clip_rewards)
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
        on_episode=on_episode,
    )
    episodes = cut(episodes, cap)
    chosen, certified = episodes.part(slice(n_calibration)), episodes.part(slice(n_calibration, None))
    return CleanPlay(policy, chosen, certified, rewards, gamma, cap, noise_std)


def _limits(rewards: RewardRange) -> tuple[float, float]:
    return (-np.inf if rewards.low is None else rewards.low, np.inf if rewards.high is None else rewards.high)


def _check_frozen(env: VecEnv) -> None:
    normalizer = unwrap_vec_normalize(env)
    if normalizer is not None and normalizer.training:
        raise ValueError(
            "env: its VecNormalize statistics are still being updated (training=True), so that eps and the policy as a "
            "function of the state would change as the episodes are played; set env.training = False"
        )


def _check_horizon(env: VecEnv, gamma: float, horizon: int | None) -> int | None:
    limit = horizon_of(env)
    if horizon is not None and (horizon < 1 or (limit is not None and horizon > limit)):
        raise ValueError(f"horizon must be at least 1 and at most the environment's time limit of {limit}, got {horizon!r}")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1], got {gamma!r}")
    if gamma == 1 and horizon is None and limit is None:
        raise ValueError("gamma = 1 needs a horizon: the environment has no time limit, and the return is an infinite sum")
    return limit if gamma == 1 and horizon is None else horizon


def _rewards(
    env: VecEnv, reward_min: float | None, reward_max: float | None, clip_rewards: tuple[float, float] | None
) -> RewardRange:
    if clip_rewards is not None:
        if reward_min is not None or reward_max is not None:
            raise ValueError("clip_rewards was given together with reward_min or reward_max: it is one or the other")
        return clipped_rewards(*clip_rewards)
    spec = env.get_attr("spec")[0]
    if spec is None:
        return reward_range("an environment with no id", reward_min, reward_max)
    return reward_range(spec.id, reward_min, reward_max, changed_arguments(spec))


def changed_arguments(spec: Any) -> dict[str, Any]:
    """Arguments and wrappers by which an environment differs from the one that its id names: any may change the reward."""
    registered = gym.registry[spec.id].kwargs if spec.id in gym.registry else {}
    changed = {key: value for key, value in spec.kwargs.items() if key != "render_mode" and registered.get(key) != value}
    return {**changed, **({"wrappers": spec.additional_wrappers} if spec.additional_wrappers else {})}


def cut(episodes: Episodes, horizon: int | None) -> Episodes:
    """
    Episodes as they are under a cap on their steps; returns and lengths are those of the cut ones.

    :param episodes: the episodes
    :param horizon: the cap; ``None``: as they are
    :return: the cut episodes
    """
    if horizon is None or int(episodes.lengths.max()) <= horizon:
        return episodes
    rewards = tuple(reward[:horizon] for reward in episodes.rewards)
    return replace(
        episodes,
        returns=np.array([reward.sum() for reward in rewards]),
        lengths=np.minimum(episodes.lengths, horizon),
        terminated=episodes.terminated & (episodes.lengths <= horizon),
        rewards=rewards,
        observations=tuple(array[:horizon] for array in episodes.observations),
        samples=tuple(array[:horizon] for array in episodes.samples),
    )
