"""What a study compares, read from a YAML file and checked before anything runs."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from gymnasium import spaces
from rl_zoo3.utils import ALGOS

from sb3_prune_robust.attacks import Budget
from sb3_prune_robust.defences import ALGORITHMS as DEFENCES
from sb3_prune_robust.evaluation.held_out import check_attacks
from sb3_prune_robust.evaluation.loading import make_single
from sb3_prune_robust.pruning.distributions import DISTRIBUTIONS
from sb3_prune_robust.pruning.registry import SCORES
from sb3_prune_robust.pruning.schedules import SCHEDULES
from sb3_prune_robust.study.cells import NONE, Cell
from sb3_prune_robust.tuning.algorithms import register_algorithms

_SECTIONS = ("name", "description", "environments", "algorithms", "policies", "grid", "evaluation", "strong", "confidence")
_DEFAULTS: dict[str, list[Any]] = {
    "algorithms": ["ppo"],
    "policies": ["plain"],
    "scores": ["magnitude"],
    "distributions": ["erk"],
    "schedules": ["polynomial"],
}
_AXES = ("environments", *_DEFAULTS, "sparsities", "seeds")


@dataclass(frozen=True)
class Environment:
    """
    How agents are trained and attacked in one environment.

    :param entry: hyperparameters as RL Zoo's YAML files hold them, without policy and callback
    :param eps: radii of attacks and certificates, in units of what the network receives; the first is that of robust training
        and of comparisons over environments
    :param clip_rewards: range to which rewards are clipped for the certified return; ``None``: where a range is proved
    """

    entry: Mapping[str, Any]
    eps: tuple[float, ...]
    clip_rewards: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.eps or not all(_is_number(one) and one > 0 for one in self.eps) or len(set(self.eps)) < len(self.eps):
            raise ValueError(f"eps must be one or more positive numbers, each once, got {list(self.eps)!r}")
        clip = self.clip_rewards
        if clip is not None and not (
            isinstance(clip, tuple) and len(clip) == 2 and all(map(_is_number, clip)) and clip[0] < clip[1]
        ):
            raise ValueError(f"clip_rewards must be two numbers, the smaller first, got {clip!r}")
        _check_mapping("entry", self.entry)
        _check_entry("entry", self.entry, ("policy", "callback"))
        if "n_timesteps" not in self.entry:
            raise ValueError("entry: n_timesteps is missing")


@dataclass(frozen=True)
class Attacks:
    """
    Which attacks an agent meets, and what those that learn may take.

    :param attacks: names of attacks and suites
    :param n_episodes: held-out episodes for each attack
    :param attack_seconds: CPU seconds for each attack that learns; ``None``: no limit of seconds
    :param attack_steps: environment steps for each, which is reproducible; ``None``: no limit of steps
    """

    attacks: tuple[str, ...]
    n_episodes: int = 50
    attack_seconds: float | None = None
    attack_steps: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.attacks, tuple) or not all(isinstance(name, str) for name in self.attacks):
            raise ValueError(f"attacks must be a list of names, got {self.attacks!r}")
        check_attacks(self.attacks)
        _check_whole("n_episodes", self.n_episodes, 1)
        if self.attack_steps is not None:
            _check_whole("attack_steps", self.attack_steps, 1)
        if self.attack_seconds is not None and not _is_number(self.attack_seconds):
            raise ValueError(f"attack_seconds must be a number, got {self.attack_seconds!r}")
        self.budget  # noqa: B018  refuses what is no budget

    @property
    def budget(self) -> Budget | None:
        """Of each attack that learns; ``None``: the default of its class."""
        if self.attack_seconds is None and self.attack_steps is None:
            return None
        return Budget(self.attack_steps, self.attack_seconds)


@dataclass(frozen=True)
class Evaluation(Attacks):
    """
    How every agent is measured: attacks, and certificates.

    :param norm: ``"linf"`` or ``"l2"``
    :param n_certified: episodes that certify a return, and a quarter as many that choose before
    :param n_states: visited states at which the action distribution is certified
    """

    norm: str = "linf"
    n_certified: int = 100
    n_states: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm must be 'linf' or 'l2', got {self.norm!r}")
        _check_whole("n_certified", self.n_certified, 1)
        _check_whole("n_states", self.n_states, 1)


@dataclass(frozen=True)
class Study:
    """
    A study.

    :param name: its name
    :param environments: by id
    :param algorithms: by RL Zoo's name, arguments over those of the environment's entry
    :param policies: by a name of your own, ``{"lipschitz": bound}`` for this package's, ``{}`` for SB3's
    :param cells: the grid, each cell once, in the order of work: blocks as the file has them, first seeds first
    :param evaluation: of every agent
    :param strong: of the dense agents and the candidates, on top; ``None``: none
    :param description: what it asks, Markdown
    :param confidence: level of the intervals
    """

    name: str
    environments: Mapping[str, Environment]
    algorithms: Mapping[str, Mapping[str, Any]]
    policies: Mapping[str, Mapping[str, Any]]
    cells: tuple[Cell, ...]
    evaluation: Evaluation
    strong: Attacks | None = None
    description: str = ""
    confidence: float = 0.95
    source: Mapping[str, Any] = field(default_factory=dict)

    def key(self, cell: Cell) -> dict[str, Any]:
        """All that the training of a cell depends on."""
        environment = self.environments[cell.env]
        eps = {"eps": environment.eps[0]} if cell.algorithm in DEFENCES else {}
        return {
            "cell": cell.axes(),
            "entry": dict(environment.entry),
            "algorithm": {**dict(self.algorithms[cell.algorithm]), **eps},
            "policy": dict(self.policies[cell.policy]),
        }

    def only(self, environments: Sequence[str]) -> Study:
        """
        The part of the study that is in some of its environments.

        :param environments: their ids
        :raises ValueError: if one is not the study's
        """
        _check_known("environments:", environments, self.environments)
        kept = {env: one for env, one in self.environments.items() if env in environments}
        return replace(self, environments=kept, cells=tuple(cell for cell in self.cells if cell.env in kept))


def read_study(path: str | Path) -> Study:
    """
    Read a study's YAML file.

    :param path: the file
    :raises ValueError: naming what is missing, unknown or out of range
    """
    try:
        found = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"study {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"study {path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return make_study(found)
    except (ValueError, TypeError) as error:
        raise ValueError(f"study {path}: {error}") from error


def make_study(found: Any) -> Study:
    """
    A study from what its YAML file holds.

    :param found: the mapping
    :raises ValueError: naming what is missing, unknown or out of range
    """
    register_algorithms()
    _check_mapping(f"the file, with {', '.join(_SECTIONS)},", found)
    _check_known("section", found, _SECTIONS)
    for section in ("name", "environments", "grid", "evaluation"):
        if not found.get(section):
            raise ValueError(f"{section} is missing")
    _check_mapping("environments", found["environments"])
    environments = {env: _environment(env, one) for env, one in found["environments"].items()}
    algorithms = _named("algorithms", found.get("algorithms", {"ppo": {}}))
    _check_known("algorithms", algorithms, ALGOS)
    for name, one in algorithms.items():
        _check_entry(f"algorithms: {name}", one, ("policy", "callback", *(["eps"] if name in DEFENCES else [])))
    policies = _named("policies", found.get("policies", {"plain": {}}))
    for name, one in policies.items():
        _check_known(f"policies: {name}: key", one, ("lipschitz",))
    if not isinstance(found["grid"], list):
        raise ValueError(f"grid must be a list of blocks, got {found['grid']!r}")
    known: dict[str, Mapping[str, Any]] = {"environments": environments, "algorithms": algorithms, "policies": policies}
    blocks = (sorted(_block(block, known), key=lambda cell: cell.seed) for block in found["grid"])
    cells = dict.fromkeys(cell for block in blocks for cell in block)
    return Study(
        str(found["name"]),
        environments,
        algorithms,
        policies,
        tuple(cells),
        _section("evaluation", Evaluation, found["evaluation"]),
        _section("strong", Attacks, found["strong"]) if found.get("strong") is not None else None,
        str(found.get("description", "")),
        _confidence(found.get("confidence", 0.95)),
        found,
    )


def check_environments(study: Study) -> None:
    """
    Make each environment once. Reading a study does not: to report what was measured elsewhere they need not be installed.

    :param study: the study
    :raises ValueError: if one is unknown, is not installed or has no Box of observations
    """
    for env in study.environments:
        one = make_single(env)
        one.close()
        if not isinstance(one.observation_space, spaces.Box):
            raise ValueError(
                f"environments: {env}: its observations are {one.observation_space}; only a Box can be attacked here"
            )


def _environment(env: str, given: Any) -> Environment:
    made: Environment = _section(f"environments: {env}", Environment, given)
    steps = made.entry["n_timesteps"]
    return replace(made, entry={**made.entry, "n_timesteps": int(steps)}, eps=tuple(map(float, made.eps)))


def _named(section: str, given: Any) -> dict[str, dict[str, Any]]:
    """A section of names of files, each with a mapping or nothing."""
    _check_mapping(section, given)
    for name, one in given.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.]+", name) or name == NONE:
            raise ValueError(f"{section}: each name must be of letters, digits, _ and ., and not {NONE!r}; got {name!r}")
        _check_mapping(f"{section}: {name}", one or {})
    return {name: dict(one or {}) for name, one in given.items()}


def _section(name: str, made: Any, given: Any) -> Any:
    """A dataclass from a section, its lists as tuples; an error says which section."""
    _check_mapping(name, given)
    _check_known(f"{name}: key", given, made.__dataclass_fields__)
    for field_ in fields(made):
        if field_.default is MISSING and field_.name not in given:
            raise ValueError(f"{name}: {field_.name} is missing")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    if "eps" in values and not isinstance(values["eps"], tuple):
        values["eps"] = (values["eps"],)
    try:
        return made(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _block(block: Any, known: Mapping[str, Any]) -> Iterator[Cell]:
    """The cells of one block of the grid: all combinations of its axes, but one dense agent for all ways of pruning."""
    _check_mapping(f"grid: each block, of {', '.join(_AXES)},", block)
    _check_known("grid: axis", block, _AXES)
    axes = {**{"environments": list(known["environments"])}, **_DEFAULTS, **block}
    _check_axes(axes, {**known, "scores": SCORES, "distributions": DISTRIBUTIONS, "schedules": SCHEDULES})
    for values in itertools.product(*(axes[axis] for axis in _AXES)):
        cell = replace(Cell(*values), sparsity=float(values[-2]))
        yield cell if cell.sparsity else replace(cell, scores=NONE, distribution=NONE, schedule=NONE)


def _check_axes(axes: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    for axis in _AXES:
        values = axes.get(axis)
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid: {axis} must be a list in each block, got {values!r}")
        if axis in names:
            _check_known(f"grid: {axis}:", map(str, values), names[axis])
    for sparsity in axes["sparsities"]:
        if not _is_number(sparsity) or not 0 <= sparsity < 1:
            raise ValueError(f"grid: every sparsity must lie in [0, 1), got {sparsity!r}")
    for seed in axes["seeds"]:
        _check_whole("grid: every seed", seed, 0)


def _confidence(given: Any) -> float:
    if not isinstance(given, float) or not 0.5 <= given < 1:
        raise ValueError(f"confidence must lie in [0.5, 1), got {given!r}")
    return given


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_mapping(what: str, given: Any) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} must be a mapping, got {given!r}")


def _check_entry(what: str, given: Mapping[str, Any], ours: Sequence[str]) -> None:
    """Hyperparameters, which the study adds to: what it sets itself cannot be given, and not be dropped in silence."""
    for name in set(ours) & set(given):
        raise ValueError(f"{what}: {name} is set by the study, so it must be left out; got {given[name]!r}")
    steps = given.get("n_timesteps", 1)
    if not _is_number(steps) or steps < 1 or steps != int(steps):
        raise ValueError(f"{what}: n_timesteps must be a positive whole number (1000000 or 1.0e+6), got {steps!r}")


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_known(what: str, given: Any, known: Any) -> None:
    for name in given:
        if name not in known:
            close = "".join(f", maybe you meant {one}" for one in difflib.get_close_matches(str(name), list(known), n=1))
            raise ValueError(f"{what} {name!r} is unknown{close}; known: {', '.join(known)}")
