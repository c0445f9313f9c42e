"""Certified returns: lower bounds on what an agent returns under every adversary, and how large an eps leaves how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

from sb3_prune_robust.bounds import Ball
from sb3_prune_robust.certificates import Certificate, ReturnBound
from sb3_prune_robust.evaluation.clean_play import SMOOTHING, CleanPlay, check_environment, play_clean

Array = npt.NDArray[Any]

METHODS = ("performance-difference", "likelihood-ratio", "action-noise")
# Radii tried to certify, as shares of the one forecast, until one fails.
_FACTORS = (0.02, 0.3, 0.8, 0.95, 1.05, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
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
    The largest eps tried at which a share of the clean return is certified.

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


def certify_play(
    play: CleanPlay, eps: npt.ArrayLike, norm: str = "linf", confidence: float = 0.999, bound: str = "best"
) -> ReturnCertificate:
    """
    The three certified returns at one eps, from episodes that were played.

    :param play: from :func:`~sb3_prune_robust.evaluation.clean_play.play_clean`, without noise on the observations
    :param eps: radius of the ball, a number or one for each input
    :param norm: ``"linf"`` or ``"l2"``
    :param confidence: with which the best of them holds, in ``[0.5, 1)``
    :param bound: method of :func:`~sb3_prune_robust.certificates.certify` for each state
    :return: the certificate
    :raises ValueError: naming the argument
    """
    if play.noise_std is not None:
        raise ValueError("play is of a smoothed agent, which policy smoothing alone certifies")
    alpha = (1.0 - check_confidence(confidence)) / len(METHODS)
    certified = play.bounds(play.episodes, eps, norm, bound)
    by_method: dict[str, ReturnBound] = {}
    if play.floor is not None:
        chosen = play.bounds(play.calibration, eps, norm, bound)
        difference = play.difference_certificate(certified, alpha)
        by_method = {} if difference is None else {"performance-difference": difference}
        by_method["likelihood-ratio"] = play.likelihood_certificate(chosen, certified, alpha)
        by_method["action-noise"] = play.noise_certificate(chosen.shifts(), certified.shifts(), alpha)
    return _certificate(play, by_method, confidence, certified.certificate, norm, eps)


def _certificate(
    play: CleanPlay,
    by_method: dict[str, ReturnBound],
    confidence: float,
    states: Certificate,
    norm: str,
    eps: npt.ArrayLike,
) -> ReturnCertificate:
    best = max(by_method.values(), key=lambda one: one.lower, default=None)
    return ReturnCertificate(
        None if best is None else best.lower,
        None if best is None else best.method,
        play.clean_return(),
        confidence,
        by_method,
        {method: play.rewards.reason for method in METHODS if method not in by_method},
        play.quantity,
        f"{states.assumptions}; actions drawn afresh at each step from noise that the adversary cannot foresee; rewards: "
        f"{play.rewards.reason}",
        eps,
        norm,
        play.gamma,
        play.horizon,
        len(play.episodes.returns),
    )


def check_confidence(confidence: float) -> float:
    """Refuse a confidence outside ``[0.5, 1)``."""
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must lie in [0.5, 1), got {confidence!r}")
    return confidence


def certify_return(
    model: Any,
    env: VecEnv,
    eps: npt.ArrayLike,
    norm: str = "linf",
    *,
    gamma: float = 1.0,
    horizon: int | None = None,
    n_episodes: int = 500,
    n_calibration: int = 100,
    confidence: float = 0.999,
    bound: str = "best",
    reward_min: float | None = None,
    reward_max: float | None = None,
    clip_rewards: tuple[float, float] | None = None,
    deterministic: bool = False,
    smoothing_std: float | None = None,
    seed: int = 0,
    on_episode: Callable[[], None] | None = None,
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
    :param gamma: discount in ``(0, 1]``; 1: whole episodes
    :param horizon: cap on the steps of an episode; ``None``: the environment's time limit if ``gamma`` is 1, else no cap
    :param n_episodes: episodes that certify
    :param n_calibration: episodes that choose
    :param confidence: with which the best of the bounds holds
    :param bound: per-state method of :func:`~sb3_prune_robust.certificates.certify`
    :param reward_min: smallest reward possible, if you vouch for one; ``None``: where proved for the environment
    :param reward_max: largest reward possible, likewise
    :param clip_rewards: instead, take each reward as clipped to this range: the return certified is then that one
    :param deterministic: refused if true: a policy that plays its mode has no noise, and no certificate here covers it
    :param smoothing_std: standard deviation of the noise on observations for ``"policy-smoothing"``; ``None``: leave it out
    :param seed: seed of the first episode
    :param on_episode: called after each episode (progress)
    :return: the certificate
    :raises ValueError: naming the argument
    """
    check_confidence(confidence)
    if smoothing_std is not None and not 0 < smoothing_std < np.inf:
        raise ValueError(f"smoothing_std must be positive and finite, got {smoothing_std!r}")
    arguments: dict[str, Any] = dict(
        gamma=gamma,
        horizon=horizon,
        n_episodes=n_episodes,
        n_calibration=n_calibration,
        reward_min=reward_min,
        reward_max=reward_max,
        clip_rewards=clip_rewards,
        seed=seed,
        on_episode=on_episode,
    )
    check_environment(model, env)
    Ball.create(eps, norm, env.observation_space.shape or ())
    certificate = certify_play(play_clean(model, env, deterministic=deterministic, **arguments), eps, norm, confidence, bound)
    if smoothing_std is None:
        return certificate
    if not certificate.by_method:  # for want of a reward's range, which smoothing lacks as well
        reason = next(iter(certificate.not_certified.values()))
        return replace(certificate, not_certified={**certificate.not_certified, SMOOTHING: reason})
    smoothed = play_clean(model, env, noise_std=smoothing_std, **arguments)
    found = noise_bound(smoothed, eps, norm, bound, (1.0 - confidence) / len(METHODS))
    return replace(certificate, by_method={**certificate.by_method, SMOOTHING: found})


def noise_bound(play: CleanPlay, eps: npt.ArrayLike, norm: str, bound: str, alpha: float) -> ReturnBound:
    """
    Certified return 3 alone, or policy smoothing where the episodes were played with noise on the observations.

    :param play: the episodes
    :param eps: radius of the ball
    :param norm: ``"linf"`` or ``"l2"``
    :param bound: per-state method
    :param alpha: probability that the bound fails
    :return: the bound
    """
    chosen, shifts = (play.shifts(episodes, eps, norm, bound) for episodes in (play.calibration, play.episodes))
    return play.noise_certificate(chosen, shifts, alpha)


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
    :param clean: mean clean return to take the share of; ``None``: the larger of those of the calibration and the certifying
        episodes (what holds with the confidence asked for is the share of the former, which was fixed beforehand)
    :return: the eps, and the certificate there
    :raises ValueError: for no known lower bound on the rewards, a share outside ``(0, 1)``, or a return that is not positive
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie in (0, 1), got {share!r}")
    alpha, floor = 1.0 - check_confidence(confidence), play.floor
    if floor is None:
        raise ValueError(f"no lower bound on the rewards is known: {play.rewards.reason}")
    if clean is None:
        clean = max(play.mean_return(play.calibration), play.clean_return())
    if clean <= 0:
        raise ValueError(f"the mean clean return is {clean:g}: a share of it says nothing")
    forecast = _forecast(play, share * clean, norm, bound, alpha)
    tried: list[tuple[float, float]] = []
    best: tuple[float, ReturnBound | None] = (0.0, None)
    for factor in _FACTORS:
        found = noise_bound(play, factor * forecast, norm, bound, alpha)
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
