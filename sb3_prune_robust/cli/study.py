"""``sb3-prune-robust study``: a grid of trainings, attacked and certified, and what it says."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from sb3_prune_robust.cli.arguments import PROGRAM, positive_int

STUDY_HELP = """
A study trains an agent for each cell of a grid (environment, algorithm, policy, scores, distribution, schedule, sparsity,
seed), attacks it, certifies it and compares: is it more robust than the dense agent of its seed, and how sure is that?
docs/study.md says what CONFIG.yml holds. Results: one file a cell below --out. Whatever stops a run, the same command goes on:
what is finished is not done again, and a training continues from its last checkpoint, a minute and a rollout old at
most. Several runs may work in one folder. More seeds or sparsities in CONFIG.yml: only what is new is run.
"""


def add_study(commands: Any) -> None:
    """
    Add the command.

    :param commands: what ``add_subparsers`` returned
    """
    raw = argparse.RawDescriptionHelpFormatter
    text = "run, watch and report a grid of trainings"
    parser = commands.add_parser("study", help=text, description=STUDY_HELP, formatter_class=raw)
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|status|report", parser_class=type(parser))
    run = actions.add_parser("run", help="run what is missing", description=STUDY_HELP, formatter_class=raw)
    run.add_argument("config", metavar="CONFIG.yml", help="what is compared")
    run.add_argument("--out", default="study", metavar="DIR", help="folder of the study (default: %(default)s)")
    run.add_argument("--workers", type=positive_int, metavar="N", help="processes of one thread (default: all processors)")
    run.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster instead; 'auto': the one of this machine")
    run.add_argument("--environments", nargs="+", metavar="ENV", help="those to run now, of CONFIG.yml's (default: all)")
    run.add_argument("--dry-run", action="store_true", help="print the cells and an estimate of the time, and run nothing")
    run.set_defaults(run=_run, kept=_kept)
    for name, action, text in (
        ("status", _status, "how far it is: done, running, damaged, failed, time left"),
        ("report", _report, "write report.md, report.html, figures and cells.parquet"),
    ):
        sub = actions.add_parser(name, help=text, description=text)
        sub.add_argument("folder", nargs="?", default="study", metavar="DIR", help="of the study (default: %(default)s)")
        sub.set_defaults(run=action)
        if name == "report":
            sub.add_argument(
                "--cell",
                metavar="NAME",
                help="print one cell in full instead, and write its page: its name, or a part that no other has",
            )


def _kept(args: argparse.Namespace) -> str:
    return f"what is finished is kept in {args.out}: run the same command again to continue"


def _needs_extra(*further: str) -> None:
    missing = [name for name in ("markdown", "pyarrow", "rliable", *further) if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"study needs {', '.join(missing)}: pip install 'sb3-prune-robust[study]'")


def _run(args: argparse.Namespace, command: str) -> None:
    _needs_extra(*([] if args.ray is None else ["ray"]))
    # Imported here: RL Zoo and rliable take seconds that other commands need not wait for.
    from sb3_prune_robust.study import command as study

    if args.workers is not None and args.ray is not None:
        raise ValueError("workers: with --ray the cluster says how many work at a time; give one or the other")
    if args.dry_run and args.ray is not None:
        raise ValueError("dry-run: its estimate is for workers of this machine; leave out --ray, and give --workers")
    if args.dry_run:
        return study.dry_run(args.config, Path(args.out), args.workers, args.environments)
    try:
        study.run(args.config, Path(args.out), args.workers, args.ray, args.environments)
    except study.UnfinishedError as error:  # not wrong input: exit code 1
        raise SystemExit(f"{PROGRAM} study run: error: {error}") from error


def _status(args: argparse.Namespace, command: str) -> None:
    _needs_extra()
    from sb3_prune_robust.study import command as study

    study.status(Path(args.folder))


def _report(args: argparse.Namespace, command: str) -> None:
    _needs_extra()
    from sb3_prune_robust.study import command as study

    if args.cell is not None:
        return study.show_cell(Path(args.folder), args.cell)
    study.report(Path(args.folder))
