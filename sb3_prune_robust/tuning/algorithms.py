"""This package's algorithms among those of RL Zoo."""

from __future__ import annotations

from typing import Any

from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

from sb3_prune_robust.defences import ALGORITHMS

BASES = ("ppo", "sac", "td3", "dqn")


def register_algorithms() -> None:
    """
    Make RL Zoo know the algorithms of :mod:`sb3_prune_robust.defences` by their names; its ``-optimize`` samples for each what
    it samples for the algorithm that it is made of.

    The zoo's ``--algo`` accepts the names that it knows when its ``train()`` or ``enjoy()`` is called, before it imports
    ``--gym-packages``: this must have been called by then. May be called again; names that the zoo has stay the zoo's.
    """
    samplers: dict[str, Any] = HYPERPARAMS_SAMPLER
    converters: dict[str, Any] = HYPERPARAMS_CONVERTER
    for name, algorithm in ALGORITHMS.items():
        ALGOS.setdefault(name, algorithm)
        base = next(base for base in BASES if issubclass(algorithm, ALGOS[base]))
        samplers.setdefault(name, samplers[base])
        converters.setdefault(name, converters[base])
