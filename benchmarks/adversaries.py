"""
The strong suite on agents published by others, at the published eps, 50 held-out episodes, one setting for all of them.

    python benchmarks/adversaries.py run DIR [NAME ...]   # some 15 CPU minutes each
    python benchmarks/adversaries.py report               # docs/results/adversaries.jsonl -> adversaries.md

DIR holds ``<name>.npz``, the agents' weights, which are not part of this repository.
Deterministic victims, gymnasium's v4 environments, the environment's own reward, actions not clipped by the agent. A run that
was killed is continued by the same command; what is finished (runs/adversaries) is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from victims import VICTIMS, folder_and_names, load_victim

from sb3_prune_robust import worst_case
from sb3_prune_robust.attacks import RobustSarsa
from sb3_prune_robust.evaluation.audit import versions
from sb3_prune_robust.evaluation.worst_case import WorstCase

ROOT = Path(__file__).parents[1]
ROWS, TABLE = ROOT / "docs" / "results" / "adversaries.jsonl", ROOT / "docs" / "results" / "adversaries.md"
N_ENVS, N_EPISODES, SEED = 16, 50, 0
# name: clean and strongest as published (gym v2 environments), and what the issue asked for within 5 CPU minutes
PUBLISHED = {
    "halfcheetah_ppo": (7117, -661, -1150),
    "walker_ppo": (4472, 1086, 430),
    "hopper_sappo": (3705, 1076, 1030),
    "halfcheetah_sappo": (3632, 3028, 2800),
}


def run(folder: Path, names: list[str]) -> None:
    """Append a row for each victim to the results."""
    done = {row["victim"] for row in rows()}
    for name in names:
        if name in done:
            print(f"{name}: in {ROWS.name} already")
            continue
        policy, venv, eps = load_victim(folder, name, N_ENVS)
        start = time.perf_counter()
        legacy = RobustSarsa(eps, seed=SEED, deterministic=True, legacy=True, rounds=1, ratios=(0.0,))
        kept = ROOT / "runs" / "adversaries" / name
        found = worst_case(
            policy, venv, ["strong", legacy], eps, N_EPISODES, deterministic=True, seed=SEED, folder=kept, progress_bar=True
        )
        attacks = {attack: record(found, attack) for attack in found.episodes}
        row = {
            "victim": name,
            "env": VICTIMS[name][0],
            "eps": eps,
            "clean": np.round(found.clean.returns, 1).tolist(),
            "attacks": attacks,
            "wall_seconds": round(time.perf_counter() - start),
            "versions": versions(),
        }
        with open(ROWS, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name}: clean {found.clean.returns.mean():.0f}, worst {found.mean:.0f} ({found.attack})", flush=True)


def record(found: WorstCase, name: str) -> dict[str, Any]:
    """Every return under an attack, what learning took, and, of Robust Sarsa, all that it tried."""
    cell: dict[str, Any] = {"returns": np.round(found.episodes[name].returns, 1).tolist()}
    if name in found.cost:
        cell |= {"steps": found.cost[name].steps, "seconds": round(found.cost[name].seconds, 1)}
    attack = found.attacks[name]
    if isinstance(attack, RobustSarsa):
        cell |= {"legacy": attack.legacy, "tried": np.round(attack.tried, 2).tolist()}
    return cell


def rows() -> list[dict[str, Any]]:
    """The results so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def shown(returns: list[float]) -> str:
    """Mean, and the median and quartiles where falls make it two-peaked."""
    low, median, high = np.percentile(returns, [25, 50, 75])
    return f"{np.mean(returns):.0f} (median {median:.0f}; {low:.0f} to {high:.0f})"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row for each attack, a column for each victim."""
    found = {row["victim"]: row for row in results}
    names = [name for name in VICTIMS if name in found]
    attacks = list(dict.fromkeys(attack for name in names for attack in found[name]["attacks"]))
    lines = ["| attack | " + " | ".join(f"{name}, eps {found[name]['eps']:g}" for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    lines.append("| none | " + " | ".join(shown(found[name]["clean"]) for name in names) + " |")
    for attack in attacks:
        cells = [found[name]["attacks"].get(attack) for name in names]
        label = "robust-sarsa, legacy form" if any(cell.get("legacy") for cell in cells if cell) else attack
        lines.append(
            f"| {label} | " + " | ".join("-" if cell is None else shown(cell["returns"]) + cost(cell) for cell in cells) + " |"
        )
    worst = {name: min(np.mean(cell["returns"]) for cell in found[name]["attacks"].values()) for name in names}
    lines.append("| **worst** | " + " | ".join(f"**{worst[name]:.0f}**" for name in names) + " |")
    for label, column in (("strongest published (gym v2)", 1), ("to reach", 2)):
        lines.append(f"| {label} | " + " | ".join(str(PUBLISHED[name][column]) for name in names) + " |")
    return "\n".join(lines) + "\n"


def cost(cell: dict[str, Any]) -> str:
    """What learning took, where there was any."""
    return f" · {cell['seconds']:.0f} s, {cell['steps'] / 1e6:.2f}M steps" if cell.get("steps") else ""


def main() -> None:
    th.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("arguments", nargs="*", metavar="DIR [NAME ...]")
    args = parser.parse_args()
    if args.command == "run":
        run(*folder_and_names(args.arguments))
    else:
        TABLE.write_text(table(rows()))
        print(TABLE.read_text())


if __name__ == "__main__":
    main()
