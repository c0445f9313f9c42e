"""Pruned, Lipschitz policies for Stable-Baselines3, with certified and measured robustness to attacks on observations."""

from importlib.metadata import version

from sb3_prune_robust.policies import LipschitzCategoricalPolicy, LipschitzGaussianPolicy
from sb3_prune_robust.pruning import PruningCallback, sparsity

__version__ = version("sb3-prune-robust")

__all__ = [
    "LipschitzCategoricalPolicy",
    "LipschitzGaussianPolicy",
    "PruningCallback",
    "__version__",
    "sparsity",
]
