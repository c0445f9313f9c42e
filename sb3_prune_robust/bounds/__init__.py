"""Bounds on how far a network's output moves when its input moves within a ball: sound in floating point, rounded outward."""

from sb3_prune_robust.bounds.absolute import absolute_path_product, path_norm, path_radius
from sb3_prune_robust.bounds.action import METHODS, ActionChange
from sb3_prune_robust.bounds.ball import NORMS, Ball
from sb3_prune_robust.bounds.interval import interval_radius, output_interval
from sb3_prune_robust.bounds.spectral import spectral_norm

__all__ = [
    "METHODS",
    "NORMS",
    "ActionChange",
    "Ball",
    "absolute_path_product",
    "interval_radius",
    "output_interval",
    "path_norm",
    "path_radius",
    "spectral_norm",
]
