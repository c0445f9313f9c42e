"""
What is certified of the agents of ``certified_returns.py``: the largest eps that keeps half of the clean whole-episode return.

    python benchmarks/certified_returns.py train     # an hour and a half on one core
    python benchmarks/certify_agents.py certify      # about as long; agents in the results already are left alone
    python benchmarks/certify_agents.py report       # writes docs/results/certified_returns.md

l_inf ball, eps in units of what the network receives, whole undiscounted episodes, confidence 99.9 %, rewards of Hopper
clipped to [0, 5], by the policy's own noise (certified return 3). For the agents of seed 0 also the three certified returns at
eps = 0.001, whole episodes and discounted; policy smoothing (Kumar et al. 2022) of the same network, the best of some noises
by forecast; and the returns under attack at the largest eps, 200 episodes, which no certificate may exceed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from certified_returns import BOUNDS, MODELS, POLICIES, SETTINGS, VARIANTS, Job, all_jobs
from stable_baselines3 import PPO
from tqdm import tqdm

from sb3_prune_robust.attacks import MAD, CriticAttack
from sb3_prune_robust.evaluation.clean_play import CleanPlay, play_clean
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.evaluation.return_certificate import certify_play, largest_certified_eps
from sb3_prune_robust.evaluation.rollouts import rollout

RESULTS = Path(__file__).parents[1] / "docs" / "results"
ROWS, TABLE = RESULTS / "certified_returns.jsonl", RESULTS / "certified_returns.md"
CONFIDENCE, SHARE, N_EPISODES, N_CALIBRATION, N_ENVS, SEED = 0.999, 0.5, 500, 100, 25, 1_000_000
COMMON_EPS = 0.001
SMOOTHING = (0.05, 0.1, 0.2)
CLIP: dict[str, tuple[float, float]] = {"Hopper-v5": (0.0, 5.0)}
GAMMA = 0.99


def certify_agent(job: Job, models: Path) -> dict[str, Any]:
    """Everything that is certified of one agent."""
    began = time.perf_counter()
    model, env = PPO.load(job.model(models), device="cpu"), make_env(job.env_id, N_ENVS, job.normalizer(models))
    arguments: dict[str, Any] = dict(clip_rewards=CLIP.get(job.env_id), seed=SEED)
    play = play_clean(model, env, n_episodes=N_EPISODES, n_calibration=N_CALIBRATION, **arguments)
    # Half of the mean over the episodes that choose: a threshold fixed beforehand.
    found = largest_certified_eps(play, SHARE, confidence=CONFIDENCE, clean=play.mean_return(play.calibration))
    row: dict[str, Any] = {
        "env": job.env,
        "policy": job.policy,
        "seed": job.seed,
        "quantity": play.quantity,
        "clean": play.clean_return(),
        "clean_raw": float(play.episodes.returns.mean()),
        "clean_deterministic": float(rollout(model, env, 100, deterministic=True, seed=SEED).returns.mean()),
        "half_of": found.clean,
        "half_eps": found.eps,
        "budget": None if found.bound is None else found.bound.budget,
        "tried": found.tried,
    }
    if job.seed == 0 and job.policy in POLICIES and job.env == job.env_id:  # what takes long and is not compared over seeds
        discounted = CleanPlay(play.policy, play.calibration, play.episodes, play.rewards, GAMMA, play.horizon)
        row.update(whole=shares(play), discounted=shares(discounted), attacked=attacked(model, env, found.eps, play))
        row.update(smoothing=smoothing(model, env, found.clean, arguments))
        if found.bound is not None and min(row["attacked"].values()) < SHARE * found.clean:
            raise AssertionError(f"an attack on {job} went below a certified return: {row}")
    row["seconds"] = round(time.perf_counter() - began, 1)
    return row


def shares(play: CleanPlay) -> dict[str, float]:
    """Share of the clean return certified by each method at the common eps."""
    certificate = certify_play(play, COMMON_EPS, confidence=CONFIDENCE, bound="crown")
    return {name: max(bound.lower, 0.0) / certificate.clean for name, bound in certificate.by_method.items()}


def attacked(model: Any, env: Any, eps: float, play: CleanPlay) -> dict[str, float]:
    """Upper 99.9 % confidence bounds on the certified quantity under attacks at the largest eps."""
    result = {}
    for name, attack in (("mad", MAD(eps, seed=0)), ("critic", CriticAttack(eps, seed=0))):
        episodes = rollout(model, env, 200, attack=attack, seed=2 * SEED)
        returns = np.array([rewards.sum() for rewards in play.reward_arrays(episodes)])
        result[name] = float(returns.mean() + 3.1 * returns.std(ddof=1) / np.sqrt(len(returns)))
    return result


def smoothing(model: Any, env: Any, clean: float, arguments: dict[str, Any]) -> dict[str, Any]:
    """Policy smoothing with the noise that few episodes promise most of; half is of the return WITHOUT smoothing."""
    few = [play_clean(model, env, n_episodes=1, n_calibration=30, noise_std=std, **arguments) for std in SMOOTHING]
    forecasts = [forecast(play, clean) for play in few]
    std = SMOOTHING[int(np.argmax(forecasts))]
    play = play_clean(model, env, n_episodes=N_EPISODES, n_calibration=N_CALIBRATION, noise_std=std, **arguments)
    found = largest_certified_eps(play, SHARE, confidence=CONFIDENCE, clean=clean)
    return {
        "std": std,
        "clean": play.clean_return(),
        "half_eps": found.eps,
        "forecasts": dict(zip(SMOOTHING, forecasts, strict=True)),
    }


def forecast(play: CleanPlay, clean: float) -> float:
    """The eps at which 30 episodes that only chose would give half at 95 %: for the choice of the noise alone."""
    trial = CleanPlay(play.policy, play.calibration, play.calibration, play.rewards, play.gamma, play.horizon, play.noise_std)
    return largest_certified_eps(trial, SHARE, confidence=0.95, clean=clean).eps


def certify_all(jobs: list[Job], models: Path) -> None:
    done = {(row["env"], row["policy"], row["seed"]) for row in read()}
    waiting = [job for job in jobs if (job.env, job.policy, job.seed) not in done and job.is_there(models)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    for job in tqdm(waiting, unit="agent"):
        row = certify_agent(job, models)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def report() -> None:
    rows = read()
    text = "\n\n".join([main_table(rows), common_table(rows), each_agent(rows)]) + "\n"
    TABLE.write_text(text)
    print(text)


def main_table(rows: list[dict[str, Any]]) -> str:
    lines = [markdown("environment", "policy", "agents", "clean", "of plain", "eps for half, mean [each]", "times plain")]
    for env in SETTINGS:
        means: dict[str, tuple[float, float]] = {}
        for policy in (*POLICIES, *(variant for of, variant in (*BOUNDS, *VARIANTS) if of == env)):
            found = sorted((r for r in rows if (r["env"], r["policy"]) == (env, policy)), key=lambda row: row["seed"])
            if not found:
                continue
            radii = [row["half_eps"] for row in found]
            means[policy] = clean, eps = float(np.mean([row["clean"] for row in found])), float(np.mean(radii))
            each = ", ".join(f"{radius:.2g}" for radius in radii)
            of_plain, times = clean / means["plain"][0], eps / means["plain"][1]
            lines.append(
                cells(env, policy, len(found), f"{clean:.0f}", f"{of_plain:.1%}", f"{eps:.3g} [{each}]", f"{times:.1f}")
            )
    return "\n".join(lines)


def common_table(rows: list[dict[str, Any]]) -> str:
    kinds = [
        (kind, name)
        for kind in ("whole", "discounted")
        for name in ("performance-difference", "likelihood-ratio", "action-noise")
    ]
    lines = [
        markdown(
            "environment", "policy", *(f"{name}, {kind}" for kind, name in kinds), "smoothing: noise", "clean", "eps for half"
        )
    ]
    for row in (r for r in rows if "whole" in r):
        smooth, shares = row["smoothing"], [f"{row[kind][name]:.3f}" for kind, name in kinds]
        lines.append(
            cells(row["env"], row["policy"], *shares, smooth["std"], f"{smooth['clean']:.0f}", f"{smooth['half_eps']:.2g}")
        )
    return (
        f"Share of the clean return certified at eps = {COMMON_EPS}; policy smoothing of the same networks (seed 0):\n\n"
        + "\n".join(lines)
    )


def each_agent(rows: list[dict[str, Any]]) -> str:
    header = (
        "environment",
        "policy",
        "seed",
        "clean",
        "clean, raw",
        "deterministic",
        "eps for half",
        "D",
        "attacked there, at most",
    )
    lines = [markdown(*header)]
    for row in rows:
        numbers = [row["clean"], row["clean_raw"], row["clean_deterministic"], row["half_eps"], row["budget"]]
        least = f"{min(row['attacked'].values()):.4g}" if "attacked" in row else "-"
        lines.append(
            cells(row["env"], row["policy"], row["seed"], *("-" if n is None else f"{n:.4g}" for n in numbers), least)
        )
    return "Each agent:\n\n" + "\n".join(lines)


def markdown(*header: str) -> str:
    return cells(*header) + "\n" + "|" + "---|" * len(header)


def cells(*values: Any) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["certify", "report"])
    parser.add_argument("--envs", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="ENV")
    names = [*POLICIES, *(policy for _, policy in (*VARIANTS, *BOUNDS))]
    parser.add_argument("--policies", nargs="+", choices=names, default=names, metavar="POLICY")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--models", type=Path, default=MODELS, metavar="DIR", help="folder of the agents (default: %(default)s)"
    )
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.command == "certify":
        certify_all(all_jobs(args.envs, args.policies, args.seeds), args.models)
    else:
        report()


if __name__ == "__main__":
    main()
