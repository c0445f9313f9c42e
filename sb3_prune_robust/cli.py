"""The command line: ``sb3-prune-robust`` or ``python -m sb3_prune_robust``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch as th
from tqdm import tqdm

from sb3_prune_robust.attacks import ATTACKS, SUITES, Budget
from sb3_prune_robust.attacks.registry import expand, is_fitted_attack, is_known
from sb3_prune_robust.certificates import RewardRange, clipped_rewards, reward_range
from sb3_prune_robust.evaluation.audit import Subject, audit, common_gamma, horizon_of, load_subjects, write_report
from sb3_prune_robust.evaluation.bars import bars
from sb3_prune_robust.evaluation.cells import fitting_total, n_rollouts
from sb3_prune_robust.evaluation.demo import END, FINAL_SPARSITY, RECIPES, START, train_demo
from sb3_prune_robust.evaluation.loading import ALGORITHMS, make_single
from sb3_prune_robust.evaluation.markdown import SEVERAL
from sb3_prune_robust.evaluation.report import prepare_folder
from sb3_prune_robust.evaluation.rollouts import NoAttackError
from sb3_prune_robust.evaluation.settings import MODES, NORMS, Settings
from sb3_prune_robust.evaluation.store import Store
from sb3_prune_robust.pruning.distributions import DISTRIBUTIONS

PROGRAM = "sb3-prune-robust"
PROGRESS = "progress"  # folder below --out
MAX_ENVS = 32  # a larger batch hardly speeds up the policy any more

DESCRIPTION = "How pruning a Stable-Baselines3 agent changes its return, its return under attack, and what can be certified."
EXAMPLES = f"""
examples:
  {PROGRAM} demo
      train a small agent, prune it as it trains, attack and certify it, and write a report to ./demo-report (4 minutes)
  {PROGRAM} audit model.zip --env Hopper-v5 --vec-normalize vecnormalize.pkl --eps 0.05
      audit your own PPO, A2C or TRPO agent
  {PROGRAM} audit model.zip --env Hopper-v5 --vec-normalize vecnormalize.pkl --eps 0.05 --attacks strong --attack-seconds 60
      under attacks that learn to attack your agent; stop it whenever you like: the same command continues
  {PROGRAM} audit seed0.zip seed1.zip seed2.zip --env CartPole-v1 --eps 0.1 --sparsities 0,0.5,0.9 --out audit-report
      the same agent trained with three seeds: intervals are then over seeds
"""
AUDIT_HELP = """
What happens: copies of each model are pruned to each sparsity, with no retraining, and play the same fixed episodes clean and
under each attack; the total variation of the action distribution is certified at the states visited. Your files are only read.
Written to --out: report.md (start here), frontier.png, certified.png (where a return is certified), report.json (the whole
record). What is finished on the way is kept in --out/progress: an audit that was stopped or killed is continued by the same
command, and nothing finished is done again, by later audits into the same folder neither. It may be deleted.
Attacks: some are learned on your agent (--attacks strong), anew for each model, sparsity and mode, on other episodes than
those reported. "Worst" is the lowest mean return over the attacks; with several models, for each model by itself.
Choosing eps: it is in units of what the network receives. With VecNormalize 0.05 to 0.15 are usual for MuJoCo tasks.
"""


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help explains)\n")


def _numbers(text: str) -> tuple[float, ...]:
    numbers = _floats(text)
    if not all(0 <= number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"every sparsity must lie in [0, 1), got {text!r}")
    return numbers


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 0.001,0.01") from None


def _pair(text: str) -> tuple[float, float]:
    numbers = _floats(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"two numbers are needed, like 0,5; got {text!r}")
    return numbers[0], numbers[1]


def _radii(text: str) -> tuple[float, ...]:
    radii = _floats(text)
    if not all(0 < radius < float("inf") for radius in radii):
        raise argparse.ArgumentTypeError(f"every radius must be positive and finite, got {text!r}")
    return radii


def _positive(text: str) -> float:
    numbers = _floats(text)
    if len(numbers) != 1 or not 0 < numbers[0] < float("inf"):
        raise argparse.ArgumentTypeError(f"a positive number is needed, got {text!r}")
    return numbers[0]


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got {text!r}")
    return int(text)


def _suites() -> str:
    return "; ".join(f"'{name}', which stands for {', '.join(attacks)}" for name, attacks in SUITES.items())


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    raw: Any = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog=PROGRAM, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_audit(commands.add_parser("audit", help="audit a trained agent", description=AUDIT_HELP, formatter_class=raw))
    text = "Train a small agent, pruned as it trains, then audit it."
    _add_demo(commands.add_parser("demo", help="train and audit a small agent", description=text))
    return parser


def _add_audit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL.zip", help="SB3 model; several files: the same agent trained with several seeds")
    add("--env", required=True, metavar="ID", help="gymnasium environment id")
    add("--vec-normalize", nargs="+", default=[], metavar="F", help="VecNormalize statistics: one file, or one for each model")
    add("--algo", choices=list(ALGORITHMS), help="default: told from the file")
    add("--eps", type=float, required=True, metavar="E", help="radius of the attack, in units of what the network receives")
    add("--norm", choices=NORMS, default="linf", help="norm of the attack's ball (default: %(default)s)")
    default = "random,fgsm,mad,critic"
    text = f"of {', '.join(ATTACKS)} (with #2 behind it: another seed), and {_suites()} (default: {default})"
    add("--attacks", type=_names, default=_names(default), metavar="A,B", help=text)
    text = "CPU seconds that each attack may learn for each model, sparsity and mode (default: its own, some minutes)"
    add("--attack-seconds", type=_positive, metavar="S", help=text)
    text = "the same in environment steps, which is reproducible; with both, whichever is reached first"
    add("--attack-steps", type=_positive_int, metavar="N", help=text)
    levels = "0,0.3,0.5,0.7,0.8,0.9,0.95"
    add(
        "--sparsities", type=_numbers, default=_numbers(levels), metavar="S,S", help=f"in [0, 1); 0 always (default: {levels})"
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
    add("--clip-rewards", type=_pair, metavar="LOW,HIGH", help=text)
    text = "further radii for certified against attacked returns over eps (default: 1/256, 1/64, 1/16, 1/4 of --eps)"
    add("--eps-grid", type=_radii, default=(), metavar="E,E", help=text)
    text = "also certify policy smoothing: the same network on observations with noise of this standard deviation"
    add("--smoothing-std", type=float, metavar="S", help=text)
    add("--gamma", type=float, help="discount of the certificates (default: the model's)")
    add("--confidence", type=float, default=0.95, help="level of the intervals (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the first episode (default: %(default)s)")
    add("--out", default="audit-report", metavar="DIR", help="folder for the report (default: %(default)s)")
    parser.set_defaults(run=_audit)


def _add_modes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    text = "only play the mode of the policy's distribution (default: both); nothing is certified then"
    group.add_argument("--deterministic", dest="modes", action="store_const", const=("deterministic",), help=text)
    text = "only play samples of the policy's distribution"
    group.add_argument("--stochastic", dest="modes", action="store_const", const=("stochastic",), help=text)
    parser.set_defaults(modes=MODES)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    env = next(iter(RECIPES))
    add("--env", choices=list(RECIPES), default=env, help="(default: %(default)s)")
    add("--timesteps", type=int, metavar="N", help="environment steps of training (default: enough to see the point)")
    add("--episodes", type=int, default=20, metavar="N", help="for each sparsity, attack and mode (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of training and of the first episode (default: %(default)s)")
    add("--out", default="demo-report", metavar="DIR", help="folder for the report (default: %(default)s)")
    parser.set_defaults(run=_demo)


def _rewards(args: argparse.Namespace) -> RewardRange:
    if args.clip_rewards is None:
        return reward_range(args.env, args.reward_min, args.reward_max)
    if args.reward_min is not None or args.reward_max is not None:
        raise ValueError("clip-rewards was given together with reward-min or reward-max: it is one or the other")
    return clipped_rewards(*args.clip_rewards)


def _attack_budget(args: argparse.Namespace) -> Budget | None:
    if args.attack_steps is None and args.attack_seconds is None:
        return None
    if not any(is_fitted_attack(name) for name in expand(args.attacks) if is_known(name)):
        raise ValueError(f"attack-seconds or attack-steps was given, but none of {', '.join(args.attacks)} learns")
    return Budget(args.attack_steps, args.attack_seconds)


def _audit(args: argparse.Namespace, command: str) -> None:
    settings: dict[str, Any] = dict(
        eps=args.eps,
        norm=args.norm,
        attacks=args.attacks,
        n_episodes=args.episodes,
        modes=args.modes,
        seed=args.seed,
        confidence=args.confidence,
        rewards=_rewards(args),
        eps_grid=args.eps_grid,
        smoothing_std=args.smoothing_std,
        attack_budget=_attack_budget(args),
    )
    Settings(**settings)  # what is wrong is said before anything is loaded
    n_envs = min(args.episodes, MAX_ENVS) if args.n_envs is None else args.n_envs
    make_single(args.env).close()
    pruning = {"scores": "magnitude", "distribution": args.distribution, "targets": ("actor",)}
    folder = prepare_folder(args.out)
    subjects = load_subjects(args.env, args.models, args.vec_normalize, args.sparsities, n_envs, args.algo, **pruning)
    gamma = common_gamma([subject.model for subject in subjects]) if args.gamma is None else args.gamma
    settings.update(gamma=gamma, horizon=horizon_of(subjects[0].agent.venv))
    description = (
        "Copies were pruned by magnitude after the fact, without retraining: hidden layers of the actor, zeros shared over "
        f"layers by '{args.distribution}'. Sparsity is that of the pruned layers."
    )
    _run(
        "audit",
        subjects,
        Settings(**settings),
        args.env,
        command,
        {"description": description, **pruning},
        folder,
        Store(folder / PROGRESS),
    )


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
    _run("demo", [subject], settings, args.env, command, pruning, folder)


def _run(
    kind: str,
    subjects: list[Subject],
    settings: Settings,
    env: str,
    command: str,
    pruning: dict[str, Any],
    folder: Path,
    store: Store | None = None,
) -> None:
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
    header = f"{'sparsity':>8} {'clean':>10} {'worst':>10} {'(attack)':>{width}} {'certified TV':>13} {'eps for half':>13}"
    lines.append(header)
    for point, name in zip(record["modes"][mode]["points"], names, strict=True):
        certificate = point["certificate"] or {}
        tv, half = certificate.get("tv"), certificate.get("certified_return", {}).get("half", {}).get("eps")
        shown = "-" if tv is None else f"{tv['mean']:.4f}"
        radius = "-" if half is None else f"{half:.2g}"
        clean, worst = point["clean"]["mean"], point["worst"]
        cells = f"{clean:>10.1f} {worst['mean']:>10.1f} {name:>{width}} {shown:>13} {radius:>13}"
        lines.append(f"{point['sparsity']:>8.2f} {cells}")
    lines.append("eps for half: the largest tried at which half of the clean return is certified (-: not certified)")
    return "\n".join(lines)


def _continue(args: argparse.Namespace) -> str:
    if args.command != "audit":
        return ""
    return f"; what was finished is kept in {Path(args.out) / PROGRESS}: run the same command again to continue"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: without the program's name; ``None``: those of the process
    :return: exit code: 0, 2 for wrong input, 130 when interrupted
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    th.set_num_threads(1)  # small networks: a second thread only slows them down
    args = build_parser().parse_args(arguments)
    try:
        args.run(args, shlex.join([PROGRAM, *arguments]))
    except (ValueError, NoAttackError) as error:
        print(f"{PROGRAM} {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM} {args.command}: interrupted; no report was written{_continue(args)}", file=sys.stderr)
        return 130
    return 0
