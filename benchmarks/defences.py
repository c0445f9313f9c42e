"""
Robust training compared: PPO, SA-PPO, ATLA, Lipschitz bounds, pruning and their combinations, on Hopper-v5 and HalfCheetah-v5.

    python benchmarks/defences.py train --envs Hopper-v5 --agents ppo sappo --seeds 0 1 2
    python benchmarks/defences.py attack       # agents that are there: strong attacks, certified return; minutes each
    python benchmarks/defences.py report       # docs/results/defences.jsonl -> defences.md

Every command leaves alone what is there already, so it can be killed and started again; two environments can run side by side.
All agents of an environment are trained alike, but for what :data:`AGENTS` says: PPO's settings, seeds, steps.
An agent is ``MODELS/<env>/<agent>_<seed>.zip``, with the statistics of its observations in ``.pkl`` beside it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_prune_robust import worst_case
from sb3_prune_robust.attacks import Budget
from sb3_prune_robust.defences import ALGORITHMS
from sb3_prune_robust.evaluation import rollout
from sb3_prune_robust.evaluation.clean_play import play_clean
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.evaluation.return_certificate import largest_certified_eps
from sb3_prune_robust.evaluation.statistics import t_interval
from sb3_prune_robust.policies import LipschitzGaussianPolicy
from sb3_prune_robust.pruning import PruningCallback, sparsity

ROOT = Path(__file__).parents[1]
MODELS = Path(__file__).parent / "models" / "defences"
ROWS, TABLE = ROOT / "docs" / "results" / "defences.jsonl", ROOT / "docs" / "results" / "defences.md"
TIMESTEPS, N_ENVS = 1_000_000, 8
#: the published radius, in units of the normalised observation
EPS = {"Hopper-v5": 0.075, "HalfCheetah-v5": 0.15}
# Of all agents: PPO's settings of benchmarks/certified_returns.py, where they were chosen on Hopper's seed 0.
SETTINGS: dict[str, Any] = dict(n_steps=256, batch_size=256, device="cpu")
LEARNING_RATE = (5e-4, 0.0)

LIPSCHITZ: dict[str, Any] = dict(policy=LipschitzGaussianPolicy, policy_kwargs=dict(lipschitz=4.0))
PRUNED: dict[str, Any] = dict(final_sparsity=0.9)
#: by name: the algorithm, its arguments, and those of a PruningCallback
AGENTS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "ppo": ("ppo", {}, None),
    "pruned": ("ppo", {}, PRUNED),
    "lipschitz": ("ppo", LIPSCHITZ, None),
    "lipschitz+pruned": ("ppo", LIPSCHITZ, PRUNED),
    "sappo": ("sappo", dict(kappa=0.2), None),
    "sappo+pruned": ("sappo", dict(kappa=0.2), PRUNED),
    "sappo+lipschitz+pruned": ("sappo", dict(kappa=0.2, **LIPSCHITZ), PRUNED),
    "atla": ("atla_ppo", {}, None),
    "atla+pruned": ("atla_ppo", {}, PRUNED),
    "pa-atla": ("pa_atla_ppo", dict(kappa=0.2), None),
    "pa-atla+lipschitz+pruned": ("pa_atla_ppo", dict(kappa=0.2, **LIPSCHITZ), PRUNED),
}


def train(env: str, agent: str, seed: int, path: Path, verbose: int) -> None:
    """Train an agent and save it: the model last and by renaming, so that a model that is there is whole."""
    algorithm, arguments, pruning = AGENTS[agent]
    arguments = {"policy": "MlpPolicy", "learning_rate": LinearSchedule(*LEARNING_RATE, 1.0), **SETTINGS, **arguments}
    if algorithm != "ppo":
        arguments["eps"] = EPS[env]
    venv = VecNormalize(make_vec_env(env, n_envs=N_ENVS, seed=seed))
    began = time.process_time()
    model = {"ppo": PPO, **ALGORITHMS}[algorithm](env=venv, seed=seed, verbose=verbose, **arguments)
    model.learn(TIMESTEPS, callback=None if pruning is None else PruningCallback(**pruning), log_interval=20)
    about = {"cpu_seconds": round(time.process_time() - began), "sparsity": round(sparsity(model.policy)["actor"], 4)}
    path.parent.mkdir(parents=True, exist_ok=True)
    venv.save(str(path.with_suffix(".pkl")))
    path.with_suffix(".json").write_text(json.dumps(about) + "\n")
    model.save(path.with_suffix(".part.zip"))
    os.replace(path.with_suffix(".part.zip"), path)


# The strong suite but for its second seed of pa-ad-search, which has the curriculum; pa-ad has none.
ATTACKS = ("random", "mad", "critic", "robust-sarsa", "pa-ad", "pa-ad-search")
BUDGET = Budget(steps=400_000)  # for each attack that learns
N_EPISODES, SEED = 50, 0
# Certified return 3: episodes that certify and that choose; the share of the clean return that must be left; clipped rewards.
CERTIFIED: dict[str, Any] = dict(n_episodes=200, n_calibration=50, seed=1_000_000)
CONFIDENCE, SHARE = 0.99, 0.5
CLIP = {"Hopper-v5": (0.0, 5.0), "HalfCheetah-v5": (-1.0, 15.0)}
HEADER = (
    "agent",
    "seeds",
    "clean",
    "clean, sampled",
    *ATTACKS,
    "worst, mean [each]",
    "worst, minus PPO's",
    "eps for half [each]",
)


def load(env: str, agent: str, path: Path) -> Any:
    return {"ppo": PPO, **ALGORITHMS}[AGENTS[agent][0]].load(path, device="cpu")


def attack(env: str, agent: str, seed: int, path: Path) -> dict[str, Any]:
    """What one agent returns without attack and under each, deterministic and sampled, and what is certified of it."""
    began = time.process_time()
    model, venv = load(env, agent, path), make_env(env, 16, path.with_suffix(".pkl"))
    kept = ROOT / "runs" / "defences" / env / f"{agent}_{seed}"
    found = worst_case(model, venv, ATTACKS, EPS[env], N_EPISODES, seed=SEED, budget=BUDGET, folder=kept)
    sampled = rollout(model, venv, N_EPISODES, deterministic=False, seed=SEED)
    row = {
        "env": env,
        "agent": agent,
        "seed": seed,
        "eps": EPS[env],
        "clean": np.round(found.clean.returns, 1).tolist(),
        "clean_sampled": np.round(sampled.returns, 1).tolist(),
        "attacks": {name: np.round(one.returns, 1).tolist() for name, one in found.episodes.items()},
        "skipped": found.skipped,
        "steps": {name: cost.steps for name, cost in found.cost.items()},
        **certified(env, model, path),
        **json.loads(path.with_suffix(".json").read_text()),
    }
    return {**row, "attack_seconds": round(time.process_time() - began)}


def certified(env: str, model: Any, path: Path) -> dict[str, Any]:
    """The largest eps at which half of the clean return is certified, whole episodes, by the policy's own noise."""
    play = play_clean(model, make_env(env, 25, path.with_suffix(".pkl")), clip_rewards=CLIP[env], **CERTIFIED)
    half = largest_certified_eps(play, SHARE, confidence=CONFIDENCE, clean=play.mean_return(play.calibration))
    return {"half_eps": half.eps, "half_of": half.clean, "quantity": play.quantity}


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def append(row: dict[str, Any]) -> None:
    with ROWS.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two processes may run
        file.write(json.dumps(row) + "\n")


def report() -> str:
    """Markdown: a table of means over seeds for each environment, and one of each agent."""
    found = {(row["env"], row["agent"], row["seed"]): row for row in rows()}
    parts = []
    for env in EPS:
        lines = [
            f"{env}, eps {EPS[env]:g}",
            "",
            cells(*HEADER),
        ]
        lines.append("|" + "---|" * len(HEADER))
        ppo = {seed: worst(row) for (of, agent, seed), row in found.items() if (of, agent) == (env, "ppo")}
        for agent in AGENTS:
            own = [row for key, row in sorted(found.items()) if key[:2] == (env, agent)]
            if own:
                lines.append(summary(agent, own, ppo))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def summary(agent: str, own: list[dict[str, Any]], ppo: dict[int, float]) -> str:
    """A line: means over seeds; worst is, for each seed, the lowest of its attacks' means, beside PPO's of that seed."""
    each = [worst(row) for row in own]
    by_attack = [[np.mean(row["attacks"][name]) for row in own if name in row["attacks"]] for name in ATTACKS]
    certified_eps = [row["half_eps"] for row in own]
    return cells(
        agent,
        len(own),
        *(f"{np.mean([np.mean(row[name]) for row in own]):.0f}" for name in ("clean", "clean_sampled")),
        *(f"{np.mean(values):.0f}" if values else "-" for values in by_attack),
        f"**{np.mean(each):.0f}** [{', '.join(f'{one:.0f}' for one in each)}]",
        "-" if agent == "ppo" else gain(np.array([worst(row) - ppo[row["seed"]] for row in own if row["seed"] in ppo])),
        f"{np.mean(certified_eps):.2g} [{', '.join(f'{one:.2g}' for one in certified_eps)}]",
    )


def gain(differences: Any) -> str:
    """A mean with Student's interval at 95 %, over seeds."""
    found = t_interval(differences)
    return f"{found.mean:.0f}" + ("" if found.low is None else f" [{found.low:.0f}, {found.high:.0f}]")


def worst(row: dict[str, Any]) -> float:
    return min(float(np.mean(returns)) for returns in row["attacks"].values())


def cells(*values: Any) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "attack", "report"))
    parser.add_argument("--envs", nargs="+", choices=EPS, default=list(EPS), metavar="ENV")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS), metavar="AGENT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--models", type=Path, default=MODELS, metavar="DIR", help="folder of the agents (default: %(default)s)"
    )
    parser.add_argument("--verbose", type=int, default=0)
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.command == "report":
        TABLE.write_text(report())
        return print(TABLE.read_text())
    jobs = [(env, agent, seed) for seed in args.seeds for env in args.envs for agent in args.agents]
    for i, (env, agent, seed) in enumerate(jobs):
        path = args.models / env / f"{agent}_{seed}.zip"
        done = {(row["env"], row["agent"], row["seed"]) for row in rows()}
        if path.exists() if args.command == "train" else not path.exists() or (env, agent, seed) in done:
            continue
        print(f"{time.strftime('%H:%M:%S')} {i + 1} of {len(jobs)}: {args.command} {env} {agent} {seed}", flush=True)
        if args.command == "train":
            train(env, agent, seed, path, args.verbose)
        else:
            append(attack(env, agent, seed, path))


if __name__ == "__main__":
    main()
