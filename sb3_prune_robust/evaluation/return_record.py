"""What a report says of certified returns and of certified against attacked total variation, at one sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.attacks import MAD
from sb3_prune_robust.bounds.action import groups
from sb3_prune_robust.certificates import certify
from sb3_prune_robust.certificates.divergences import categorical_tv, gaussian_tv
from sb3_prune_robust.certificates.observations import read_noise
from sb3_prune_robust.evaluation.cells import Agent, Cell
from sb3_prune_robust.evaluation.clean_play import CleanPlay
from sb3_prune_robust.evaluation.return_certificate import (
    METHODS,
    LargestEps,
    ReturnCertificate,
    certify_play,
    largest_certified_eps,
    noise_bound,
)
from sb3_prune_robust.evaluation.rollouts import Episodes
from sb3_prune_robust.evaluation.settings import Settings

Array = npt.NDArray[Any]
Record = dict[str, Any]

SHARE = 0.5  # of the clean return, for the largest eps at which it is certified
_CALIBRATION = 5  # one episode in so many chooses, the others certify
_ATTACKED_STATES = 256


def return_record(agents: Sequence[Agent], level: float, cell: Cell, settings: Settings) -> Record:
    """
    The ``certified_return`` of a point of the record.

    :param agents: the agents
    :param level: the sparsity
    :param cell: its stochastic episodes, the states of the clean ones recorded
    :param settings: eps and its grid, norm, gamma, confidence, rewards and horizon
    :return: as in ``docs/report_schema.md``; ``{"not_certified": reason}`` without a lower bound on the rewards, or with one
        episode
    """
    if settings.rewards.low is None:
        return {"not_certified": settings.rewards.reason}
    if settings.n_episodes < 2:
        return {"not_certified": "one episode cannot both choose and certify"}
    whole = settings.gamma if settings.horizon is None else 1.0
    plays = [clean_play(a.policies[level], e, settings, whole) for a, e in zip(agents, cell.clean, strict=True)]
    curve = [_at_radius(plays, radius, cell, settings) for radius in settings.radii]
    discounted = [
        certify_play(replace(play, gamma=settings.gamma), settings.eps, settings.norm, settings.confidence) for play in plays
    ]
    return {
        "quantity": plays[0].quantity,
        "confidence": settings.confidence,
        "n_calibration": len(plays[0].calibration.returns),
        "n_certify": len(plays[0].episodes.returns),
        "clean": float(np.mean([play.clean_return() for play in plays])),
        "curve": curve,
        "half": _half(plays, settings),
        "smoothing": _smoothing(plays, cell, settings),
        "discounted": {"quantity": discounted[0].quantity, **_worst(discounted)},
    }


def clean_play(policy: Any, episodes: Episodes, settings: Settings, gamma: float) -> CleanPlay:
    """The clean episodes of a cell, one in five of them for choices, the others to certify."""
    n = max(len(episodes.returns) // _CALIBRATION, 1)
    parts = (episodes.part(slice(n)), episodes.part(slice(n, None)))
    return CleanPlay(policy, *parts, settings.rewards, gamma, settings.horizon)


def _at_radius(plays: Sequence[CleanPlay], radius: float, cell: Cell, settings: Settings) -> Record:
    certificates = [certify_play(play, radius, settings.norm, settings.confidence, "crown") for play in plays]
    attacked = cell.curve.get(radius)
    returns = None
    if attacked is not None:  # the episodes that certify, attacked: the same seeds as those of the clean mean
        n = len(plays[0].calibration.returns)
        parts = [episodes.part(slice(n, None)) for episodes in attacked.episodes]
        returns = [play.mean_return(part) for play, part in zip(plays, parts, strict=True)]
    return {
        "eps": radius,
        **_worst(certificates),
        "attacked": None if returns is None else float(np.mean(returns)),
        "attack": None if attacked is None or len(set(attacked.attacks)) > 1 else attacked.attacks[0],
        "attack_by_agent": None if attacked is None else attacked.attacks,
    }


def _worst(certificates: Sequence[ReturnCertificate]) -> Record:
    """The certificate of the agent for which least is certified."""
    worst = min(certificates, key=lambda one: -np.inf if one.lower is None else one.lower)
    return {
        "lower": worst.lower,
        "method": worst.method,
        "clean": worst.clean,
        "by_method": {m: worst.by_method[m].lower if m in worst.by_method else None for m in METHODS},
    }


def _half(plays: Sequence[CleanPlay], settings: Settings) -> Record:
    """The largest eps at which half of the clean return is certified, of the agent for which it is smallest."""
    if any(_clean(play) <= 0 for play in plays):
        return {"eps": None, "share": SHARE, "clean": None, "budget": None}
    found = [largest_certified_eps(play, SHARE, settings.norm, confidence=settings.confidence) for play in plays]
    worst: LargestEps = min(found, key=lambda one: one.eps)
    budget = None if worst.bound is None else worst.bound.budget
    return {"eps": worst.eps, "share": SHARE, "clean": worst.clean, "budget": budget}


def _clean(play: CleanPlay) -> float:
    """What half is taken of: few episodes choose, and their mean alone may be a lucky or unlucky one."""
    return max(play.mean_return(play.calibration), play.clean_return())


def _smoothing(plays: Sequence[CleanPlay], cell: Cell, settings: Settings) -> Record | None:
    """Policy smoothing of the same networks: another agent, for which half is of the return WITHOUT smoothing."""
    if not cell.smoothed:
        return None
    smoothed = [_smoothed(play, episodes, settings) for play, episodes in zip(plays, cell.smoothed, strict=True)]
    alpha, clean = 1.0 - settings.confidence, [_clean(play) for play in plays]
    lower = [min(noise_bound(s, eps, settings.norm, "crown", alpha).lower for s in smoothed) for eps in settings.radii]
    found = [
        largest_certified_eps(s, SHARE, settings.norm, confidence=settings.confidence, clean=mean).eps
        for s, mean in zip(smoothed, clean, strict=True)
        if min(clean) > 0
    ]
    return {
        "std": settings.smoothing_std,
        "clean": float(np.mean([play.clean_return() for play in smoothed])),
        "lower": lower,
        "half_eps": min(found, default=None),
    }


def _smoothed(play: CleanPlay, episodes: Episodes, settings: Settings) -> CleanPlay:
    """The smoothed episodes in place of an agent's own."""
    n = len(play.calibration.returns)
    parts = episodes.part(slice(n)), episodes.part(slice(n, None))
    return replace(play, calibration=parts[0], episodes=parts[1], noise_std=settings.smoothing_std)


def tightness_record(policies: Sequence[Any], episodes: Sequence[Episodes], settings: Settings) -> list[Record]:
    """
    Certified and attacked total variation at some of the visited states, for each radius: how much the bounds may overstate.

    :param policies: one for each agent
    :param episodes: their clean stochastic episodes
    :param settings: eps and its grid, norm, seed
    :return: one record a radius; empty if eps is 0
    """
    states = [_some_states(policy, one) for policy, one in zip(policies, episodes, strict=True)]
    pairs: list[Mapping[str, float]] = []
    for radius in settings.radii:
        certified = [certify(p, s, radius, settings.norm, "crown").tv.mean() for p, s in zip(policies, states, strict=True)]
        attacked = [attacked_tv(p, s, radius, settings).mean() for p, s in zip(policies, states, strict=True)]
        pairs.append({"eps": radius, "certified": float(np.mean(certified)), "attacked": float(np.mean(attacked))})
    return [dict(pair) for pair in pairs]


def _some_states(policy: Any, episodes: Episodes) -> Array:
    states = np.concatenate(episodes.observations)
    chosen = np.linspace(0, len(states) - 1, min(_ATTACKED_STATES, len(states))).astype(int)
    return np.asarray(states[chosen].reshape(-1, *policy.observation_space.shape))


def attacked_tv(policy: Any, states: Array, eps: float, settings: Settings) -> Array:
    """
    Total variation that the strongest form of MAD reaches at each state: a lower bound on the worst case.

    :param policy: the policy
    :param states: as it receives them, shape ``(n, *obs_shape)``
    :param eps: radius
    :param settings: norm and seed
    :return: shape ``(n,)``; of several categoricals, that of the one moved most
    """
    network = read_noise(policy)
    perturbed = MAD(eps, settings.norm, seed=settings.seed)(policy, states)
    before, after = (network(np.asarray(x, dtype=np.float64).reshape(len(x), -1)) for x in (states, perturbed))
    if network.std is not None:
        return gaussian_tv(np.linalg.norm((after - before) / network.std, axis=1))
    return np.max([categorical_tv(before[:, group], after[:, group]) for group in groups(network)], axis=0)
