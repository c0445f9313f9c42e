"""What is certified of the actions of an agent that plays its mode, at states that its clean episodes visited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_prune_robust.certificates import Certificate, certify
from sb3_prune_robust.evaluation.cells import Agent, Cell
from sb3_prune_robust.evaluation.rollouts import Episodes
from sb3_prune_robust.evaluation.settings import Settings
from sb3_prune_robust.evaluation.tables import percent, table
from sb3_prune_robust.network import UnsupportedNetworkError, box_of, choices, is_greedy

Record = dict[str, Any]
MOST_STATES = 4096  # of an agent, evenly spaced among those visited: a description needs no more


def actions_record(agents: Sequence[Agent], level: float, cell: Cell, settings: Settings) -> Record:
    """
    The ``actions`` of a point of the record.

    :param agents: the agents
    :param level: the sparsity
    :param cell: their deterministic episodes, with the states of the clean ones recorded
    :param settings: eps and norm
    :return: as in ``docs/report_schema.md``; ``{"not_certified": reason}`` for policies that no bound covers
    """
    try:
        certificates = [_certify(a.policies[level], e, settings) for a, e in zip(agents, cell.clean, strict=True)]
    except UnsupportedNetworkError as error:
        return {"not_certified": str(error)}
    unchanged = [one.greedy_unchanged for one in certificates if one.greedy_unchanged is not None]
    methods = certificates[0].by_method
    return {
        "unit": _unit(agents[0].policies[level]),
        "radius": {
            "mean": float(np.mean([one.radius.mean() for one in certificates])),
            "max": float(max(one.radius.max() for one in certificates)),
            "by_method": {m: float(np.mean([one.by_method[m].radius.mean() for one in certificates])) for m in methods},
        },
        "greedy_unchanged": float(np.mean([one.mean() for one in unchanged])) if unchanged else None,
        "n_states": sum(len(one.tv) for one in certificates),
        "assumptions": certificates[0].assumptions,
    }


def _certify(policy: Any, episodes: Episodes, settings: Settings) -> Certificate:
    states = np.concatenate(episodes.observations)
    chosen = np.unique(np.linspace(0, len(states) - 1, min(len(states), MOST_STATES)).astype(int))
    return certify(policy, states[chosen].reshape(-1, *policy.observation_space.shape), settings.eps, settings.norm)


def _unit(policy: Any) -> str:
    if is_greedy(policy):
        return "Q value"
    if choices(policy):
        return "logit"
    return "mean before clipping" if box_of(policy) is None else "action"


def actions_section(record: Mapping[str, Any]) -> list[str]:
    """
    The part of the page on actions played for certain.

    :param record: a report's record
    :return: paragraphs of Markdown; none where only samples were played
    """
    points = [p for result in record["modes"].values() for p in result["points"] if p["actions"] is not None]
    if not points:
        return []
    refused = [point["actions"]["not_certified"] for point in points if "not_certified" in point["actions"]]
    if refused:
        return ["### Actions played for certain", f"Not certified: {refused[0]}."]
    first = points[0]["actions"]
    rows = [_row(point["sparsity"], point["actions"]) for point in points]
    header = ["sparsity", "mean bound", "largest", *first["radius"]["by_method"]]
    text = (
        f"How far an attack can move each {first['unit']} at a state, at most: mean over states (and entries), the largest, "
        f"and the mean by each bound alone, at {first['n_states']} of the states visited."
    )
    if first["greedy_unchanged"] is not None:
        header.append("choice cannot change")
        text += " *Choice cannot change*: share of these states at which every perturbation provably leaves it the same."
    return ["### Actions played for certain", table(header, rows), text]


def _row(level: float, actions: Mapping[str, Any]) -> list[str]:
    radius = actions["radius"]
    numbers = [f"{value:.3g}" for value in (radius["mean"], radius["max"], *radius["by_method"].values())]
    share = [] if actions["greedy_unchanged"] is None else [f"{actions['greedy_unchanged']:.1%}"]
    return [percent(level), *numbers, *share]
