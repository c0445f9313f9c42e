"""Which sparsity is best, by three criteria, and whether the data say that it beats the dense agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.evaluation.statistics import Interval, minimum_gain

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Candidate:
    """
    What was measured at one sparsity.

    :param sparsity: the sparsity; the smallest of all candidates is the dense agent
    :param clean: clean returns, shape ``(n,)``: one for each episode, or one mean for each seed of the agent
    :param attacked: by name of attack, returns paired with ``clean``
    :param of_agents: the values are means of agents: the worst attack is then found for each agent by itself
    """

    sparsity: float
    clean: Array
    attacked: Mapping[str, Array]
    of_agents: bool = False

    @property
    def rows(self) -> Array:
        """
        What the minimum is over, shape ``(m, n)``: a row for each attack; of agents, the one row of their minima.

        A minimum of each agent is a value of that agent, independent of the others': nothing is chosen over agents.
        """
        rows = np.stack([self.attacked[name] for name in self.attacked])
        return rows.min(axis=0, keepdims=True) if self.of_agents else rows

    @property
    def worst_values(self) -> Array:
        """Returns under the worst attack, shape ``(n,)``: the attack with the lowest mean, or each agent's own."""
        rows = self.rows
        return np.asarray(rows[rows.mean(axis=1).argmin()])

    @property
    def worst_attack(self) -> str | None:
        """The attack with the lowest mean return; of agents, that of all of them, ``None`` if they differ."""
        means = {name: row if self.of_agents else row.mean(keepdims=True) for name, row in self.attacked.items()}
        names = set(worst_names(means))
        return names.pop() if len(names) == 1 else None

    @property
    def worst(self) -> float:
        """The lowest mean return over the attacks; of agents, the mean of the lowest of each."""
        return float(np.mean(self.worst_values))


def worst_names(means: Mapping[str, Array]) -> list[str]:
    """
    The worst attack of each agent: one for all if there is such, else the first with the lowest mean of each.

    :param means: by attack, the mean of each agent, shape ``(n,)``
    :return: ``n`` names
    """
    names, rows = list(means), np.stack(list(means.values()))
    common = np.flatnonzero((rows == rows.min(axis=0)).all(axis=1))
    return [names[i] for i in (np.full(rows.shape[1], common[0]) if len(common) else rows.argmin(axis=0))]


@dataclass(frozen=True)
class Criterion:
    """``clean_weight * clean + worst_weight * worst``, the larger the better, among those that keep enough clean return."""

    name: str
    description: str
    clean_weight: float
    worst_weight: float
    keep: float | None = None

    def value(self, candidate: Candidate) -> float:
        return self.clean_weight * float(np.mean(candidate.clean)) + self.worst_weight * candidate.worst

    def admits(self, candidate: Candidate, dense: Candidate) -> bool:
        if self.keep is None:
            return True
        return float(np.mean(candidate.clean)) >= clean_threshold(float(np.mean(dense.clean)), self.keep)


CRITERIA = (
    Criterion("mean", "highest mean of clean and worst return", 0.5, 0.5),
    Criterion("worst", "highest worst return", 0.0, 1.0),
    Criterion("gap", "smallest gap between clean and worst return, at 90 % of the dense clean return or more", -1.0, 1.0, 0.9),
)


def clean_threshold(dense_clean: float, keep: float = 0.9) -> float:
    """
    The clean return that counts as keeping a share of the dense agent's.

    ``dense - (1 - keep) |dense|``: for a negative return, ``keep * dense`` would ask for an improvement.

    :param dense_clean: mean clean return of the dense agent
    :param keep: the share to keep
    :return: the threshold
    """
    return dense_clean - (1 - keep) * abs(dense_clean)


@dataclass(frozen=True)
class SweetSpot:
    """
    :param criterion: name of the criterion
    :param description: what it asks for
    :param sparsity: the sparsity chosen
    :param value: the criterion there (for ``gap``: minus the gap)
    :param dense_value: the criterion of the dense agent
    :param gain: paired gain of the criterion over the dense agent, corrected for the choice; ``None`` when the dense one won
    :param worst_gain: paired gain in worst return over the dense agent, likewise
    :param supported: whether the interval of ``gain`` excludes 0
    """

    criterion: str
    description: str
    sparsity: float
    value: float
    dense_value: float
    gain: Interval | None
    worst_gain: Interval | None
    supported: bool


def sweet_spots(candidates: Sequence[Candidate], confidence: float = 0.95) -> list[SweetSpot]:
    """
    The best sparsity by each criterion. The dense agent (the smallest sparsity) is a candidate in each.

    The sparsity is chosen on the data that then judge it, so the intervals are corrected for the number of candidates
    (Bonferroni). Ties go to the smaller sparsity.

    :param candidates: what was measured at each sparsity
    :param confidence: level of the intervals of the gains, jointly over the candidates
    :return: one sweet spot for each criterion
    :raises ValueError: when there is no candidate
    """
    if not candidates:
        raise ValueError("candidates: none given")
    ordered = sorted(candidates, key=lambda candidate: candidate.sparsity)
    return [_sweet_spot(criterion, ordered, confidence) for criterion in CRITERIA]


def _sweet_spot(criterion: Criterion, ordered: Sequence[Candidate], confidence: float) -> SweetSpot:
    dense, pruned = ordered[0], ordered[1:]
    best = max((c for c in ordered if criterion.admits(c, dense)), key=criterion.value)
    gain = worst_gain = None
    if best is not dense:
        level = 1 - (1 - confidence) / len(pruned)
        gain = paired_gain(best, dense, (criterion.clean_weight, criterion.worst_weight), level)
        worst_gain = paired_gain(best, dense, (0.0, 1.0), level)
    supported = gain is not None and gain.low is not None and gain.low > 0
    return SweetSpot(
        criterion.name,
        criterion.description,
        best.sparsity,
        criterion.value(best),
        criterion.value(dense),
        gain,
        worst_gain,
        supported,
    )


def paired_gain(candidate: Candidate, dense: Candidate, weights: tuple[float, float], confidence: float) -> Interval:
    """
    Paired gain of ``v clean + w worst`` over the dense agent, corrected for the choice among attacks where there is one.

    :param candidate: what was measured
    :param dense: the same of the dense agent
    :param weights: ``(v, w)``
    :param confidence: level
    :return: the interval
    """
    return minimum_gain(candidate.clean, candidate.rows, dense.clean, dense.rows, weights, confidence)
