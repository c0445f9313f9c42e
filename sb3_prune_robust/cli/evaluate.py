"""``sb3-prune-robust evaluate``: a run of RL Zoo, clean and under attack."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sb3_prune_robust.attacks import Budget
from sb3_prune_robust.cli.arguments import CODE_WARNING, MAX_ENVS, attacks_help, names, positive, positive_int
from sb3_prune_robust.cli.audit import attack_budget
from sb3_prune_robust.evaluation.audit import DEFAULT_ATTACKS, default_attacks, modes_of
from sb3_prune_robust.evaluation.held_out import check_attacks, check_seeds
from sb3_prune_robust.evaluation.identity import versions
from sb3_prune_robust.evaluation.report import prepare_folder, to_json, write_files
from sb3_prune_robust.evaluation.rollouts import Episodes
from sb3_prune_robust.evaluation.settings import NORMS
from sb3_prune_robust.evaluation.statistics import mean_interval
from sb3_prune_robust.evaluation.worst_case import WorstCase, worst_case
from sb3_prune_robust.pruning import sparsity

EVALUATE_HELP = f"""
Plays an agent that RL Zoo trained, clean and under each attack, on the same fixed episodes: flags of the zoo mean what they
mean in rl_zoo3.enjoy, and wrappers, VecNormalize statistics and frame stacks are those of the run. Returns are raw.
Of a run with several models (--load-best, checkpoints) the zoo keeps one file of VecNormalize statistics, the latest.
Some attacks are learned on the agent (--attacks strong), on other episodes than those reported; with --out, what is finished
is kept beside it, and the same command continues. "Worst" is the lowest mean return over the attacks.

{CODE_WARNING}
"""


def add_evaluate(commands: Any) -> None:
    """
    Add the command.

    :param commands: what ``add_subparsers`` returned
    """
    raw = argparse.RawDescriptionHelpFormatter
    text = "attack an agent that RL Zoo trained"
    parser = commands.add_parser("evaluate", help=text, description=EVALUATE_HELP, formatter_class=raw)
    _add_run(parser)
    _add_attacks(parser)
    add = parser.add_argument
    text = "for each attack (default: %(default)s)"
    add("--episodes", type=positive_int, default=20, metavar="N", help=text)
    add("--seed", type=int, default=0, help="of the first episode (default: %(default)s)")
    text = f"environments at a time (default: as many as episodes, at most {MAX_ENVS})"
    add("--n-envs", type=positive_int, metavar="N", help=text)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--deterministic", action="store_true", help="play the mode of the policy (default, but for Atari)")
    mode.add_argument("--stochastic", action="store_true", help="play samples of the policy")
    add("--confidence", type=float, default=0.95, help="level of the intervals (default: %(default)s)")
    add("--out", type=Path, metavar="FILE.json", help="the whole record (default: none is written)")
    parser.set_defaults(run=_evaluate, kept=_kept)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--algo", default="ppo", metavar="NAME", help="of RL Zoo's algorithms or this package's (default: %(default)s)")
    add("--env", required=True, metavar="ID", help="gymnasium environment id")
    add("-f", "--folder", default="logs", metavar="DIR", help="log folder of training (default: %(default)s)")
    add("--exp-id", type=int, default=0, metavar="N", help="number of the run (default: 0, the latest; -1: no run folder)")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--load-best", action="store_true", help="the best model of training's evaluations, not the last")
    model.add_argument("--load-checkpoint", type=int, metavar="N", help="the checkpoint after N steps")
    model.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    text = "arguments of the environment, over those of the run: KEY:VALUE, the value in Python"
    add("--env-kwargs", nargs="+", default=[], metavar="K:V", help=text)
    add("--gym-packages", nargs="+", default=[], metavar="P", help="packages to import, for environments that they register")


def _add_attacks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--attacks", type=names, metavar="A,B", help=attacks_help())
    add("--eps", type=positive, required=True, metavar="E", help="radius, in units of what the network receives")
    add("--norm", choices=NORMS, default="linf", help="norm of the attack's ball (default: %(default)s)")
    text = "CPU seconds that each attack may learn (default: its own, some minutes)"
    add("--attack-seconds", type=positive, metavar="S", help=text)
    text = "the same in environment steps, which is reproducible; with both, whichever is reached first"
    add("--attack-steps", type=positive_int, metavar="N", help=text)


def _evaluate(args: argparse.Namespace, command: str) -> None:
    check_attacks(args.attacks or DEFAULT_ATTACKS)
    check_seeds(args.seed, args.episodes)
    if not 0.5 <= args.confidence < 1:
        raise ValueError(f"confidence must lie in [0.5, 1), got {args.confidence!r}")
    budget = attack_budget(args)
    out = _checked_out(args.out)
    run = _loaded(args)
    args.attacks = args.attacks or default_attacks([run.model])
    deterministic = _is_deterministic(args, run.model)
    try:
        result = worst_case(
            run.model,
            run.env,
            args.attacks,
            args.eps,
            args.episodes,
            norm=args.norm,
            deterministic=deterministic,
            seed=args.seed,
            budget=budget,
            folder=None if out is None else _progress(out),
            progress_bar=True,
        )
    except TypeError as error:  # of attacks, on spaces that they do not cover
        raise ValueError(str(error)) from error
    finally:
        run.env.close()
    record = _record(args, command, run, deterministic, budget, result)
    print(_table(record))
    if out is not None:
        write_files(out.parent, {out.name: to_json(record)})
        print(f"Written to {out}")


def _loaded(args: argparse.Namespace) -> Any:
    for package in args.gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"gym-packages: {package!r} cannot be imported: {error}") from error
    from sb3_prune_robust.zoo import Which, load_run  # takes seconds to import

    chosen = (args.load_best, args.load_checkpoint, args.load_last_checkpoint)
    which = Which(args.algo, args.env, args.folder, args.exp_id, *chosen)
    n_envs = min(args.episodes, MAX_ENVS) if args.n_envs is None else args.n_envs
    return load_run(which, n_envs, args.seed, _env_kwargs(args.env_kwargs))


def _env_kwargs(given: list[str]) -> dict[str, Any]:
    from rl_zoo3.utils import StoreDict

    found = argparse.Namespace()
    store: Any = StoreDict
    try:
        store(["--env-kwargs"], "kwargs", "+")(None, found, given)
    except Exception as error:  # the zoo evaluates it as Python
        raise ValueError(f"env-kwargs {' '.join(given)}: not KEY:VALUE with a value in Python: {error}") from error
    kwargs: dict[str, Any] = found.kwargs
    return kwargs


def _is_deterministic(args: argparse.Namespace, model: Any) -> bool:
    from sb3_prune_robust.zoo import plays_mode

    modes = modes_of([model], ("stochastic",) if args.stochastic else None)
    return args.deterministic or "stochastic" not in modes or (not args.stochastic and plays_mode(args.env))


def _checked_out(out: Path | None) -> Path | None:
    if out is not None:
        if out.is_dir():
            raise ValueError(f"out {out} is a folder; give a file")
        prepare_folder(out.parent)
    return out


def _progress(out: Path) -> Path:
    """Where finished pieces are kept."""
    return out.with_suffix(".progress")


def _kept(args: argparse.Namespace) -> str:
    """What is said of an evaluation that was interrupted."""
    if args.out is None:
        return "nothing was kept, as --out was not given"
    return f"what was finished is kept in {_progress(args.out)}: run the same command again to continue"


def _record(
    args: argparse.Namespace, command: str, run: Any, deterministic: bool, budget: Budget | None, result: WorstCase
) -> dict[str, Any]:
    """What was done and seen."""
    attacks = {
        name: {
            **_cell(episodes, args.confidence),
            "perturbed": episodes.perturbed,
            "cost": asdict(result.cost[name]) if name in result.cost else None,
        }
        for name, episodes in result.episodes.items()
    }
    return {
        "command": command,
        "versions": versions(),
        "run": {"algo": args.algo, "env": args.env, "model": str(run.path), "num_timesteps": run.model.num_timesteps},
        "sparsity": sparsity(run.model),
        "settings": {
            "eps": args.eps,
            "norm": args.norm,
            "deterministic": deterministic,
            "episodes": args.episodes,
            "seed": args.seed,
            "confidence": args.confidence,
            "attack_budget": None if budget is None else asdict(budget),
        },
        "clean": _cell(result.clean, args.confidence),
        "attacks": attacks,
        "worst": {"attack": result.attack, "mean": result.mean},
        "skipped": result.skipped,
    }


def _cell(episodes: Episodes, confidence: float) -> dict[str, Any]:
    interval = mean_interval(episodes.returns, confidence)
    ends = {"mean": interval.mean, "low": interval.low, "high": interval.high, "method": interval.method}
    return {**ends, "returns": episodes.returns, "lengths": episodes.lengths}


def _table(record: dict[str, Any]) -> str:
    settings, run = record["settings"], record["run"]
    mode = "deterministic" if settings["deterministic"] else "stochastic"
    lines = [
        f"{run['model']}: {run['num_timesteps']} steps, {record['sparsity']['actor']:.0%} of the actor's hidden layers pruned",
        f"{run['env']}, eps {settings['eps']:g} ({settings['norm']}), {settings['episodes']} episodes, {mode} actions",
    ]
    cells = {"clean": record["clean"], **record["attacks"]}
    width = max(len(name) for name in (*cells, *record["skipped"], "attack"))
    level = f"{settings['confidence']:.0%} interval"
    lines.append(f"{'attack':<{width}} {'mean return':>12} {level:>24}")
    lines += [f"{name:<{width}} {cell['mean']:>12.1f} {_ends(cell):>24}" for name, cell in cells.items()]
    lines += [f"{name:<{width}} {'-':>12} no attack took place: {why}" for name, why in record["skipped"].items()]
    lines.append(f"worst: {record['worst']['attack']}, {record['worst']['mean']:.1f}")
    weak = [name for name, cell in record["attacks"].items() if cell["mean"] >= record["clean"]["mean"]]
    if weak:
        lines.append(f"not below the clean return: {', '.join(weak)} (attacked all the same, which says little of robustness)")
    return "\n".join(lines)


def _ends(cell: dict[str, Any]) -> str:
    return "-" if cell["low"] is None else f"[{cell['low']:.1f}, {cell['high']:.1f}]"
