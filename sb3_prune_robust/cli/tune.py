"""``sb3-prune-robust tune``: hyperparameters for clean and attacked return, with Optuna."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sb3_prune_robust.cli.arguments import PROGRAM, floats, names, positive, positive_int
from sb3_prune_robust.hyperparams import ALGORITHMS  # type: ignore[import-not-found, unused-ignore]
from sb3_prune_robust.pruning.schedules import SCHEDULES

TUNE_HELP = f"""
Starts from the package's entry for the algorithm and environment, and searches for a better lipschitz, final sparsity,
schedule and distribution of pruning, kappa (weight of a robust algorithm's term), as far as the entry has them, and learning
rate. Each trial is a training as RL Zoo would do it; trials are compared by (1 - weight) * clean + weight * attacked, mean raw
returns of the same held-out episodes with deterministic actions. The first trial is the entry itself. The best is written to
--out as an entry for RL Zoo's --conf-file.

With --storage the study outlives the command: the same command continues it, and several, on one machine or many, share it. A
trial whose process was killed is queued again. Without it, the study is in memory and gone at the end.

  {PROGRAM} tune --algo ppo --env CartPole-v1 --eps 0.1 --n-trials 20 --storage sqlite:///tune.db
"""


def add_tune(commands: Any) -> None:
    """
    Add the command.

    :param commands: what ``add_subparsers`` returned
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("tune", help="tune hyperparameters", description=TUNE_HELP, formatter_class=raw)
    add = parser.add_argument
    add("--algo", required=True, metavar="NAME", help=f"one of {', '.join(ALGORITHMS)}")
    add("--env", required=True, metavar="ID", help="gymnasium environment id")
    add(
        "--eps",
        type=float,
        required=True,
        metavar="E",
        help="l_inf radius of the attack, in units of what the network receives",
    )
    add("--attack", default="mad", metavar="A", help="one that does not learn (default: %(default)s)")
    text = "of the attacked return in the objective, in [0, 1] (default: %(default)s)"
    add("--weight", type=float, default=0.5, metavar="W", help=text)
    text = "stop when the study has so many trials, other processes' included (default: %(default)s)"
    add("--n-trials", type=positive_int, default=20, metavar="N", help=text)
    add("--timeout", type=positive, metavar="S", help="start no further trial after so many seconds")
    add("--storage", metavar="URL", help="sqlite:///FILE.db, another database's URL, or FILE.log (Optuna's journal)")
    add("--study-name", metavar="NAME", help="(default: ALGO-ENV)")
    add("--timesteps", type=positive_int, metavar="N", help="of each trial (default: the entry's)")
    add("--episodes", type=positive_int, default=20, metavar="N", help="of each evaluation (default: %(default)s)")
    text = "smallest and largest final sparsity tried (default: 0.5,0.95)"
    add("--sparsities", type=floats, default=(0.5, 0.95), metavar="S,S", help=text)
    text = f"to choose from (default: {','.join(SCHEDULES)})"
    add("--schedules", type=names, default=tuple(SCHEDULES), metavar="A,B", help=text)
    add("--conf-file", metavar="F", help="a YAML file with the entry to start from (default: the package's own)")
    add("--sampler", choices=("tpe", "random"), default="tpe", help="(default: %(default)s; its first ten trials are random)")
    text = "stops trainings that fall behind (default: %(default)s)"
    add("--pruner", choices=("median", "halving", "none"), default="median", help=text)
    add("--seed", type=int, default=0, metavar="N", help="of the sampler and of training (default: %(default)s)")
    add("--out", default="tuned.yml", metavar="FILE", help="the best entry (default: %(default)s)")
    parser.set_defaults(run=_tune, kept=_kept)


def _kept(args: argparse.Namespace) -> str:
    if args.storage is None:
        return "without --storage nothing is kept"
    return f"the study is kept in {args.storage}: run the same command again to continue"


def _tune(args: argparse.Namespace, command: str) -> None:
    # Imported here: RL Zoo takes seconds that other commands need not wait for.
    from sb3_prune_robust.tuning.command import Request, tune
    from sb3_prune_robust.tuning.settings import TuneSettings
    from sb3_prune_robust.tuning.study import NoTrialError

    own = {name: getattr(args, name) for name in ("algo", "env", "eps", "attack", "weight", "timesteps", "conf_file")}
    settings = TuneSettings(**own, n_episodes=args.episodes, sparsities=args.sparsities, schedules=args.schedules)
    search = {
        name: getattr(args, name) for name in ("n_trials", "timeout", "storage", "study_name", "seed", "sampler", "pruner")
    }
    try:
        tune(settings, Request(Path(args.out), **search), command)
    except NoTrialError as error:  # not wrong input: exit code 1
        raise SystemExit(f"{PROGRAM} tune: error: {error}") from error
