"""The command line: ``sb3-prune-robust`` or ``python -m sb3_prune_robust``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_prune_robust.cli.arguments import PROGRAM, Parser
from sb3_prune_robust.cli.audit import add_audit
from sb3_prune_robust.cli.demo import add_demo
from sb3_prune_robust.cli.enjoy import add_enjoy
from sb3_prune_robust.cli.evaluate import add_evaluate
from sb3_prune_robust.cli.hyperparams import add_hyperparams
from sb3_prune_robust.cli.study import add_study
from sb3_prune_robust.cli.train import add_train
from sb3_prune_robust.cli.tune import add_tune
from sb3_prune_robust.evaluation.rollouts import NoAttackError

DESCRIPTION = "How pruning a Stable-Baselines3 agent changes its return, its return under attack, and what can be certified."
EXAMPLES = f"""
examples:
  {PROGRAM} demo
      train a small agent, prune it as it trains, attack and certify it, and write a report to ./demo-report (4 minutes)
  {PROGRAM} audit model.zip --env Hopper-v5 --vec-normalize vecnormalize.pkl --eps 0.05
      audit your own agent, of any SB3 algorithm
  {PROGRAM} audit model.zip --env Hopper-v5 --vec-normalize vecnormalize.pkl --eps 0.05 --attacks strong --attack-seconds 60
      under attacks that learn to attack your agent; stop it whenever you like: the same command continues
  {PROGRAM} train --algo ppo --env Hopper-v5
  {PROGRAM} evaluate --algo ppo --env Hopper-v5 --attacks mad,critic --eps 0.075
      train by RL Zoo with this package's hyperparameters, and attack what was trained
  {PROGRAM} train --algo sappo --env Hopper-v5
      the same by an algorithm of this package, which trains for robustness
  {PROGRAM} audit seed0.zip seed1.zip seed2.zip --env CartPole-v1 --eps 0.1 --sparsities 0,0.5,0.9 --out audit-report
      the same agent trained with three seeds: intervals are then over seeds
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    raw: Any = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=PROGRAM, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for add in (add_demo, add_audit, add_train, add_evaluate, add_enjoy, add_tune, add_study, add_hyperparams):
        add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: without the program's name; ``None``: those of the process
    :return: exit code: 0, 2 for wrong input, 130 when interrupted
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    if "rest" in args:  # flags for RL Zoo, --num-threads among them
        args.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        th.set_num_threads(1)  # small networks: a second thread only slows them down
    try:
        args.run(args, shlex.join([PROGRAM, *arguments]))
    except (ValueError, NoAttackError) as error:
        print(f"{PROGRAM} {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = f"; {args.kept(args)}" if "kept" in args else ""
        print(f"{PROGRAM} {args.command}: interrupted{kept or '; nothing was written'}", file=sys.stderr)
        return 130
    return 0
