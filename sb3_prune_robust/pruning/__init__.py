"""Pruning: scores rank weights, distributions share a sparsity over layers, schedules say when; the callback applies them."""

from sb3_prune_robust.pruning.callback import PruneEvent, PruningCallback
from sb3_prune_robust.pruning.prune import prune_policy, sparsity
from sb3_prune_robust.pruning.registry import SCORES
from sb3_prune_robust.pruning.robust_scores import DivergenceScore, PathScore, RadiusScore
from sb3_prune_robust.pruning.scores import MagnitudeScore, MovementScore, RandomScore, SaliencyScore, Score, UnitScore

__all__ = [
    "SCORES",
    "DivergenceScore",
    "MagnitudeScore",
    "MovementScore",
    "PathScore",
    "PruneEvent",
    "PruningCallback",
    "RadiusScore",
    "RandomScore",
    "SaliencyScore",
    "Score",
    "UnitScore",
    "prune_policy",
    "sparsity",
]
