"""One cell of a study's grid: an agent, by what it was trained in, by, and pruned how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: scores, distribution and schedule of an agent that is not pruned
NONE = "none"


@dataclass(frozen=True)
class Cell:
    """
    One agent.

    :param env: environment id
    :param algorithm: RL Zoo's name
    :param policy: a name of the study's policies
    :param scores: of pruning; :data:`NONE` at sparsity 0, likewise the next two
    :param distribution: of the zeros over layers
    :param schedule: of pruning
    :param sparsity: at the end of training; 0: the dense agent, the pair of all pruned ones of its seed
    :param seed: of training
    """

    env: str
    algorithm: str
    policy: str
    scores: str
    distribution: str
    schedule: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """For people and for names of files."""
        pruning = f"{self.scores}-{self.distribution}-{self.schedule}-{self.sparsity:g}" if self.sparsity else "dense"
        return f"{self.env.replace('/', '_')}-{self.algorithm}-{self.policy}-{pruning}-seed{self.seed}"

    @property
    def variant(self) -> tuple[str, ...]:
        """Environment, algorithm, policy and way of pruning: what all sparsities and seeds of a comparison share."""
        return (self.env, self.algorithm, self.policy, self.scores, self.distribution, self.schedule)

    def axes(self) -> dict[str, Any]:
        """Its axes by name, as a record holds them."""
        return asdict(self)
