"""Bounds on how far a network's output moves when its input moves within a ball: sound in floating point, rounded outward."""

from sb3_prune_robust.bounds.absolute import absolute_path_product, path_norm, path_radius
from sb3_prune_robust.bounds.action import ActionChange
from sb3_prune_robust.bounds.ball import NORMS, Ball
from sb3_prune_robust.bounds.crown import LinearChange, linear_change
from sb3_prune_robust.bounds.exact import ExactChange, exact_change
from sb3_prune_robust.bounds.interval import interval_radius, output_interval
from sb3_prune_robust.bounds.methods import ALL_METHODS, GLOBAL_METHODS, METHODS
from sb3_prune_robust.bounds.spectral import spectral_norm

__all__ = [
    "ALL_METHODS",
    "GLOBAL_METHODS",
    "METHODS",
    "NORMS",
    "ActionChange",
    "Ball",
    "ExactChange",
    "LinearChange",
    "absolute_path_product",
    "exact_change",
    "interval_radius",
    "linear_change",
    "output_interval",
    "path_norm",
    "path_radius",
    "spectral_norm",
]
