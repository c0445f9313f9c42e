"""``sb3-prune-robust train``: RL Zoo's training with this package's algorithms and hyperparameters."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from sb3_prune_robust import defences
from sb3_prune_robust.cli.arguments import PROGRAM
from sb3_prune_robust.hyperparams import ALGORITHMS, load  # type: ignore[import-not-found, unused-ignore]

ZOO = "sb3_prune_robust.zoo"
TRAIN_HELP = f"""
Runs rl_zoo3.train with the hyperparameters of this package, and every flag of it: python -m rl_zoo3.train --help lists them.
  {PROGRAM} train --algo ppo --env Hopper-v5
is the same as
  python -m rl_zoo3.train --algo ppo --env Hopper-v5 --conf-file sb3_prune_robust.hyperparams.ppo \\
      --gym-packages {ZOO} --num-threads 1
Beside the algorithms of the zoo it trains those of this package, robust ones, which the zoo by itself does not know:
{", ".join(defences.ALGORITHMS)}.
  {PROGRAM} train --algo sappo --env Hopper-v5 -params eps:0.05 kappa:0.3
A training that is continued (-i) begins their schedules of eps and kappa again, unless
-params eps_schedule:"'constant'" kappa_schedule:"'constant'" is given.
Models are written to logs/ALGO/ENV_N; '{PROGRAM} evaluate' attacks them, '{PROGRAM} enjoy' plays them.
"""


def add_train(commands: Any) -> None:
    """
    Add the command.

    :param commands: what ``add_subparsers`` returned
    """
    raw = argparse.RawDescriptionHelpFormatter
    text = "train by RL Zoo with this package's algorithms and hyperparameters"
    # No abbreviations: they would catch flags of the zoo.
    parser = commands.add_parser("train", help=text, description=TRAIN_HELP, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    add("--algo", default="ppo", metavar="NAME", help="of RL Zoo's algorithms or this package's (default: %(default)s)")
    add("--env", default="CartPole-v1", metavar="ID", help="gymnasium environment id (default: %(default)s)")
    add("-conf", "--conf-file", metavar="F", help="another file or module of hyperparameters (default: the package's own)")
    add("--num-threads", metavar="N", default="1", help="of torch (default: %(default)s; small networks gain nothing by more)")
    add("--gym-packages", nargs="+", default=[], metavar="P", help=f"packages that register environments, beside {ZOO}")
    parser.set_defaults(run=_train, rest=[])


def _train(args: argparse.Namespace, command: str) -> None:
    conf_file = args.conf_file
    if conf_file is None:
        _check_entry(args.algo, args.env)
        conf_file = f"sb3_prune_robust.hyperparams.{args.algo}"
    options = ["--algo", args.algo, "--env", args.env, "--conf-file", conf_file, "--num-threads", args.num_threads]
    launch("train", [*options, *args.rest, "--gym-packages", ZOO, *args.gym_packages])


def _check_entry(algo: str, env: str) -> None:
    if algo not in ALGORITHMS:
        raise ValueError(
            f"algo {algo!r} has no hyperparameters here; those that have: {', '.join(ALGORITHMS)}; or --conf-file"
        )
    entries = load(algo)
    if env not in entries and "default" not in entries:
        raise ValueError(f"env {env!r} has no entry for {algo}; those that have: {', '.join(entries)}; or give --conf-file")


def launch(script: str, options: Sequence[str]) -> None:
    """
    Run a script of RL Zoo that knows this package's algorithms.

    :param script: its name, ``"train"`` or ``"enjoy"``
    :param options: its command line
    """
    importlib.import_module(ZOO)  # here, as it takes seconds; and first: the script's --algo takes what the zoo knows by then
    run = getattr(importlib.import_module(f"rl_zoo3.{script}"), script)
    before = sys.argv
    sys.argv = [f"rl_zoo3.{script}", *options]
    try:
        run()
    except ValueError:  # with its traceback, as the zoo shows it: the command line's own errors are cut to a line
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        sys.argv = before
