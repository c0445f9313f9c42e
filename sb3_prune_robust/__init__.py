"""Pruned, Lipschitz policies for Stable-Baselines3, with certified and measured robustness to attacks on observations."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from sb3_prune_robust.attacks import AdversarialVecEnv
from sb3_prune_robust.certificates import certify
from sb3_prune_robust.evaluation.return_certificate import certify_return
from sb3_prune_robust.evaluation.worst_case import worst_case
from sb3_prune_robust.policies import (
    LipschitzCategoricalPolicy,
    LipschitzDQNPolicy,
    LipschitzGaussianPolicy,
    LipschitzMaskableCategoricalPolicy,
    LipschitzSACPolicy,
    LipschitzTD3Policy,
)
from sb3_prune_robust.pruning import PruningCallback, sparsity

__version__ = version("sb3-prune-robust")

# The YAML files are part of the package where it is installed. In a checkout they lie beside it, and `python -m
# sb3_prune_robust` typed there imports the checkout: they are to be found then, too.
if find_spec("sb3_prune_robust.hyperparams") is None:
    __path__.append(str(Path(__file__).parents[1]))

__all__ = [
    "AdversarialVecEnv",
    "LipschitzCategoricalPolicy",
    "LipschitzDQNPolicy",
    "LipschitzGaussianPolicy",
    "LipschitzMaskableCategoricalPolicy",
    "LipschitzSACPolicy",
    "LipschitzTD3Policy",
    "PruningCallback",
    "__version__",
    "certify",
    "certify_return",
    "sparsity",
    "worst_case",
]
