"""What is certified of an agent at one sparsity, from the states that its clean stochastic episodes visited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.bounds import GLOBAL_METHODS
from sb3_prune_robust.certificates import (
    Certificate,
    LossBound,
    attacked_loss_bound,
    certified_gain,
    certify,
    loss_bound,
    policy_difference,
    return_lower_bound,
    total_discount,
    visitation_tv,
)
from sb3_prune_robust.certificates.observations import read_noise
from sb3_prune_robust.evaluation.cells import Agent, Cell
from sb3_prune_robust.evaluation.return_record import return_record, tightness_record
from sb3_prune_robust.evaluation.rollouts import Episodes
from sb3_prune_robust.evaluation.settings import Settings
from sb3_prune_robust.network import UnsupportedNetworkError

Array = npt.NDArray[Any]
Record = dict[str, Any]


def certified_record(agents: Sequence[Agent], level: float, cells: Mapping[float, Cell], settings: Settings) -> Record:
    """
    The ``certificate`` of a point of the record.

    :param agents: the agents
    :param level: the sparsity
    :param cells: stochastic episodes by sparsity, with the states of the clean ones recorded; the smallest is the dense agent
    :param settings: eps, norm, gamma, confidence, rewards and horizon
    :return: as in ``docs/report_schema.md``; ``{"not_certified": reason}`` for policies that no formula covers
    """
    dense, clean = min(cells), cells[level].clean
    try:
        for agent in agents:
            read_noise(agent.policies[level])
        certificates = [_certify(a.policies[level], e, settings) for a, e in zip(agents, clean, strict=True)]
    except UnsupportedNetworkError as error:
        return {"not_certified": str(error)}
    records = []
    for i, (agent, certificate) in enumerate(zip(agents, certificates, strict=True)):
        loss = _attack_loss(certificate, cells[level].clean[i], settings)
        records.append(
            {
                "agent": agent.name,
                "visitation": _visitation(certificate, cells[level].clean[i], settings),
                "attack_loss": _loss_record(loss, settings),
                "clean_return": _clean_return(cells[level].clean[i], settings),
                "return": _return_record(loss, cells[level].clean[i], settings),
                "pruning_loss": _loss_record(_pruning_loss(agent, level, dense, cells[dense].clean[i], settings), settings),
                "robustness_gain": _gain_record(loss, cells[dense], i, settings),
            }
        )
    return {
        "tv": _total_variation(certificates),
        "tightness": tightness_record([agent.policies[level] for agent in agents], clean, settings),
        "agents": records,
        "certified_return": return_record(agents, level, cells[level], settings),
        "rewards": settings.rewards.reason,
        "assumptions": certificates[0].assumptions,
    }


def _alpha(settings: Settings) -> float:
    return 1.0 - settings.confidence


def _certify(policy: Any, episodes: Episodes, settings: Settings) -> Certificate:
    states = np.concatenate(episodes.observations).reshape(-1, *policy.observation_space.shape)
    return certify(policy, states, settings.eps, settings.norm)


def _by_episode(values: Array, episodes: Episodes) -> list[Array]:
    return np.split(values, np.cumsum(episodes.lengths)[:-1])


def _everywhere(certificate: Certificate) -> float:
    """A bound at every state, visited or not: these methods look at no state."""
    return float(min(certificate.by_method[method].tv[0] for method in GLOBAL_METHODS))


def _total_variation(certificates: Sequence[Certificate]) -> Record:
    """Means over all states visited: a description. What bounds a return is the discounted visitation."""

    def mean(values: Sequence[Array]) -> float:
        return float(np.mean([np.mean(value) for value in values]))

    return {
        "mean": mean([certificate.tv for certificate in certificates]),
        "max": max(float(certificate.tv.max()) for certificate in certificates),
        "by_method": {m: mean([c.by_method[m].tv for c in certificates]) for m in certificates[0].by_method},
        "n_states": sum(len(certificate.tv) for certificate in certificates),
        "greedy_unchanged": _greedy_unchanged(certificates),
    }


def _greedy_unchanged(certificates: Sequence[Certificate]) -> float | None:
    """Share of the states at which a categorical policy that plays its likeliest choice provably plays the same."""
    unchanged = [certificate.greedy_unchanged for certificate in certificates]
    return None if unchanged[0] is None else float(np.mean([np.mean(one) for one in unchanged if one is not None]))


def _visitation(certificate: Certificate, episodes: Episodes, settings: Settings) -> Record | None:
    if settings.gamma == 1:  # the visitation of an undiscounted infinite horizon does not exist
        return None
    tv = _by_episode(certificate.tv, episodes)
    ended = episodes.terminated.tolist()
    bound = visitation_tv(tv, ended, settings.gamma, _alpha(settings), _everywhere(certificate))
    return {"mean": bound.mean, "upper": bound.bound, "confidence": bound.confidence, "method": bound.method}


def _attack_loss(certificate: Certificate, episodes: Episodes, settings: Settings) -> LossBound | None:
    tv = _by_episode(certificate.tv, episodes)
    return _bound(tv, episodes, settings, _everywhere(certificate))


def _pruning_loss(agent: Agent, level: float, dense: float, episodes: Episodes, settings: Settings) -> LossBound | None:
    """(2): the distance between the dense and the pruned policy at the states that the dense one visits."""
    if level == dense:
        return None
    policy, other = agent.policies[dense], agent.policies[level]
    states = np.concatenate(episodes.observations).reshape(-1, *policy.observation_space.shape)
    return _bound(_by_episode(policy_difference(policy, other, states).tv, episodes), episodes, settings)


def _bound(tv: list[Array], episodes: Episodes, settings: Settings, everywhere: float = 1.0) -> LossBound | None:
    ended = episodes.terminated.tolist()
    return loss_bound(tv, ended, settings.rewards, settings.gamma, settings.horizon, _alpha(settings), everywhere)


def _loss_record(loss: LossBound | None, settings: Settings) -> Record | None:
    if loss is None:
        return None
    return {
        "bound": loss.value,
        "vacuous": loss.value >= loss.span * total_discount(settings.gamma, settings.horizon) * (1 - 1e-9),
        "formula": loss.formula,
        "span": loss.span,
        "weighted_tv": loss.tv.mean,
        "weighted_tv_upper": loss.tv.bound,
        "confidence": loss.tv.confidence,
    }


def _clean_return(episodes: Episodes, settings: Settings) -> Record | None:
    rewards, ended = _rewards(episodes, settings)
    bound = return_lower_bound(rewards, ended, settings.rewards, settings.gamma, settings.horizon, _alpha(settings))
    return None if bound is None else {"mean": bound.mean, "lower": bound.bound, "confidence": bound.confidence}


def _return_record(loss: LossBound | None, episodes: Episodes, settings: Settings) -> Record | None:
    """Clean return, from below, minus what any attack can take; the two may fail separately."""
    clean = _clean_return(episodes, settings)
    if loss is None or clean is None:
        return None
    limits = settings.rewards.limits
    assert limits is not None  # or the loss were not known
    floor = limits[0] * total_discount(settings.gamma, settings.horizon)  # the smallest return that the rewards allow
    lower = max(clean["lower"] - loss.value, floor)
    return {"lower": lower, "vacuous": lower <= floor, "confidence": clean["confidence"] + loss.tv.confidence - 1}


def _rewards(episodes: Episodes, settings: Settings) -> tuple[list[Array], list[bool]]:
    return [settings.rewards.clip(one) for one in episodes.rewards], episodes.terminated.tolist()


def _gain_record(loss: LossBound | None, dense: Cell, i: int, settings: Settings) -> Record | None:
    """
    A lower bound on the robustness gain: what the attacks cost the dense agent minus what any can cost this one.

    Which attack is strongest is found on these episodes, so each gets its share of alpha.
    """
    if loss is None:
        return None
    alpha = _alpha(settings) / len(dense.attacked)
    clean = _rewards(dense.clean[i], settings)
    gains = []
    for played in dense.attacked.values():
        attacked = _rewards(played[i], settings)
        taken = attacked_loss_bound(clean, attacked, settings.rewards, settings.gamma, settings.horizon, alpha)
        if taken is not None:
            gains.append(certified_gain(taken, loss).value)
    return {"lower": max(gains), "confidence": 1 - 2 * _alpha(settings)} if gains else None
