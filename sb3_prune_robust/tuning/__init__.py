"""Tuning with Optuna: by RL Zoo's ``-optimize``, and by ``sb3-prune-robust tune``, which weighs clean and attacked return."""

from sb3_prune_robust.tuning.algorithms import register_algorithms
from sb3_prune_robust.tuning.settings import TuneSettings
from sb3_prune_robust.tuning.zoo_route import register

__all__ = ["TuneSettings", "register", "register_algorithms"]
