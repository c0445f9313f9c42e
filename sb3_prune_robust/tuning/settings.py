"""What ``sb3-prune-robust tune`` was asked for, checked before anything is trained."""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rl_zoo3.utils import ALGOS

from sb3_prune_robust.attacks.registry import ATTACKS, is_fitted_attack, is_known
from sb3_prune_robust.evaluation.loading import make_single
from sb3_prune_robust.hyperparams import ALGORITHMS, load  # type: ignore[import-not-found, unused-ignore]
from sb3_prune_robust.pruning.schedules import SCHEDULES, check_sparsity
from sb3_prune_robust.tuning.algorithms import register_algorithms
from sb3_prune_robust.tuning.entries import parameter_of
from sb3_prune_robust.tuning.space import DEFAULT_SPARSITIES

# Seeds of the evaluation's episodes: far from those of training, below those that attacks are fitted on.
FIRST_SEED = 2**29


@dataclass(frozen=True)
class TuneSettings:
    """
    What is tuned, and what for. Trials are compared by ``(1 - weight) * clean + weight * attacked``, both mean raw returns
    (sums of the environment's own rewards) of deterministic actions on the same fixed episodes.

    :param algo: RL Zoo's name of the algorithm
    :param env: gymnasium id
    :param eps: l_inf radius of the attack, in units of what the policy receives
    :param attack: name of an attack that does not learn
    :param weight: of the attacked return, in [0, 1]; with 0 no attack is carried out
    :param timesteps: of each trial; ``None``: the entry's
    :param n_episodes: of each evaluation, clean and attacked alike
    :param sparsities: smallest and largest final sparsity tried
    :param schedules: pruning schedules to choose from
    :param conf_file: a YAML file with the entry to start from; ``None``: the package's own
    :raises ValueError: naming the argument that is wrong
    """

    algo: str
    env: str
    eps: float
    attack: str = "mad"
    weight: float = 0.5
    timesteps: int | None = None
    n_episodes: int = 20
    sparsities: tuple[float, float] = DEFAULT_SPARSITIES
    schedules: tuple[str, ...] = tuple(SCHEDULES)
    conf_file: str | None = None

    def __post_init__(self) -> None:
        register_algorithms()
        self._check_entry()
        self._check_attack()
        self._check_space()
        for name, value in (("timesteps", self.timesteps), ("episodes", self.n_episodes)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        make_single(self.env).close()

    @functools.cached_property
    def entry(self) -> dict[str, Any]:
        """The entry to start from, with the timesteps of a trial, and SB3's learning rate where it says none."""
        rate = parameter_of(ALGOS[self.algo], "learning_rate")
        assert rate is not None
        entry = {"learning_rate": rate.default, **self._entries()[self.env]}
        return entry if self.timesteps is None else {**entry, "n_timesteps": self.timesteps}

    def identity(self) -> dict[str, Any]:
        """What trials must share to be compared: the settings with the entry written out, as JSON holds it."""
        settings = {**asdict(self), "sparsities": list(self.sparsities), "schedules": list(self.schedules)}
        return {**settings, "entry": self.entry, "conf_file": None}

    def _entries(self) -> dict[str, Any]:
        if self.conf_file is None:
            return load(self.algo)
        path = Path(self.conf_file)
        try:
            entries = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"conf-file {path} could not be read: {error}") from error
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise ValueError(f"conf-file {path} is not a file of entries by environment id")
        return entries

    def _check_entry(self) -> None:
        if self.algo not in ALGORITHMS:
            raise ValueError(f"algo {self.algo!r} is unknown; known: {', '.join(ALGORITHMS)}")
        entries = self._entries()
        if self.env not in entries:
            raise ValueError(f"env {self.env!r} has no entry for {self.algo}; those that have: {', '.join(entries)}")

    def _check_attack(self) -> None:
        if not is_known(self.attack) or is_fitted_attack(self.attack):
            what = "learns on its victim for minutes, in every trial" if is_known(self.attack) else "is unknown"
            known = ", ".join(name for name in ATTACKS if not is_fitted_attack(name))
            raise ValueError(f"attack {self.attack!r} {what}; choose one of {known}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {self.eps!r}")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], got {self.weight!r}")

    def _check_space(self) -> None:
        for sparsity in self.sparsities:
            check_sparsity(sparsity, "sparsities")
        if len(self.sparsities) != 2 or self.sparsities[0] > self.sparsities[1]:
            raise ValueError(f"sparsities must be the smallest and the largest, got {list(self.sparsities)}")
        unknown = [name for name in self.schedules if name not in SCHEDULES]
        if unknown or not self.schedules or len(set(self.schedules)) != len(self.schedules):
            what = f"{unknown[0]!r} is unknown" if unknown else "each at most once and at least one"
            raise ValueError(f"schedules: {what}; known: {', '.join(SCHEDULES)}")
