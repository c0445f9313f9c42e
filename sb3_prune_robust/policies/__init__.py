"""Stable-Baselines3 policies whose action network keeps a Lipschitz bound and its pruned weights at zero."""

from sb3_prune_robust.policies.base import DEFAULT_ACTOR_LIPSCHITZ, DEFAULT_LIPSCHITZ
from sb3_prune_robust.policies.copying import copy_policy
from sb3_prune_robust.policies.off_policy import LipschitzDQNPolicy, LipschitzSACPolicy, LipschitzTD3Policy
from sb3_prune_robust.policies.on_policy import (
    LipschitzCategoricalPolicy,
    LipschitzGaussianPolicy,
    LipschitzMaskableCategoricalPolicy,
)

__all__ = [
    "DEFAULT_ACTOR_LIPSCHITZ",
    "DEFAULT_LIPSCHITZ",
    "LipschitzCategoricalPolicy",
    "LipschitzDQNPolicy",
    "LipschitzGaussianPolicy",
    "LipschitzMaskableCategoricalPolicy",
    "LipschitzSACPolicy",
    "LipschitzTD3Policy",
    "copy_policy",
]
