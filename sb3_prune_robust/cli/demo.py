"""``sb3-prune-robust demo``: train a small agent, pruned as it trains, and audit it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from sb3_prune_robust.certificates import clipped_rewards
from sb3_prune_robust.cli.arguments import MAX_ENVS
from sb3_prune_robust.cli.audit import run_audit
from sb3_prune_robust.evaluation.audit import horizon_of
from sb3_prune_robust.evaluation.demo import END, FINAL_SPARSITY, RECIPES, START, train_demo
from sb3_prune_robust.evaluation.report import prepare_folder
from sb3_prune_robust.evaluation.settings import Settings


def add_demo(commands: Any) -> None:
    """
    Add the command.

    :param commands: what ``add_subparsers`` returned
    """
    text = "Train a small agent, pruned as it trains, then audit it."
    parser = commands.add_parser("demo", help="train and audit a small agent", description=text)
    add = parser.add_argument
    env = next(iter(RECIPES))
    add("--env", choices=list(RECIPES), default=env, help="(default: %(default)s)")
    add("--timesteps", type=int, metavar="N", help="environment steps of training (default: enough to see the point)")
    add("--episodes", type=int, default=20, metavar="N", help="for each sparsity, attack and mode (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of training and of the first episode (default: %(default)s)")
    add("--out", default="demo-report", metavar="DIR", help="folder for the report (default: %(default)s)")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace, command: str) -> None:
    recipe, levels = RECIPES[args.env], (0.0, 0.5, 0.7, 0.9, FINAL_SPARSITY)
    timesteps = recipe.timesteps if args.timesteps is None else args.timesteps
    if timesteps < 1:
        raise ValueError(f"timesteps must be at least 1, got {timesteps}")
    attacks = ("random", "mad", "critic")
    rewards = clipped_rewards(*recipe.clip_rewards)
    settings = Settings(recipe.eps, "linf", attacks, args.episodes, seed=args.seed, rewards=rewards)
    folder = prepare_folder(args.out)
    with tqdm(total=timesteps, desc="training and pruning", unit="step", disable=None) as bar:
        subject = train_demo(args.env, timesteps, min(args.episodes, MAX_ENVS), args.seed, levels, bar.update)
    settings = replace(settings, horizon=horizon_of(subject.agent.venv))
    pruning = {"description": f"PPO with LipschitzGaussianPolicy(lipschitz={recipe.lipschitz:g}), {timesteps} steps."}
    pruning["description"] += (
        f" Pruned by magnitude while it trained, from {START:.0%} to {END:.0%} of training; each row is the agent as it was "
        "when it had trained longest at that sparsity, so sparser rows have also trained longer."
    )
    run_audit("demo", [subject], settings, args.env, command, pruning, folder)
