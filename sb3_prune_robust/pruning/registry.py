"""Scores by their names."""

from __future__ import annotations

from sb3_prune_robust.pruning.robust_scores import DivergenceScore, PathScore, RadiusScore
from sb3_prune_robust.pruning.scores import MagnitudeScore, MovementScore, RandomScore, SaliencyScore, Score, UnitScore

SCORES: dict[str, type[Score]] = {
    "magnitude": MagnitudeScore,
    "random": RandomScore,
    "unit": UnitScore,
    "saliency": SaliencyScore,
    "movement": MovementScore,
    "divergence": DivergenceScore,
    "path": PathScore,
    "radius": RadiusScore,
}


def make_score(scores: str | Score) -> Score:
    """
    :param scores: a name of :data:`SCORES`, or a score
    :return: the score
    :raises ValueError: for an unknown name
    """
    if isinstance(scores, Score):
        return scores
    if not isinstance(scores, str) or scores not in SCORES:
        raise ValueError(f"scores={scores!r} is unknown; known: {', '.join(SCORES)}, or a Score object")
    return SCORES[scores]()
