"""Pruning: scores rank weights, distributions share a sparsity over layers, schedules say when; the callback applies them."""

from sb3_prune_robust.pruning.callback import PruneEvent, PruningCallback
from sb3_prune_robust.pruning.prune import prune_policy, sparsity
from sb3_prune_robust.pruning.scores import SCORES, MagnitudeScore, MovementScore, RandomScore, SaliencyScore, Score, UnitScore

__all__ = [
    "SCORES",
    "MagnitudeScore",
    "MovementScore",
    "PruneEvent",
    "PruningCallback",
    "RandomScore",
    "SaliencyScore",
    "Score",
    "UnitScore",
    "prune_policy",
    "sparsity",
]
