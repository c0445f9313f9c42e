"""``sb3-prune-robust hyperparams``: where the hyperparameters for RL Zoo are installed."""

from __future__ import annotations

import argparse
from typing import Any

from sb3_prune_robust.hyperparams import ALGORITHMS, FOLDER  # type: ignore[import-not-found, unused-ignore]

HYPERPARAMS_HELP = """
Prints the folder of the YAML files for RL Zoo, or the file of one algorithm:
  python -m rl_zoo3.train --algo ppo --env CartPole-v1 --conf-file $(sb3-prune-robust hyperparams ppo)
"""


def add_hyperparams(commands: Any) -> None:
    """
    Add the command.

    :param commands: what ``add_subparsers`` returned
    """
    raw = argparse.RawDescriptionHelpFormatter
    text = "where the YAML files for RL Zoo are"
    parser = commands.add_parser("hyperparams", help=text, description=HYPERPARAMS_HELP, formatter_class=raw)
    parser.add_argument("algo", nargs="?", metavar="ALGO", choices=ALGORITHMS, help=f"one of {', '.join(ALGORITHMS)}")
    parser.set_defaults(run=_hyperparams)


def _hyperparams(args: argparse.Namespace, command: str) -> None:
    print(FOLDER if args.algo is None else FOLDER / f"{args.algo}.yml")
