"""Certificates: bounds on divergences of action distributions, on returns, and on regret."""

from sb3_prune_robust.certificates.band import survival_band
from sb3_prune_robust.certificates.certify import Certificate, StateBounds, certify
from sb3_prune_robust.certificates.confidence import MeanBound, lower_mean, upper_mean
from sb3_prune_robust.certificates.difference import PolicyDifference, policy_difference
from sb3_prune_robust.certificates.likelihood import (
    categorical_log_ratio,
    gaussian_log_ratio,
    likelihood_return_bound,
    likelihood_samples,
)
from sb3_prune_robust.certificates.noise import (
    categorical_shift,
    noise_certificate,
    noise_return_bound,
    promised_bound,
    stopped_returns,
)
from sb3_prune_robust.certificates.regret import (
    CertifiedGain,
    CertifiedRegret,
    RegretTerms,
    attacked_loss_bound,
    certified_gain,
    regret_terms,
    robustness_gain,
)
from sb3_prune_robust.certificates.return_bounds import ReturnBound, shift_offset
from sb3_prune_robust.certificates.returns import (
    LossBound,
    capped_tv,
    loss_bound,
    return_lower_bound,
    total_discount,
    visitation_tv,
)
from sb3_prune_robust.certificates.rewards import RewardRange, check_rewards, clipped_rewards, reward_range

__all__ = [
    "Certificate",
    "CertifiedGain",
    "CertifiedRegret",
    "LossBound",
    "MeanBound",
    "PolicyDifference",
    "RegretTerms",
    "ReturnBound",
    "RewardRange",
    "StateBounds",
    "attacked_loss_bound",
    "capped_tv",
    "categorical_log_ratio",
    "categorical_shift",
    "certified_gain",
    "certify",
    "check_rewards",
    "clipped_rewards",
    "gaussian_log_ratio",
    "likelihood_return_bound",
    "likelihood_samples",
    "loss_bound",
    "lower_mean",
    "noise_certificate",
    "noise_return_bound",
    "policy_difference",
    "promised_bound",
    "regret_terms",
    "return_lower_bound",
    "reward_range",
    "robustness_gain",
    "shift_offset",
    "stopped_returns",
    "survival_band",
    "total_discount",
    "upper_mean",
    "visitation_tv",
]
