"""``sb3-prune-robust audit``: an agent over sparsities, clean, attacked and certified."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sb3_prune_robust.attacks import Budget
from sb3_prune_robust.attacks.registry import expand, is_fitted_attack, is_known
from sb3_prune_robust.certificates import RewardRange, clipped_rewards, reward_range
from sb3_prune_robust.cli.arguments import (
    CODE_WARNING,
    MAX_ENVS,
    attacks_help,
    names,
    pair,
    positive,
    positive_int,
    radii,
    sparsities,
)
from sb3_prune_robust.evaluation.audit import (
    DEFAULT_ATTACKS,
    Subject,
    audit,
    common_gamma,
    default_attacks,
    horizon_of,
    load_subjects,
    modes_of,
    write_report,
)
from sb3_prune_robust.evaluation.bars import bars
from sb3_prune_robust.evaluation.cells import fitting_total, n_rollouts, why_not_certified
from sb3_prune_robust.evaluation.loading import ALGORITHMS, make_single
from sb3_prune_robust.evaluation.markdown import SEVERAL
from sb3_prune_robust.evaluation.report import prepare_folder
from sb3_prune_robust.evaluation.settings import MODES, NORMS, Settings
from sb3_prune_robust.evaluation.store import Store
from sb3_prune_robust.pruning.distributions import DISTRIBUTIONS

PROGRESS = "progress"  # folder below --out

AUDIT_HELP = f"""
What happens: copies of each model are pruned to each sparsity, with no retraining, and play the same fixed episodes clean and
under each attack; the total variation of the action distribution is certified at the states visited. Your files are only read.
Written to --out: report.md (start here), frontier.png, certified.png (where a return is certified), report.json (the whole
record). What is finished on the way is kept in --out/progress: an audit that was stopped or killed is continued by the same
command, and nothing finished is done again, by later audits into the same folder neither. It may be deleted.
Attacks: some are learned on your agent (--attacks strong), anew for each model, sparsity and mode, on other episodes than
those reported. "Worst" is the lowest mean return over the attacks; with several models, for each model by itself.
Choosing eps: it is in units of what the network receives. With VecNormalize 0.05 to 0.15 are usual for MuJoCo tasks.

{CODE_WARNING}
"""


def add_audit(commands: Any) -> None:
    """
    Add the command.

    :param commands: what ``add_subparsers`` returned
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("audit", help="audit a trained agent", description=AUDIT_HELP, formatter_class=raw)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL.zip", help="SB3 model; several files: the same agent trained with several seeds")
    add("--env", required=True, metavar="ID", help="gymnasium environment id")
    add("--vec-normalize", nargs="+", default=[], metavar="F", help="VecNormalize statistics: one file, or one for each model")
    add("--algo", choices=list(ALGORITHMS), help="default: told from the file")
    add("--eps", type=float, required=True, metavar="E", help="radius of the attack, in units of what the network receives")
    add("--norm", choices=NORMS, default="linf", help="norm of the attack's ball (default: %(default)s)")
    add("--attacks", type=names, metavar="A,B", help=attacks_help())
    text = "CPU seconds that each attack may learn for each model, sparsity and mode (default: its own, some minutes)"
    add("--attack-seconds", type=positive, metavar="S", help=text)
    text = "the same in environment steps, which is reproducible; with both, whichever is reached first"
    add("--attack-steps", type=positive_int, metavar="N", help=text)
    levels = "0,0.3,0.5,0.7,0.8,0.9,0.95"
    add(
        "--sparsities",
        type=sparsities,
        default=sparsities(levels),
        metavar="S,S",
        help=f"in [0, 1); 0 always (default: {levels})",
    )
    add("--distribution", choices=list(DISTRIBUTIONS), default="erk", help="of the zeros over layers (default: %(default)s)")
    add(
        "--episodes",
        type=int,
        default=50,
        metavar="N",
        help="for each agent, sparsity, attack and mode (default: %(default)s)",
    )
    add("--n-envs", type=int, metavar="N", help=f"environments at a time (default: as many as episodes, at most {MAX_ENVS})")
    _add_modes(parser)
    add(
        "--reward-min",
        type=float,
        metavar="R",
        help="smallest reward possible (default: where proved): returns are certified only if known",
    )
    add("--reward-max", type=float, metavar="R", help="largest reward possible")
    text = "certify the return of rewards clipped to this range, where the environment's own have no proved bounds"
    add("--clip-rewards", type=pair, metavar="LOW,HIGH", help=text)
    text = "further radii for certified against attacked returns over eps (default: 1/256, 1/64, 1/16, 1/4 of --eps)"
    add("--eps-grid", type=radii, default=(), metavar="E,E", help=text)
    text = "also certify policy smoothing: the same network on observations with noise of this standard deviation"
    add("--smoothing-std", type=float, metavar="S", help=text)
    add("--gamma", type=float, help="discount of the certificates (default: the model's)")
    add("--confidence", type=float, default=0.95, help="level of the intervals (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the first episode (default: %(default)s)")
    add("--out", default="audit-report", metavar="DIR", help="folder for the report (default: %(default)s)")
    parser.set_defaults(run=_audit, kept=_kept)


def _add_modes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    text = "only play the mode of the policy's distribution (default: both, where it samples); no return is certified then"
    group.add_argument("--deterministic", dest="modes", action="store_const", const=("deterministic",), help=text)
    text = "only play samples of the policy's distribution"
    group.add_argument("--stochastic", dest="modes", action="store_const", const=("stochastic",), help=text)
    parser.set_defaults(modes=None)


def _rewards(args: argparse.Namespace) -> RewardRange:
    if args.clip_rewards is None:
        return reward_range(args.env, args.reward_min, args.reward_max)
    if args.reward_min is not None or args.reward_max is not None:
        raise ValueError("clip-rewards was given together with reward-min or reward-max: it is one or the other")
    return clipped_rewards(*args.clip_rewards)


def attack_budget(args: argparse.Namespace) -> Budget | None:
    """
    What ``--attack-steps`` and ``--attack-seconds`` say.

    :param args: with these, and ``attacks``
    :raises ValueError: if one was given and no attack learns
    """
    if args.attack_steps is None and args.attack_seconds is None:
        return None
    attacks = args.attacks or DEFAULT_ATTACKS
    if not any(is_fitted_attack(name) for name in expand(attacks) if is_known(name)):
        raise ValueError(f"attack-seconds or attack-steps was given, but none of {', '.join(attacks)} learns")
    return Budget(args.attack_steps, args.attack_seconds)


def _check_certified(args: argparse.Namespace, reason: str | None) -> None:
    """:raises ValueError: if an option of certified returns was given and none is certified, for a reason"""
    given = {"eps-grid": args.eps_grid, "smoothing-std": args.smoothing_std, "clip-rewards": args.clip_rewards}
    for name, value in given.items():
        if reason is not None and value is not None and value != ():
            raise ValueError(f"{name} was given, but no return is certified: {reason}")


def _audit(args: argparse.Namespace, command: str) -> None:
    settings: dict[str, Any] = dict(
        eps=args.eps,
        norm=args.norm,
        attacks=args.attacks or DEFAULT_ATTACKS,
        n_episodes=args.episodes,
        modes=args.modes or MODES,
        seed=args.seed,
        confidence=args.confidence,
        rewards=_rewards(args),
        eps_grid=args.eps_grid,
        smoothing_std=args.smoothing_std,
        attack_budget=attack_budget(args),
    )
    _check_certified(args, Settings(**settings).not_certified)  # what is wrong is said before anything is loaded
    n_envs = min(args.episodes, MAX_ENVS) if args.n_envs is None else args.n_envs
    make_single(args.env).close()
    pruning = {"scores": "magnitude", "distribution": args.distribution, "targets": ("actor",)}
    folder = prepare_folder(args.out)
    subjects = load_subjects(args.env, args.models, args.vec_normalize, args.sparsities, n_envs, args.algo, **pruning)
    gamma = common_gamma([subject.model for subject in subjects]) if args.gamma is None else args.gamma
    modes = modes_of([subject.model for subject in subjects], args.modes)
    attacks = args.attacks or default_attacks([subject.model for subject in subjects])
    settings.update(gamma=gamma, horizon=horizon_of(subjects[0].agent.venv), modes=modes, attacks=attacks)
    _check_certified(args, why_not_certified([subject.agent for subject in subjects], Settings(**settings)))
    description = (
        "Copies were pruned by magnitude after the fact, without retraining: hidden layers of the actor, zeros shared over "
        f"layers by '{args.distribution}'. Sparsity is that of the pruned layers."
    )
    run_audit(
        "audit",
        subjects,
        Settings(**settings),
        args.env,
        command,
        {"description": description, **pruning},
        folder,
        Store(folder / PROGRESS),
    )


def run_audit(
    kind: str,
    subjects: list[Subject],
    settings: Settings,
    env: str,
    command: str,
    pruning: dict[str, Any],
    folder: Path,
    store: Store | None = None,
) -> None:
    """
    Audit, show progress, write the report and print its summary.

    :param kind: ``"audit"`` or ``"demo"``
    :param subjects: the agents
    :param settings: what is played and certified
    :param env: id of the environment
    :param command: as typed
    :param pruning: how the agents were pruned, for the report
    :param folder: of the report
    :param store: where finished pieces are kept; ``None``: nowhere
    """
    agents = [subject.agent for subject in subjects]
    with bars(n_rollouts(agents, settings), fitting_total(agents, settings)) as watch:
        record = audit(subjects, settings, env, command, pruning, watch=watch, kind=kind, store=store)
    names = write_report(folder, record)
    print(_summary(record))
    print(f"Written to {folder}: {', '.join(names)}")


def _summary(record: dict[str, Any]) -> str:
    mode = record["settings"]["modes"][0]
    lines = [f"{record['settings']['env']}, eps {record['settings']['eps']:g}, {mode} actions"]
    names = [str(point["worst"]["attack"] or SEVERAL) for point in record["modes"][mode]["points"]]
    width = max(10, *map(len, names))
    what, _ = _certified(record["modes"][mode]["points"][0])
    header = f"{'sparsity':>8} {'clean':>10} {'worst':>10} {'(attack)':>{width}} {what:>13} {'eps for half':>13}"
    lines.append(header)
    for point, name in zip(record["modes"][mode]["points"], names, strict=True):
        _, shown = _certified(point)
        half = (point["certificate"] or {}).get("certified_return", {}).get("half", {}).get("eps")
        radius = "-" if half is None else f"{half:.2g}"
        clean, worst = point["clean"]["mean"], point["worst"]
        cells = f"{clean:>10.1f} {worst['mean']:>10.1f} {name:>{width}} {shown:>13} {radius:>13}"
        lines.append(f"{point['sparsity']:>8.2f} {cells}")
    weak = [f"{p['sparsity']:.2f}" for p in record["modes"][mode]["points"] if p["worst"]["mean"] >= p["clean"]["mean"]]
    if weak:
        lines.append(f"worst is not below clean at {', '.join(weak)}: attacked all the same, which says little of robustness")
    lines.append("eps for half: the largest tried at which half of the clean return is certified (-: not certified)")
    return "\n".join(lines)


def _certified(point: dict[str, Any]) -> tuple[str, str]:
    """What is certified at each state, its name and its mean: of the distribution, else of the action played."""
    tv, actions = (point["certificate"] or {}).get("tv"), point["actions"] or {}
    if point["actions"] is None:
        return "certified TV", "-" if tv is None else f"{tv['mean']:.4f}"
    unchanged, radius = actions.get("greedy_unchanged"), actions.get("radius")
    if unchanged is not None:
        return "choice kept", f"{unchanged:.1%}"
    return "moved at most", "-" if radius is None else f"{radius['mean']:.4f}"


def _kept(args: argparse.Namespace) -> str:
    """What is said of an audit that was interrupted."""
    kept = Path(args.out) / PROGRESS
    return f"no report was written; what was finished is kept in {kept}: run the same command again to continue"
