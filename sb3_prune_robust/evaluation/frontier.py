"""The sparsity frontier: what an agent returns, clean and attacked, and what is certified, at each sparsity."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sb3_prune_robust.evaluation.actions import actions_record
from sb3_prune_robust.evaluation.cells import Agent, Cell, fitting_total, n_rollouts, play_cell
from sb3_prune_robust.evaluation.certified import certified_record
from sb3_prune_robust.evaluation.held_out import Watch, budget_of
from sb3_prune_robust.evaluation.identity import versions, victim_key
from sb3_prune_robust.evaluation.rollouts import Episodes
from sb3_prune_robust.evaluation.settings import MODES, NO_RANGE, NORMS, Settings
from sb3_prune_robust.evaluation.statistics import mean_interval, t_interval
from sb3_prune_robust.evaluation.store import Store
from sb3_prune_robust.evaluation.sweet_spots import paired_gain, sweet_spots
from sb3_prune_robust.policies import copy_policy
from sb3_prune_robust.pruning import prune_policy, sparsity


def pruned_copies(model: Any, sparsities: Sequence[float], **kwargs: Any) -> dict[float, Any]:
    """
    Copies of a model's policy, pruned after the fact: each from the one before, so that the masks are nested.

    :param model: an SB3 model or policy; it is not changed
    :param sparsities: share of zeros in the pruned layers, each in [0, 1)
    :param kwargs: passed to :func:`~sb3_prune_robust.pruning.prune_policy`
    :return: the policy at each sparsity, ascending; sparsity 0, the agent as given, is always among them. Levels that it
        has reached as given are left out, with a warning: they would be the same agent again
    :raises ValueError: for a sparsity outside [0, 1)
    """
    for value in sparsities:
        if not 0 <= value < 1:
            raise ValueError(f"sparsities must lie in [0, 1), got {value!r}")
    previous = copy_policy(getattr(model, "policy", model))
    policies = {0.0: previous}
    for value in sorted(set(sparsities) - {0.0}):
        pruned = copy_policy(previous)
        prune_policy(pruned, value, **kwargs)
        if sparsity(pruned) == sparsity(previous):
            warnings.warn(f"sparsities: {value:g} is left out, there are as many zeros already", stacklevel=2)
            continue
        policies[value] = previous = pruned
    return policies


def frontier(
    agents: Sequence[Agent], settings: Settings, watch: Watch | None = None, store: Store | None = None
) -> dict[str, Any]:
    """
    Measure and certify agents at each of their sparsities.

    Attacks that are learned are fitted anew on each agent at each sparsity in each mode.

    :param agents: the same agent trained with one or several seeds, all with the same sparsities
    :param settings: what to measure
    :param watch: who is told of progress
    :param store: where finished episodes and fitted attacks are kept; ``None``: nowhere
    :return: by mode, the record described in ``docs/report_schema.md`` under ``modes``
    :raises ValueError: if the agents' sparsities differ, or the smallest is not the same
    """
    levels = sorted(agents[0].policies)
    if any(sorted(agent.policies) != levels for agent in agents):
        raise ValueError("agents: all must come with the same sparsities")
    play = (watch or Watch(), store or Store(None))
    return {mode: _mode(agents, levels, settings, mode, *play) for mode in settings.modes}


def _mode(
    agents: Sequence[Agent], levels: Sequence[float], settings: Settings, mode: str, watch: Watch, store: Store
) -> dict[str, Any]:
    cells = {level: play_cell(agents, level, settings, mode, watch, store) for level in levels}
    points = [_point(agents, level, cells, settings, mode, store) for level in levels]
    candidates = [cell.candidate(level) for level, cell in cells.items()]
    best = max(candidates, key=lambda candidate: float(candidate.clean.mean()))
    return {
        "points": points,
        "sweet_spots": [asdict(spot) for spot in sweet_spots(candidates, settings.confidence)],
        "best_clean": {"mean": float(best.clean.mean()), "sparsity": best.sparsity},
    }


def _point(
    agents: Sequence[Agent], level: float, cells: Mapping[float, Cell], settings: Settings, mode: str, store: Store
) -> dict[str, Any]:
    cell, dense = cells[level], cells[min(cells)]
    reached = [sparsity(agent.policies[level]) for agent in agents]
    attacks = {name: _attack_record(cell, name, settings) for name in settings.attacks}
    worst = _worst(cell, level, settings)
    return {
        "sparsity": level,
        "reached": {key: float(np.mean([one[key] for one in reached])) for key in ("actor", "critic", "total")},
        "clean": _summary(cell, cell.clean, settings),
        "attacks": attacks,
        "worst": worst,
        "gap": float(cell.values(cell.clean).mean()) - worst["mean"],
        "regret": {field: _regret(cell, dense, cells, field, settings) for field in ("returns", "discounted")},
        "certificate": _certificate(agents, level, cells, settings, store) if mode == "stochastic" else None,
        "actions": _actions(agents, level, cells, settings, store) if mode == "deterministic" else None,
    }


def _certificate(
    agents: Sequence[Agent], level: float, cells: Mapping[float, Cell], settings: Settings, store: Store
) -> dict[str, Any]:
    key = _key("certificate", agents, (level, min(cells)), cells, settings)
    return store.record(key, lambda: certified_record(agents, level, cells, settings))


def _actions(
    agents: Sequence[Agent], level: float, cells: Mapping[float, Cell], settings: Settings, store: Store
) -> dict[str, Any]:
    key = _key("actions", agents, (level,), cells, settings)
    return store.record(key, lambda: actions_record(agents, level, cells[level], settings))


def _key(
    what: str, agents: Sequence[Agent], levels: Sequence[float], cells: Mapping[float, Cell], settings: Settings
) -> dict[str, Any]:
    return {
        what: list(levels),
        "agents": [[agent.name, *(victim_key(agent.policies[one], agent.venv) for one in levels)] for agent in agents],
        "episodes": [cells[one].key() for one in levels],
        "settings": asdict(settings),
        "versions": versions(),
    }


def _worst(cell: Cell, level: float, settings: Settings) -> dict[str, Any]:
    """The minimum over the attacks, for each agent by itself; the mean over agents of that."""
    candidate, by_agent = cell.candidate(level), cell.worst_attacks(list(cell.attacked))
    interval = mean_interval(candidate.worst_values, settings.confidence)
    return {
        "attack": candidate.worst_attack,
        "by_agent": by_agent,
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
    }


def _attack_record(cell: Cell, name: str, settings: Settings) -> dict[str, Any]:
    learned = name in settings.learned
    budget = asdict(budget_of(name, settings.attack_budget)) if learned else None
    cost = [asdict(one) for one in cell.costs.get(name, [])] or None
    common = {"learned": learned, "budget": budget, "cost": cost, "nothing_found": cell.nothing_found.get(name)}
    if name in cell.skipped:
        return {"not_attacked": cell.skipped[name], **common}
    return {**_summary(cell, cell.attacked[name], settings), **common}


def _summary(cell: Cell, episodes: list[Episodes], settings: Settings) -> dict[str, Any]:
    return {
        **asdict(mean_interval(cell.values(episodes), settings.confidence)),
        "discounted": asdict(mean_interval(cell.values(episodes, "discounted"), settings.confidence)),
        "perturbed": float(np.mean([one.perturbed for one in episodes])),
        "episodes": {
            "returns": [one.returns for one in episodes],
            "discounted": [one.discounted for one in episodes],
            "lengths": [one.lengths for one in episodes],
            "terminated": [one.terminated for one in episodes],
        },
    }


def _regret(cell: Cell, dense: Cell, cells: Mapping[float, Cell], field: str, settings: Settings) -> dict[str, Any]:
    """The three measured terms: best clean - dense, dense - pruned, pruned clean - pruned worst; and the robustness gain."""
    level = settings.confidence
    here, base = cell.candidate(1.0, field), dense.candidate(0.0, field)
    best = max(float(one.values(one.clean, field).mean()) for one in cells.values())
    return {
        "clean_task": best - float(base.clean.mean()),
        "pruning_loss": asdict(t_interval(base.clean - here.clean, level)),
        "robustness": asdict(t_interval(here.clean - here.worst_values, level)),
        "robustness_gain": None if cell is dense else asdict(paired_gain(here, base, (-1.0, 1.0), level)),
        "worst_attack": here.worst_attack,
    }


__all__ = [
    "MODES",
    "NORMS",
    "NO_RANGE",
    "Agent",
    "Cell",
    "Settings",
    "fitting_total",
    "frontier",
    "n_rollouts",
    "pruned_copies",
]
