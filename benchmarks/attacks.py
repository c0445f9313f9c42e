"""Speed of the attacks, as ratios: interleaved medians, so that other load on the machine hits both sides alike.

Run from the repository's root: ``python benchmarks/attacks.py`` (about a minute on one core, ``OMP_NUM_THREADS=1``); writes
``benchmarks/results/attacks.json``.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_prune_robust.attacks import MAD, PAAD, SARL, AdversarialVecEnv, Budget, FittedAttack, RobustSarsa, Snooping

EPS, STEPS = 0.075, 10
BLOCK = 50  # calls timed together
SPEEDUP_TARGETS = {1: 10.0, 8: 10.0, 32: 8.0, 128: 5.0}
SLOWDOWN_TARGETS = {1: 1.8, 8: 1.5, 32: 1.2}
LEARNED_TARGET = 1.3
TINY = 1e-5  # eps so small that attacked and clean evaluation play the same episodes: else falls and resets would be timed
RESULTS = Path(__file__).parent / "results" / "attacks.json"


def naive_mad(policy: Any, obs: th.Tensor) -> th.Tensor:
    """MAD as one writes it first: sign steps on the KL divergence of SB3's distributions, by autograd."""
    with th.no_grad():
        clean = policy.get_distribution(obs).distribution
    hat = obs + EPS * (2 * th.rand_like(obs) - 1)
    for _ in range(STEPS):
        hat.requires_grad_()
        divergence = th.distributions.kl_divergence(clean, policy.get_distribution(hat).distribution).sum()
        (gradient,) = th.autograd.grad(divergence, hat)
        hat = (hat.detach() + EPS / 4 * gradient.sign()).clamp(obs - EPS, obs + EPS)
    return hat


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(slow: Callable[[], Any], fast: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Medians of both, in seconds, in turn."""
    pairs = np.array([(timed(slow), timed(fast)) for _ in range(repeats)])
    return float(np.median(pairs[:, 0])), float(np.median(pairs[:, 1]))


def block_of_calls(function: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
    """A block of calls: single calls in turn would time how long each side's data takes to return to the cache."""

    def block() -> None:
        for _ in range(BLOCK):
            function(*arguments)

    return block


def attack_speed(model: PPO) -> list[dict[str, float]]:
    attack, rows = MAD(EPS, seed=0, steps=STEPS, restarts=1, engine="analytic"), []
    print(f"MAD, {STEPS} steps: analytic engine against autograd through SB3's distribution, microseconds a call")
    for n, target in SPEEDUP_TARGETS.items():
        obs = np.random.default_rng(0).normal(size=(n, 11)).astype(np.float32)
        tensor = th.as_tensor(obs)
        slow, fast = interleaved(
            block_of_calls(naive_mad, model.policy, tensor), block_of_calls(attack, model.policy, obs), 21
        )
        slow, fast = slow / BLOCK, fast / BLOCK
        rows.append(dict(n_envs=n, autograd_us=slow * 1e6, analytic_us=fast * 1e6, speedup=slow / fast, target=target))
        print(f"  {n:4d} envs: {slow * 1e6:7.0f} / {fast * 1e6:6.0f} = {slow / fast:5.1f}x   (target {target:.0f}x)")
    return rows


def environment(n_envs: int) -> VecEnv:
    venv = VecNormalize(make_vec_env("Hopper-v5", n_envs=n_envs, seed=0), training=False, norm_reward=False)
    return venv


def play(model: PPO, venv: VecEnv, steps: int) -> None:
    obs = venv.reset()
    for _ in range(steps):
        actions, _ = model.predict(obs, deterministic=True)  # type: ignore[arg-type]
        obs, _, _, _ = venv.step(actions)


def slowdown(model: PPO, attack: Any, n: int, target: float) -> dict[str, float]:
    """Attacked against clean evaluation; the attack's eps is ``TINY``, so that both play the same episodes."""
    clean, attacked = environment(n), AdversarialVecEnv(environment(n), model, attack)
    steps = 200 if n == 1 else 50
    slow, fast = interleaved(lambda: play(model, attacked, steps), lambda: play(model, clean, steps), 31)
    assert attacked.mean_perturbation > 0.001 * TINY, "no attack took place"
    print(f"  {n:4d} envs: {slow / steps * 1e6:7.0f} / {fast / steps * 1e6:6.0f} = {slow / fast:5.2f}   (target {target})")
    return dict(n_envs=n, attacked_us=slow / steps * 1e6, clean_us=fast / steps * 1e6, ratio=slow / fast, target=target)


def evaluation_time(model: PPO) -> list[dict[str, float]]:
    print(f"Hopper-v5, attacked (MAD, {STEPS} steps) / clean evaluation, microseconds a step of all environments")
    attack = MAD(TINY, seed=0, deterministic=True, steps=STEPS, restarts=1)
    return [slowdown(model, attack, n, target) for n, target in SLOWDOWN_TARGETS.items()]


def learned_time(model: PPO) -> dict[str, dict[str, float]]:
    """Attacks that were learned, for a moment: how well plays no part."""
    results = {}
    attacks: dict[str, FittedAttack] = {
        "sa-rl": SARL(TINY, seed=0, deterministic=True),
        "pa-ad": PAAD(TINY, seed=0, deterministic=True),
        "pa-ad-search": PAAD(TINY, seed=0, deterministic=True),
        # These two are gradient attacks on an objective that was learned, and cost what gradient attacks cost.
        "robust-sarsa": RobustSarsa(TINY, seed=0, deterministic=True, rounds=1, updates=50),
        "snooping": Snooping(TINY, seed=0, deterministic=True, epochs=1),
    }
    for name, attack in attacks.items():
        attack.fit(model, environment(8), Budget(steps=8192))
        if name == "pa-ad-search":  # a search would find that no push helps at this eps, and drop it
            attack._push = np.ones((2, 3))
        print(f"Hopper-v5, attacked ({name}) / clean evaluation, microseconds a step of all environments")
        results[name] = slowdown(model, attack, 8, LEARNED_TARGET)
    return results


def main() -> None:
    th.set_num_threads(1)
    model = PPO("MlpPolicy", environment(1), seed=0, device="cpu", n_steps=64, batch_size=64)
    results = {
        "load_average": os.getloadavg(),  # above the number of cores: run it again on a quieter machine
        "versions": {m.__name__: m.__version__ for m in (np, th, sb3, gym)} | {"python": platform.python_version()},
        "attack_speed": attack_speed(model),
        "evaluation_time": evaluation_time(model),
        "learned_time": learned_time(model),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
