"""Results of studies that never ran, with known effects of pruning."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sb3_prune_robust.study.results import Results

SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
PLAIN = ("ppo", "plain", "magnitude", "uniform", "polynomial")
# mean clean return, mean return of random actions, standard deviation between seeds, eps
ENVS = {
    "Hopper-v5": (3000.0, 18.0, 150.0, (0.075,)),
    "Acrobot-v1": (-85.0, -495.0, 6.0, (0.05, 0.2)),
    "CartPole-v1": (500.0, 22.0, 4.0, (0.1, 0.3)),
}
METHODS = {"abs": 12.0, "spectral": 6.0, "interval": 3.0, "crown": 1.0, "best": 1.0}

Cell = dict[str, Any]


def cell(env: str, variant: tuple[str, ...], sparsity: float, seed: int) -> Cell:
    """A dense one has no way of pruning."""
    names = ("algorithm", "policy", "scores", "distribution", "schedule")
    labels = variant if sparsity else (*variant[:2], "none", "none", "none")
    return {"env": env, **dict(zip(names, labels, strict=True)), "sparsity": sparsity, "seed": seed}


def record(
    cell: Cell, stage: str = "short", clean: float = 100.0, worst: dict[float, float] | None = None, tv: float = 0.2
) -> dict[str, Any]:
    """
    A finished cell with two episodes in each condition.

    :param clean: its mean clean return
    :param worst: by eps, the mean return under "mad", the worst of three attacks; one more was skipped
    :param tv: bound at the first eps by the method "crown"
    """
    worst = {0.1: 50.0} if worst is None else worst
    return {
        "cell": cell,
        "stage": stage,
        "training": {
            "timesteps": 100_000,
            "cpu_seconds": 360.0,
            "resumed": 1,
            "sparsity": {name: cell["sparsity"] for name in ("actor", "critic", "total")},
            "sha256": "0123456789abcdef" * 4,
            "entry": {"learning_rate": 3e-4, "n_steps": 2048, "policy_kwargs": "dict(net_arch=[64, 64])"},
        },
        "clean": {"deterministic": [clean - 1.0, clean + 1.0], "sampled": [clean - 3.0, clean - 1.0]},
        "attacked": [_attacked(eps, clean, low) for eps, low in worst.items()],
        "certificates": [_certificate(eps, tv * (i + 1)) for i, eps in enumerate(worst)],
        "certified_return": {
            "half_eps": 0.01 / tv,
            "clean": clean,
            "method": "likelihood-ratio",
            "confidence": 0.95,
            "quantity": "return of 100 steps",
            "n_episodes": 50,
        }
        if clean > 0
        else {"not_certified": "the return is not positive"},
        "cpu_seconds": {"train": 360.0, "attack": 120.0, "certify": 60.0},
        "versions": {"stable_baselines3": "2.7.1", "torch": "2.9.0"},
        "commit": "7408674",
        "host": "box",
        "finished": "2026-11-24T18:00:00+00:00",
    }


def _attacked(eps: float, clean: float, worst: float) -> dict[str, Any]:
    means = {"random": clean - 0.1 * (clean - worst), "mad": worst, "robust-sarsa": clean - 0.8 * (clean - worst)}
    played = {
        name: {"returns": [mean - 2.0, mean + 2.0], "perturbed": 1.0, "cost": None if name != "robust-sarsa" else _COST}
        for name, mean in means.items()
    }
    return {"eps": eps, "norm": "linf", "attacks": played, "skipped": {"snooping": "needs a Gaussian policy"}}


_COST = {"steps": 20_000, "cpu_seconds": 60.0}


def _certificate(eps: float, tv: float) -> dict[str, Any]:
    bounds = {method: tv * factor for method, factor in METHODS.items()}
    return {
        "eps": eps,
        "norm": "linf",
        "n_states": 1000,
        "tv": {method: min(1.0, bound) for method, bound in bounds.items()},
        "radius": {method: 5.0 * bound for method, bound in bounds.items()},
    }


def study(
    envs: Sequence[str] = tuple(ENVS),
    variants: Sequence[tuple[str, ...]] = (PLAIN,),
    sparsities: Sequence[float] = SPARSITIES,
    n_seeds: int = 5,
    stages: Sequence[str] = ("short",),
    keep: Callable[[Cell, str], bool] = lambda cell, stage: True,
    effect: Callable[[float], float] = lambda sparsity: 0.35 * np.sin(np.pi * sparsity),
) -> Results:
    """
    A study in which a share of the clean return above random is kept under attack that rises with the sparsity.

    :param keep: which cells are finished, at which stage
    :param effect: from sparsity to what pruning adds to the share kept under the worst attack
    """
    cells = {
        tuple(one.values()): (one, variant)
        for env in envs
        for variant in variants
        for sparsity in sparsities
        for seed in range(n_seeds)
        if (one := cell(env, variant, sparsity, seed))
    }
    records = [
        _made(one, variant, stage, effect(one["sparsity"]))
        for one, variant in cells.values()
        for stage in stages
        if keep(one, stage)
    ]
    planned = len(cells)
    references = {env: ENVS[env][1] for env in envs}
    return Results("pruning", "Does **pruning** help?", records, references, planned)


def _made(cell: Cell, variant: tuple[str, ...], stage: str, gain: float) -> dict[str, Any]:
    best, low, spread, radii = ENVS[cell["env"]]
    rng = np.random.default_rng([cell["seed"], round(100 * cell["sparsity"]), zlib.crc32("".join(variant).encode())])
    if "random" in variant:  # the control: half the effect
        gain = gain / 2
    shift = spread * np.random.default_rng(cell["seed"]).normal()  # what a seed has in common, pruned or not
    s = cell["sparsity"]
    clean = best + shift - (best - low) * 0.5 * max(0.0, s - 0.8) + 0.2 * spread * rng.normal()
    share = 0.45 + gain + 0.02 * rng.normal() - (0.05 if stage == "strong" else 0.0)
    worst = {eps: low + share * (clean - low) / (i + 1) for i, eps in enumerate(radii)}
    return record(cell, stage, float(clean), worst, tv=0.3 * (1 - 0.9 * s) * float(np.exp(0.1 * rng.normal())))
