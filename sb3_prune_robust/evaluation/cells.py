"""The cells of an evaluation over sparsities: the episodes of each agent at one sparsity in one mode, clean and attacked."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

from sb3_prune_robust.attacks import Cost
from sb3_prune_robust.attacks.fitting import NothingToLearnError
from sb3_prune_robust.certificates.observations import read_noise
from sb3_prune_robust.evaluation.held_out import HeldOut, Watch, budget_of, size_of
from sb3_prune_robust.evaluation.rollouts import Episodes, NoAttackError
from sb3_prune_robust.evaluation.settings import Settings
from sb3_prune_robust.evaluation.store import Store
from sb3_prune_robust.evaluation.sweet_spots import Candidate, worst_names
from sb3_prune_robust.evaluation.tables import percent
from sb3_prune_robust.network import UnsupportedNetworkError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Agent:
    """
    One trained agent (one training seed) at several sparsities.

    :param name: its name in the report
    :param policies: the policy at each sparsity; the smallest sparsity is the dense agent
    :param venv: environments with this agent's own VecNormalize statistics, if any
    """

    name: str
    policies: Mapping[float, Any]
    venv: VecEnv


@dataclass(frozen=True)
class Cell:
    """
    One sparsity in one mode: the episodes of each agent, clean and under each attack (same seeds, same order).

    :param clean: without attack
    :param attacked: by attack, at ``eps``; for an agent on which it changed nothing or found nothing to learn, the clean ones
    :param skipped: attacks that changed nothing or found nothing to learn on any agent, and why
    :param nothing_found: by attack that did on some agents only, why it did not on each of the others
    :param costs: by attack that is learned, what fitting it on each agent took
    :param curve: by radius, under the attacks of :meth:`worst_attacks`; empty for agents that are not certified
    :param smoothed: without attack, the mode played on observations with noise added; empty unless asked for
    """

    clean: list[Episodes]
    attacked: dict[str, list[Episodes]]
    skipped: dict[str, str]
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    curve: dict[float, Attacked] = field(default_factory=dict)
    smoothed: list[Episodes] = field(default_factory=list)
    nothing_found: dict[str, dict[str, str]] = field(default_factory=dict)

    def values(self, episodes: list[Episodes], field: str = "returns") -> Array:
        """One value for each independent unit: each episode of a single agent, else the mean of each agent."""
        rows: Array = np.stack([getattr(one, field) for one in episodes])
        return rows[0] if len(rows) == 1 else rows.mean(axis=1)

    def candidate(self, value: float, field: str = "returns") -> Candidate:
        """What chooses among sparsities; of several agents, each has a worst attack of its own."""
        attacked = {name: self.values(episodes, field) for name, episodes in self.attacked.items()}
        return Candidate(value, self.values(self.clean, field), attacked, of_agents=len(self.clean) > 1)

    def worst_attacks(self, among: Sequence[str]) -> list[str]:
        """For each agent, the attack under which its own mean return is lowest."""
        return worst_names({name: np.array([one.returns.mean() for one in self.attacked[name]]) for name in among})

    def key(self) -> list[Any]:
        """Its returns, which tell it from others of the same agents and settings."""
        attacked = list(self.attacked.items())
        curve = [(radius, one.attacks, one.episodes) for radius, one in self.curve.items()]
        return [_returns(part) for part in (self.clean, attacked, curve, self.smoothed)]


def _returns(part: Any) -> Any:
    if isinstance(part, Episodes):
        return part.returns
    return [_returns(one) for one in part] if isinstance(part, (list, tuple)) else part


@dataclass(frozen=True)
class Attacked:
    """
    Episodes of each agent, each under an attack of its own.

    :param attacks: names, one for each agent
    :param episodes: likewise
    """

    attacks: list[str]
    episodes: list[Episodes]


def n_rollouts(agents: Sequence[Agent], settings: Settings) -> int:
    """Number of episodes that :func:`frontier` plays, for a progress bar."""
    cells = len(settings.modes) * (1 + len(settings.attacks)) + _n_curve(agents, settings)
    return sum(len(agent.policies) for agent in agents) * cells * settings.n_episodes


def fitting_total(agents: Sequence[Agent], settings: Settings) -> float:
    """The budgets of all fits of :func:`frontier` together, for a progress bar."""
    if settings.eps == 0:
        return 0.0
    sizes = [size_of(budget_of(name, settings.attack_budget)) for name in settings.learned]
    return sum(len(agent.policies) for agent in agents) * len(settings.modes) * sum(sizes)


def _n_curve(agents: Sequence[Agent], settings: Settings) -> int:
    """Further cells of the stochastic mode, where returns are certified: attacked at the other radii, and smoothed."""
    if why_not_certified(agents, settings) is not None:
        return 0
    attacked = len(settings.radii) - 1 if len(settings.learned) < len(settings.attacks) else 0
    return attacked + (settings.smoothing_std is not None)


def why_not_certified(agents: Sequence[Agent], settings: Settings) -> str | None:
    """
    Why no return is certified.

    :param agents: the agents; their sparsities make no difference
    :param settings: the settings
    :return: the reason, ``None`` where returns are certified
    """
    try:
        for agent in agents:
            read_noise(agent.policies[min(agent.policies)])
    except UnsupportedNetworkError as error:
        return str(error)
    return settings.not_certified


def _held_out(agent: Agent, level: float, settings: Settings, mode: str, watch: Watch, store: Store) -> HeldOut:
    rewards = settings.rewards
    limits = (-math.inf if rewards.low is None else rewards.low, math.inf if rewards.high is None else rewards.high)
    if rewards.clipped:  # the environment's own rewards may be anything
        limits = (-math.inf, math.inf)
    return HeldOut(
        agent.policies[level],
        agent.venv,
        settings.n_episodes,
        mode == "deterministic",
        settings.seed,
        settings.gamma,
        limits,
        settings.attack_budget,
        store,
        watch,
        f"{agent.name} at {percent(level)}, {mode}",
    )


def play_cell(agents: Sequence[Agent], level: float, settings: Settings, mode: str, watch: Watch, store: Store) -> Cell:
    """
    Play, or take from the store, all that is measured at one sparsity in one mode; learned attacks are fitted on the way.

    :param agents: the agents
    :param level: the sparsity
    :param settings: what to measure
    :param mode: ``"stochastic"`` or ``"deterministic"``
    :param watch: who is told of progress
    :param store: where finished pieces are kept
    :raises NoAttackError: if no attack changed any observation of any agent; one that did not is in ``skipped``
    """
    held_out = [_held_out(agent, level, settings, mode, watch, store) for agent in agents]
    cell = Cell([one.clean(record=True).episodes for one in held_out], {}, {})
    for name in settings.attacks:
        _attack_all(cell, name, agents, held_out, settings)
    if not cell.attacked:
        raise NoAttackError(f"at sparsity {level} no attack changed any observation: {'; '.join(cell.skipped.values())}")
    if mode == "stochastic" and why_not_certified(agents, settings) is None:
        _play_for_certificates(cell, held_out, settings)
    return cell


def _attack_all(cell: Cell, name: str, agents: Sequence[Agent], held_out: Sequence[HeldOut], settings: Settings) -> None:
    """
    Each agent under an attack.

    One on which it finds nothing keeps its clean return under it, and is named in the report. Left out with all the others,
    the minimum would be over other attacks at one sparsity than at another.
    """
    episodes, costs, nothing = list(cell.clean), [], {}
    for i, (agent, one) in enumerate(zip(agents, held_out, strict=True)):
        try:
            played = one.named(name, settings.eps, settings.norm)
        except (NoAttackError, NothingToLearnError) as error:
            nothing[agent.name] = str(error)
            continue
        episodes[i] = played.episodes
        costs += [] if played.cost is None else [played.cost]
    if len(nothing) == len(agents):
        cell.skipped[name] = next(iter(nothing.values()))
        return
    cell.attacked[name], cell.costs[name] = episodes, costs
    if nothing:
        cell.nothing_found[name] = nothing


def _play_for_certificates(cell: Cell, held_out: Sequence[HeldOut], settings: Settings) -> None:
    """
    What certified returns are compared with: attacked at the other radii, and policy smoothing.

    At the other radii the attack is the worst of those that need not be learned: a learned one knows its own radius only.
    """
    unlearned = [name for name in cell.attacked if name not in settings.learned]
    for radius in settings.radii:
        if radius == settings.eps:
            worst = cell.worst_attacks(list(cell.attacked))
            cell.curve[radius] = Attacked(worst, [cell.attacked[name][i] for i, name in enumerate(worst)])
        elif unlearned:
            worst = cell.worst_attacks(unlearned)
            with contextlib.suppress(NoAttackError):  # below float32's resolution: no number is reported for this radius
                played = [one.named(name, radius, settings.norm) for one, name in zip(held_out, worst, strict=True)]
                cell.curve[radius] = Attacked(worst, [one.episodes for one in played])
    if settings.smoothing_std is not None:
        cell.smoothed.extend(one.smoothed(settings.smoothing_std) for one in held_out)
