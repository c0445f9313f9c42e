"""Certificates: bounds on divergences of action distributions, on returns, and on regret."""

from sb3_prune_robust.certificates.certify import Certificate, StateBounds, certify
from sb3_prune_robust.certificates.confidence import MeanBound, lower_mean, upper_mean
from sb3_prune_robust.certificates.difference import PolicyDifference, policy_difference
from sb3_prune_robust.certificates.regret import (
    CertifiedGain,
    CertifiedRegret,
    RegretTerms,
    attacked_loss_bound,
    certified_gain,
    regret_terms,
    robustness_gain,
)
from sb3_prune_robust.certificates.returns import (
    LossBound,
    capped_tv,
    loss_bound,
    return_lower_bound,
    visitation_tv,
)
from sb3_prune_robust.certificates.rewards import RewardRange, check_rewards, reward_range

__all__ = [
    "Certificate",
    "CertifiedGain",
    "CertifiedRegret",
    "LossBound",
    "MeanBound",
    "PolicyDifference",
    "RegretTerms",
    "RewardRange",
    "StateBounds",
    "attacked_loss_bound",
    "capped_tv",
    "certified_gain",
    "certify",
    "check_rewards",
    "loss_bound",
    "lower_mean",
    "policy_difference",
    "regret_terms",
    "return_lower_bound",
    "reward_range",
    "robustness_gain",
    "upper_mean",
    "visitation_tv",
]
