"""Attacks by the names that the command line and reports use, and suites of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from sb3_prune_robust.attacks.base import Attack
from sb3_prune_robust.attacks.fitting import FittedAttack
from sb3_prune_robust.attacks.gradient import FGSM, MAD, PGD, SGLDMAD, CriticAttack
from sb3_prune_robust.attacks.learned import PAAD, SARL
from sb3_prune_robust.attacks.robust_sarsa import RobustSarsa
from sb3_prune_robust.attacks.snooping import Snooping
from sb3_prune_robust.attacks.uniform import RandomAttack

#: Attacks by name. A name may be followed by ``#2``, ``#3``, ...: the same attack with another seed.
ATTACKS: dict[str, Callable[..., Attack]] = {
    "random": RandomAttack,
    "fgsm": FGSM,
    "pgd": PGD,
    "mad": MAD,
    "mad-sgld": SGLDMAD,
    "critic": CriticAttack,
    "robust-sarsa": RobustSarsa,
    "snooping": Snooping,
    "sa-rl": SARL,
    "pa-ad": PAAD,
    "pa-ad-curriculum": functools.partial(PAAD, curriculum=3.0),
    "pa-ad-search": functools.partial(PAAD, curriculum=3.0, search=0.35, algorithm_kwargs={"gamma": 0.995}),
}
#: Suites by name: what stands for several attacks.
SUITES: dict[str, tuple[str, ...]] = {
    "strong": ("random", "mad", "critic", "robust-sarsa", "pa-ad", "pa-ad-search", "pa-ad-search#2"),
}


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """
    Names of attacks with suites written out, each attack once, in order.

    :param names: keys of ``ATTACKS`` or ``SUITES``
    """
    return tuple(dict.fromkeys(attack for name in names for attack in SUITES.get(name, (name,))))


def is_known(name: str) -> bool:
    """Whether a name is that of an attack."""
    base, hash_sign, number = name.partition("#")
    return base in ATTACKS and (not hash_sign or (number.isdecimal() and int(number) >= 2 and number == str(int(number))))


def is_fitted_attack(name: str) -> bool:
    """Whether the attack of this name is learned on the victim before it is used."""
    made = ATTACKS[name.partition("#")[0]]
    made = made.func if isinstance(made, functools.partial) else made
    return isinstance(made, type) and issubclass(made, FittedAttack)


def make_attack(name: str, eps: float | npt.ArrayLike, norm: str = "linf", seed: int | None = None, **kwargs: Any) -> Attack:
    """
    An attack by name.

    :param name: a key of ``ATTACKS``, ``#2`` and so on behind it for the same with another seed
    :param eps: radius of the ball, as in :class:`Attack`
    :param norm: ``"linf"`` or ``"l2"``
    :param seed: seed of the attack's own random numbers
    :param kwargs: further arguments of the attack's class
    :raises ValueError: if the name is not known
    """
    if not is_known(name):
        raise ValueError(f"attack {name!r} is not known; choose one of {list(ATTACKS)}")
    base, _, number = name.partition("#")
    if number and seed is not None:
        seed += 1000 * (int(number) - 1)
    return ATTACKS[base](eps, norm, seed=seed, **kwargs)
