"""The sparsity frontier: what an agent returns, clean and attacked, and what is certified, at each sparsity."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

from sb3_prune_robust.attacks import ATTACKS, make_attack
from sb3_prune_robust.certificates import RewardRange
from sb3_prune_robust.evaluation.certified import certified_record
from sb3_prune_robust.evaluation.clean_play import ObservationNoise
from sb3_prune_robust.evaluation.rollouts import Episodes, NoAttackError, rollout
from sb3_prune_robust.evaluation.statistics import mean_interval, minimum_gain, t_interval
from sb3_prune_robust.evaluation.sweet_spots import Candidate, sweet_spots
from sb3_prune_robust.policies import copy_policy
from sb3_prune_robust.pruning import prune_policy, sparsity

Array = npt.NDArray[Any]

MODES = ("stochastic", "deterministic")
NORMS = ("linf", "l2")
_GRID = (1 / 256, 1 / 64, 1 / 16, 1 / 4)  # of eps: returns are certified at far smaller radii than attacks need
NO_RANGE = RewardRange(None, None, ends_early=True, reason="no range of the rewards was given")


@dataclass(frozen=True)
class Settings:
    """
    What is measured, and how.

    :param eps: radius of the ball around each observation, in units of what the network receives (after VecNormalize)
    :param norm: ``"linf"`` or ``"l2"``
    :param attacks: names of attacks
    :param n_episodes: episodes for each cell (agent, sparsity, attack, mode)
    :param modes: ``"stochastic"`` and/or ``"deterministic"``; certificates speak of the stochastic policy alone
    :param gamma: discount of the certificates and the discounted returns
    :param seed: seed of the first episode
    :param confidence: level of every interval
    :param rewards: their range, or why none is known: then no return is certified
    :param horizon: time limit in steps, ``None`` if there is none
    :param eps_grid: further radii, for certified against attacked returns over eps; empty: 1/256, 1/64, 1/16, 1/4 of ``eps``
    :param smoothing_std: noise on observations for policy smoothing, certified beside the policy's own noise; ``None``: left
        out
    :raises ValueError: for a value outside its range or an unknown name
    """

    eps: float
    norm: str = "linf"
    attacks: tuple[str, ...] = ("random", "fgsm", "mad", "critic")
    n_episodes: int = 50
    modes: tuple[str, ...] = MODES
    gamma: float = 0.99
    seed: int = 0
    confidence: float = 0.95
    rewards: RewardRange = NO_RANGE
    horizon: int | None = None
    eps_grid: tuple[float, ...] = ()
    smoothing_std: float | None = None

    @property
    def radii(self) -> tuple[float, ...]:
        """``eps`` and the radii of the grid, ascending; none if ``eps`` is 0."""
        grid = self.eps_grid or tuple(self.eps * share for share in _GRID)
        return tuple(sorted({*grid, self.eps})) if self.eps > 0 else ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must be a finite number of at least 0, got {self.eps!r}")
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r} is unknown; known: {', '.join(NORMS)}")
        _check_names("attacks", self.attacks, ATTACKS)
        _check_names("modes", self.modes, MODES)
        if self.n_episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.n_episodes!r}")
        if not 0 < self.gamma <= 1 or (self.gamma == 1 and self.horizon is None):
            raise ValueError(f"gamma must lie in (0, 1], and below 1 without a time limit; got {self.gamma!r}")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must lie in [0.5, 1), got {self.confidence!r}")
        if not all(math.isfinite(radius) and radius > 0 for radius in self.eps_grid):
            raise ValueError(f"eps_grid must hold positive finite numbers, got {self.eps_grid!r}")
        if self.smoothing_std is not None and not 0 < self.smoothing_std < math.inf:
            raise ValueError(f"smoothing_std must be positive and finite, got {self.smoothing_std!r}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed!r}")


def _check_names(argument: str, names: Sequence[str], known: Any) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) != len(names):
        what = f"{unknown[0]!r} is unknown" if unknown else f"each at most once and at least one, got {list(names)!r}"
        raise ValueError(f"{argument}: {what}; known: {', '.join(known)}")


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


def pruned_copies(model: Any, sparsities: Sequence[float], **kwargs: Any) -> dict[float, Any]:
    """
    Copies of a model's policy, pruned after the fact: each from the one before, so that the masks are nested.

    :param model: an SB3 model or policy; it is not changed
    :param sparsities: share of zeros in the pruned layers, each in [0, 1)
    :param kwargs: passed to :func:`~sb3_prune_robust.pruning.prune_policy`
    :return: the policy at each sparsity, ascending; sparsity 0, the agent as given, is always among them
    :raises ValueError: for a sparsity outside [0, 1)
    """
    for value in sparsities:
        if not 0 <= value < 1:
            raise ValueError(f"sparsities must lie in [0, 1), got {value!r}")
    previous = copy_policy(getattr(model, "policy", model))
    policies = {0.0: previous}
    for value in sorted(set(sparsities) - {0.0}):
        previous = copy_policy(previous)
        prune_policy(previous, value, **kwargs)
        policies[value] = previous
    return policies


@dataclass(frozen=True)
class Cell:
    """
    One sparsity in one mode: the episodes of each agent, clean and under each attack (same seeds, same order).

    :param clean: without attack
    :param attacked: by attack, at ``eps``
    :param skipped: attacks that changed nothing, and why
    :param curve: by radius, under the attack that is worst at ``eps``; empty for agents that are not certified
    :param smoothed: without attack, the mode played on observations with noise added; empty unless asked for
    """

    clean: list[Episodes]
    attacked: dict[str, list[Episodes]]
    skipped: dict[str, str]
    curve: dict[float, list[Episodes]] = field(default_factory=dict)
    smoothed: list[Episodes] = field(default_factory=list)

    def values(self, episodes: list[Episodes], field: str = "returns") -> Array:
        """One value for each independent unit: each episode of a single agent, else the mean of each agent."""
        rows: Array = np.stack([getattr(one, field) for one in episodes])
        return rows[0] if len(rows) == 1 else rows.mean(axis=1)

    def candidate(self, value: float, field: str = "returns") -> Candidate:
        attacked = {name: self.values(episodes, field) for name, episodes in self.attacked.items()}
        return Candidate(value, self.values(self.clean, field), attacked)


def n_rollouts(agents: Sequence[Agent], settings: Settings) -> int:
    """Number of episodes that :func:`frontier` plays, for a progress bar."""
    cells = len(settings.modes) * (1 + len(settings.attacks)) + _n_curve(settings)
    return sum(len(agent.policies) for agent in agents) * cells * settings.n_episodes


def _n_curve(settings: Settings) -> int:
    """Further cells of the stochastic mode, where returns are certified: attacked at the other radii, and smoothed."""
    if "stochastic" not in settings.modes or settings.rewards.low is None or not settings.radii:
        return 0
    return len(settings.radii) - 1 + (settings.smoothing_std is not None)


def frontier(agents: Sequence[Agent], settings: Settings, on_episode: Callable[[], None] | None = None) -> dict[str, Any]:
    """
    Measure and certify agents at each of their sparsities.

    :param agents: the same agent trained with one or several seeds, all with the same sparsities
    :param settings: what to measure
    :param on_episode: called after each episode
    :return: by mode, the record described in ``docs/report_schema.md`` under ``modes``
    :raises ValueError: if the agents' sparsities differ, or the smallest is not the same
    """
    levels = sorted(agents[0].policies)
    if any(sorted(agent.policies) != levels for agent in agents):
        raise ValueError("agents: all must come with the same sparsities")
    return {mode: _mode(agents, levels, settings, mode, on_episode) for mode in settings.modes}


def _mode(
    agents: Sequence[Agent], levels: Sequence[float], settings: Settings, mode: str, on_episode: Callable[[], None] | None
) -> dict[str, Any]:
    cells = {level: _cell(agents, level, settings, mode, on_episode) for level in levels}
    points = [_point(agents, level, cells, settings, mode) for level in levels]
    candidates = [cell.candidate(level) for level, cell in cells.items()]
    best = max(candidates, key=lambda candidate: float(candidate.clean.mean()))
    return {
        "points": points,
        "sweet_spots": [asdict(spot) for spot in sweet_spots(candidates, settings.confidence)],
        "best_clean": {"mean": float(best.clean.mean()), "sparsity": best.sparsity},
    }


def _cell(agents: Sequence[Agent], level: float, settings: Settings, mode: str, on_episode: Callable[[], None] | None) -> Cell:
    rewards = settings.rewards
    limits = (-math.inf if rewards.low is None else rewards.low, math.inf if rewards.high is None else rewards.high)
    if rewards.clipped:  # the environment's own rewards may be anything
        limits = (-math.inf, math.inf)

    def play(
        agent: Agent, attack: Any = None, record: bool = False, deterministic: bool = mode == "deterministic"
    ) -> Episodes:
        return rollout(
            agent.policies[level],
            agent.venv,
            settings.n_episodes,
            attack=attack,
            deterministic=deterministic,
            gamma=settings.gamma,
            seed=settings.seed,
            record=record,
            reward_range=limits,
            on_episode=on_episode,
        )

    clean = [play(agent, record=mode == "stochastic") for agent in agents]
    attacked: dict[str, list[Episodes]] = {}
    skipped: dict[str, str] = {}
    for name in settings.attacks:
        try:
            attacked[name] = [play(agent, _attack(name, settings, mode)) for agent in agents]
        except NoAttackError as error:
            skipped[name] = str(error)
    if not attacked:
        raise NoAttackError(f"at sparsity {level} no attack changed any observation: {'; '.join(skipped.values())}")
    cell = Cell(clean, attacked, skipped)
    if mode == "stochastic" and _n_curve(settings):
        _play_for_certificates(cell, agents, settings, play)
    return cell


def _play_for_certificates(cell: Cell, agents: Sequence[Agent], settings: Settings, play: Callable[..., Episodes]) -> None:
    """What certified returns are compared with: the attack that is worst at ``eps`` at the other radii, policy smoothing."""
    worst = cell.candidate(0.0).worst_attack
    for radius in settings.radii:
        attack = _attack(worst, replace(settings, eps=radius), "stochastic")
        with contextlib.suppress(NoAttackError):  # a radius below float32's resolution: no number is reported for it
            cell.curve[radius] = cell.attacked[worst] if radius == settings.eps else [play(agent, attack) for agent in agents]
    if settings.smoothing_std is not None:
        noise = [ObservationNoise(settings.smoothing_std, settings.seed) for _ in agents]
        cell.smoothed.extend(play(a, n, record=True, deterministic=True) for a, n in zip(agents, noise, strict=True))


def _attack(name: str, settings: Settings, mode: str) -> Any:
    return make_attack(name, settings.eps, norm=settings.norm, seed=settings.seed, deterministic=mode == "deterministic")


def _point(
    agents: Sequence[Agent], level: float, cells: Mapping[float, Cell], settings: Settings, mode: str
) -> dict[str, Any]:
    cell, dense = cells[level], cells[min(cells)]
    reached = [sparsity(agent.policies[level]) for agent in agents]
    attacks: dict[str, Any] = {name: _summary(cell, played, settings) for name, played in cell.attacked.items()}
    attacks.update({name: {"not_attacked": reason} for name, reason in cell.skipped.items()})
    worst = cell.candidate(level).worst_attack
    return {
        "sparsity": level,
        "reached": {key: float(np.mean([one[key] for one in reached])) for key in ("actor", "critic", "total")},
        "clean": _summary(cell, cell.clean, settings),
        "attacks": {name: attacks[name] for name in settings.attacks},
        "worst": {"attack": worst, **{key: attacks[worst][key] for key in ("mean", "low", "high")}},
        "gap": float(cell.values(cell.clean).mean()) - attacks[worst]["mean"],
        "regret": {field: _regret(cell, dense, cells, field, settings) for field in ("returns", "discounted")},
        "certificate": certified_record(agents, level, cells, settings) if mode == "stochastic" else None,
    }


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
    attacked, base_attacked = (np.stack(list(c.attacked.values())) for c in (here, base))
    gain = minimum_gain(here.clean, attacked, base.clean, base_attacked, (-1.0, 1.0), level)
    return {
        "clean_task": best - float(base.clean.mean()),
        "pruning_loss": asdict(t_interval(base.clean - here.clean, level)),
        "robustness": asdict(t_interval(here.clean - here.attacked[here.worst_attack], level)),
        "robustness_gain": None if cell is dense else asdict(gain),
        "worst_attack": here.worst_attack,
    }


def worst_case(
    model: Any,
    env: VecEnv,
    attacks: Sequence[Any] = ("random", "fgsm", "mad", "critic"),
    eps: float = 0.05,
    n_episodes: int = 50,
    *,
    norm: str = "linf",
    deterministic: bool = True,
    seed: int = 0,
) -> tuple[float, dict[str, Episodes]]:
    """
    The lowest mean return of a model over several attacks, on the same fixed episodes.

    :param model: an SB3 model or policy
    :param env: environments as the model was trained in, with VecNormalize where it was used, built on ``DummyVecEnv``
    :param attacks: names of attacks, or attack objects (whose own eps and norm then hold)
    :param eps: radius in units of the observation that the network receives; for the attacks given by name
    :param n_episodes: episodes for each attack
    :param norm: ``"linf"`` or ``"l2"``; for the attacks given by name
    :param deterministic: the mode of the policy's distribution rather than samples of it
    :param seed: seed of the first episode
    :return: the minimum over the attacks of the mean return, and the episodes of each attack by name
    :raises NoAttackError: if an attack with ``eps > 0`` changed no observation
    :raises ValueError: for an unknown attack, or none
    """
    if isinstance(attacks, str) or not len(attacks):
        raise ValueError(f"attacks must be a list of names or attacks, got {attacks!r}")
    _check_names("attacks", [attack for attack in attacks if isinstance(attack, str)] or ["random"], ATTACKS)
    results: dict[str, Episodes] = {}
    for attack in attacks:
        if isinstance(attack, str):
            name, attack = attack, make_attack(attack, eps, norm=norm, seed=seed, deterministic=deterministic)
        else:
            name = type(attack).__name__ + f"-{len(results)}"
        results[name] = rollout(model, env, n_episodes, attack=attack, deterministic=deterministic, seed=seed)
    return min(float(episodes.returns.mean()) for episodes in results.values()), results
