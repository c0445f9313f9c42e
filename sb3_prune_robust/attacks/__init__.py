"""Attacks on what a policy observes, and the environment wrapper that carries them out."""

from sb3_prune_robust.attacks.adversarial_training import AdversarialTrainingCallback
from sb3_prune_robust.attacks.base import Attack
from sb3_prune_robust.attacks.fitting import Budget, Cost, FittedAttack, NotFittedError, NothingToLearnError
from sb3_prune_robust.attacks.gradient import FGSM, MAD, PGD, SGLDMAD, CriticAttack, GradientAttack
from sb3_prune_robust.attacks.learned import PAAD, SARL, LearnedAttack
from sb3_prune_robust.attacks.registry import ATTACKS, SUITES, make_attack
from sb3_prune_robust.attacks.robust_sarsa import RobustSarsa
from sb3_prune_robust.attacks.snooping import Snooping
from sb3_prune_robust.attacks.uniform import RandomAttack
from sb3_prune_robust.attacks.vec_env import AdversarialVecEnv

__all__ = [
    "ATTACKS",
    "FGSM",
    "MAD",
    "PAAD",
    "PGD",
    "SARL",
    "SGLDMAD",
    "SUITES",
    "AdversarialTrainingCallback",
    "AdversarialVecEnv",
    "Attack",
    "Budget",
    "Cost",
    "CriticAttack",
    "FittedAttack",
    "GradientAttack",
    "LearnedAttack",
    "NotFittedError",
    "NothingToLearnError",
    "RandomAttack",
    "RobustSarsa",
    "Snooping",
    "make_attack",
]
