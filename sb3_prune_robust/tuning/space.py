"""The search space: what is tuned, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sb3_prune_robust.pruning.distributions import DISTRIBUTIONS
from sb3_prune_robust.pruning.schedules import SCHEDULES
from sb3_prune_robust.tuning.entries import Entry, lipschitz_of, pruning_arguments

LIPSCHITZ_FACTORS = (0.05, 5.0)  # from [1, 100] around the policies' default of 20
LEARNING_RATE_FACTOR = 5.0
KAPPA_FACTOR = 10.0
DEFAULT_SPARSITIES = (0.5, 0.95)


@dataclass(frozen=True)
class Space:
    """
    Where to search for the package's own hyperparameters.

    :param lipschitz: the bound of the entry: ``lipschitz``, log-uniform between a twentieth of it and five times it;
        ``None``: it has none, and none is tried
    :param has_pruning: there is a pruning callback: ``final_sparsity``, ``schedule``, ``distribution``
    :param sparsities: smallest and largest final sparsity
    :param schedules: names of schedules to choose from
    """

    lipschitz: float | None
    has_pruning: bool
    sparsities: tuple[float, float] = DEFAULT_SPARSITIES
    schedules: tuple[str, ...] = tuple(SCHEDULES)

    def __post_init__(self) -> None:
        if not self.has_pruning and (self.sparsities, self.schedules) != (DEFAULT_SPARSITIES, tuple(SCHEDULES)):
            raise ValueError(
                f"sparsities={self.sparsities} and schedules={self.schedules} are tuned of a PruningCallback, which the entry "
                "does not have"
            )

    def suggest(self, trial: Any) -> dict[str, Any]:
        """
        Values for a trial.

        :param trial: an Optuna trial
        :return: by name, those of :data:`~.entries.OURS` that the entry has
        """
        values: dict[str, Any] = {}
        if self.lipschitz is not None:
            low, high = (factor * self.lipschitz for factor in LIPSCHITZ_FACTORS)
            values["lipschitz"] = trial.suggest_float("lipschitz", low, high, log=True)
        if self.has_pruning:
            values["final_sparsity"] = trial.suggest_float("final_sparsity", *self.sparsities)
            values["schedule"] = trial.suggest_categorical("schedule", self.schedules)
            values["distribution"] = trial.suggest_categorical("distribution", tuple(DISTRIBUTIONS))
        return values


def space_of(entry: Mapping[str, Any], callbacks: Any, **limits: Any) -> Space:
    """
    The space for a policy and its callbacks.

    :param entry: with ``policy`` and, if there are any, ``policy_kwargs``
    :param callbacks: the entry's ``callback:``
    :param limits: other arguments of :class:`Space`
    """
    lipschitz = lipschitz_of(entry["policy"], entry.get("policy_kwargs"))
    return Space(lipschitz, pruning_arguments(callbacks) is not None, **limits)


def suggest_learning_rate(trial: Any, entry: Entry) -> None:
    """
    A learning rate between a fifth of the entry's and five times it, log-uniform.

    :param trial: an Optuna trial
    :param entry: the entry
    """
    base = split_rate(entry["learning_rate"])[1]
    trial.suggest_float("learning_rate", base / LEARNING_RATE_FACTOR, base * LEARNING_RATE_FACTOR, log=True)


def suggest_kappa(trial: Any, entry: Entry) -> None:
    """
    The weight of a robust algorithm's term, between a tenth of the entry's and ten times it, log-uniform; none where the entry
    has none.

    :param trial: an Optuna trial
    :param entry: the entry
    """
    if base := entry.get("kappa"):
        trial.suggest_float("kappa", base / KAPPA_FACTOR, base * KAPPA_FACTOR, log=True)


def split_rate(rate: float | str) -> tuple[str, float]:
    """``("lin", 0.001)`` of ``"lin_0.001"``, ``("", 0.001)`` of ``0.001``."""
    if isinstance(rate, str):
        kind, _, value = rate.partition("_")
        return kind, float(value)
    return "", float(rate)


def rate_like(rate: float | str, value: float) -> float | str:
    """
    A learning rate as an entry writes it: linear to zero where the entry's is.

    :param rate: the entry's
    :param value: the new one
    """
    kind, _ = split_rate(rate)
    return f"{kind}_{value!r}" if kind else value


def baseline(entry: Entry, space: Space) -> dict[str, Any]:
    """
    The entry itself as a trial's parameters, moved into the space where it lies outside: what a study tries first.

    :param entry: the entry
    :param space: its space
    :return: by name; what has no value in the space (another schedule, say) is left to the sampler
    """
    params: dict[str, Any] = {}
    pruning = pruning_arguments(entry.get("callback")) or {}
    if space.lipschitz is not None:
        params["lipschitz"] = float(space.lipschitz)
    if isinstance(pruning.get("final_sparsity"), int | float):
        params["final_sparsity"] = _within(pruning["final_sparsity"], space.sparsities)
    for name, choices in (("schedule", space.schedules), ("distribution", tuple(DISTRIBUTIONS))):
        if pruning.get(name) in choices:
            params[name] = pruning[name]
    if entry.get("kappa"):
        params["kappa"] = float(entry["kappa"])
    return {**params, "learning_rate": split_rate(entry["learning_rate"])[1]}


def _within(value: float, limits: tuple[float, float]) -> float:
    return min(max(float(value), limits[0]), limits[1])
