"""Attacks on what a policy observes, and the environment wrapper that carries them out."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from sb3_prune_robust.attacks.base import Attack
from sb3_prune_robust.attacks.gradient import FGSM, MAD, PGD, SGLDMAD, CriticAttack, GradientAttack
from sb3_prune_robust.attacks.uniform import RandomAttack
from sb3_prune_robust.attacks.vec_env import AdversarialVecEnv

#: Attacks by the names that the command line and reports use.
ATTACKS: dict[str, type[Attack]] = {
    "random": RandomAttack,
    "fgsm": FGSM,
    "pgd": PGD,
    "mad": MAD,
    "mad-sgld": SGLDMAD,
    "critic": CriticAttack,
}


def make_attack(name: str, eps: float | npt.ArrayLike, norm: str = "linf", **kwargs: Any) -> Attack:
    """
    An attack by name.

    :param name: a key of ``ATTACKS``
    :param eps: radius of the ball, as in :class:`Attack`
    :param norm: ``"linf"`` or ``"l2"``
    :param kwargs: further arguments of the attack's class
    :raises ValueError: if the name is not known
    """
    if name not in ATTACKS:
        raise ValueError(f"attack {name!r} is not known; choose one of {list(ATTACKS)}")
    return ATTACKS[name](eps, norm, **kwargs)


__all__ = [
    "ATTACKS",
    "FGSM",
    "MAD",
    "PGD",
    "SGLDMAD",
    "AdversarialVecEnv",
    "Attack",
    "CriticAttack",
    "GradientAttack",
    "RandomAttack",
    "make_attack",
]
