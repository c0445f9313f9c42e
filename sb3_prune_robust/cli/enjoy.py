"""``sb3-prune-robust enjoy``: RL Zoo's, with this package's algorithms."""

from __future__ import annotations

import argparse
from typing import Any

from sb3_prune_robust import defences
from sb3_prune_robust.cli.arguments import PROGRAM
from sb3_prune_robust.cli.train import launch

ENJOY_HELP = f"""
Runs rl_zoo3.enjoy, with every flag of it (python -m rl_zoo3.enjoy --help lists them), on models that '{PROGRAM} train' wrote:
  {PROGRAM} enjoy --algo sappo --env Hopper-v5 --load-best
The zoo by itself does not know this package's algorithms ({", ".join(defences.ALGORITHMS)}); all others
it plays as well.
"""


def add_enjoy(commands: Any) -> None:
    """
    Add the command.

    :param commands: what ``add_subparsers`` returned
    """
    raw = argparse.RawDescriptionHelpFormatter
    text = "look at an agent that RL Zoo trained"
    parser = commands.add_parser("enjoy", help=text, description=ENJOY_HELP, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("-f", "--folder", default="logs", metavar="DIR", help="log folder of training (default: %(default)s)")
    parser.add_argument("--num-threads", metavar="N", default="1", help="of torch (default: %(default)s)")
    parser.set_defaults(run=_enjoy, rest=[])


def _enjoy(args: argparse.Namespace, command: str) -> None:
    launch("enjoy", ["--folder", args.folder, "--num-threads", args.num_threads, *args.rest])
