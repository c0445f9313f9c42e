"""The whole record of an audit, and its three files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_prune_robust.evaluation.figure import draw_frontier
from sb3_prune_robust.evaluation.figure_certified import draw_certified
from sb3_prune_robust.evaluation.frontier import Agent, Settings, frontier, pruned_copies
from sb3_prune_robust.evaluation.held_out import Watch
from sb3_prune_robust.evaluation.identity import versions
from sb3_prune_robust.evaluation.loading import as_trained, check_spaces, horizon_of, load_model, make_env
from sb3_prune_robust.evaluation.markdown import write_markdown
from sb3_prune_robust.evaluation.report import SCHEMA_VERSION, plain, to_json, write_files
from sb3_prune_robust.evaluation.settings import MODES
from sb3_prune_robust.evaluation.store import Store
from sb3_prune_robust.network import kind_of, samples
from sb3_prune_robust.pruning import sparsity

DEFAULT_ATTACKS = ("random", "fgsm", "mad", "critic")


@dataclass(frozen=True)
class Subject:
    """
    One agent of an audit, with what the report says of it.

    :param agent: its policies and environments
    :param model: the SB3 model they come from
    :param path: its file, ``None`` when it was trained on the spot
    :param vec_normalize: its statistics' file, ``None`` likewise or without one
    """

    agent: Agent
    model: Any
    path: Path | None = None
    vec_normalize: Path | None = None


def load_subjects(
    env: str,
    models: Sequence[str | Path],
    normalizers: Sequence[str | Path],
    sparsities: Sequence[float],
    n_envs: int,
    algorithm: str | None = None,
    **pruning: Any,
) -> list[Subject]:
    """
    Load the agents of an audit and prune copies of them. The files are read only.

    :param env: environment id
    :param models: model files: one agent, or the same agent trained with several seeds
    :param normalizers: VecNormalize files: none, one for all, or one for each model
    :param sparsities: sparsities to prune copies to; 0 is always added
    :param n_envs: environments to play in at a time
    :param algorithm: as :func:`~sb3_prune_robust.evaluation.loading.load_model`
    :param pruning: passed to :func:`~sb3_prune_robust.pruning.prune_policy`
    :return: one subject for each model
    :raises ValueError: for anything that does not fit
    """
    if len(normalizers) not in (0, 1, len(models)):
        raise ValueError(
            f"vec-normalize: {len(normalizers)} files given for {len(models)} models; give none, one, or one each"
        )
    files: list[Path | None] = [Path(file) for file in normalizers] or [None]
    if len(files) == 1:
        files *= len(models)
    if len({Path(path).resolve() for path in models}) != len(models):
        raise ValueError(f"model: the same file is given twice in {', '.join(map(str, models))}; seeds must be independent")
    subjects = []
    for path, file in zip(map(Path, models), files, strict=True):
        model = load_model(path, algorithm)
        venv = as_trained(model, make_env(env, n_envs, file))
        check_spaces(model, venv, f"model {path}")
        subjects.append(Subject(Agent(path.name, pruned_copies(model, sparsities, **pruning), venv), model, path, file))
    return subjects


def common_gamma(models: Sequence[Any]) -> float:
    """
    The discount that all models were trained with.

    :param models: SB3 models
    :return: their discount
    :raises ValueError: if they differ
    """
    if not all(hasattr(model, "gamma") for model in models):
        raise ValueError("gamma: ARS has no discount of its own; give one with --gamma")
    gammas = {float(model.gamma) for model in models}
    if len(gammas) > 1:
        raise ValueError(f"gamma: the models were trained with different discounts {sorted(gammas)}; choose one with --gamma")
    return gammas.pop()


def default_attacks(models: Sequence[Any]) -> tuple[str, ...]:
    """
    The attacks when none are named.

    :param models: SB3 models
    :return: :data:`DEFAULT_ATTACKS`, without ``"critic"`` where a model has none (ARS) or one with a memory (RecurrentPPO)
    """
    without = any(hasattr(model.policy, "lstm_actor") or kind_of(model.policy) == "linear" for model in models)
    return tuple(name for name in DEFAULT_ATTACKS if not (without and name == "critic"))


def modes_of(models: Sequence[Any], asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """
    The modes to play.

    :param models: SB3 models
    :param asked: for, ``None``: all there are
    :return: both, but of policies that never sample (TD3, DDPG, DQN, QRDQN, ARS) ``"deterministic"`` alone
    :raises ValueError: if samples are asked for of a policy that never samples
    """
    never = [type(model).__name__ for model in models if not samples(model.policy)]
    if never and asked is not None and "stochastic" in asked:
        raise ValueError(f"stochastic: {never[0]} plays without sampling; leave it out, or say deterministic")
    return ("deterministic",) if never else asked or MODES


def audit(
    subjects: Sequence[Subject],
    settings: Settings,
    env: str,
    command: str,
    pruning: Mapping[str, Any],
    notes: Sequence[str] = (),
    watch: Watch | None = None,
    kind: str = "audit",
    store: Store | None = None,
) -> dict[str, Any]:
    """
    Measure, certify and record.

    :param subjects: the agents
    :param settings: what to measure
    :param env: environment id
    :param command: the command line that makes this report
    :param pruning: how the agents were pruned; ``description`` is one or two sentences for the reader
    :param notes: further sentences for the reader
    :param watch: who is told of progress
    :param kind: ``"audit"`` or ``"demo"``
    :param store: where finished episodes and fitted attacks are kept, so that a killed audit continues; ``None``: nowhere
    :return: the record documented in ``docs/report_schema.md``
    """
    modes = frontier([subject.agent for subject in subjects], settings, watch, store)
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "versions": versions(),
        "settings": {"env": env, **asdict(settings), "n_envs": subjects[0].agent.venv.num_envs},
        "pruning": dict(pruning),
        "models": [_model_record(subject, settings.eps) for subject in subjects],
        "modes": modes,
        "notes": list(notes),
    }
    document: dict[str, Any] = plain(record)
    return document


def _model_record(subject: Subject, eps: float) -> dict[str, Any]:
    model, normalizer = subject.model, unwrap_vec_normalize(subject.agent.venv)
    return {
        "name": subject.agent.name,
        "path": None if subject.path is None else str(subject.path),
        "sha256": _digest(subject.path),
        "algorithm": type(model).__name__.lower(),
        "policy": type(model.policy).__name__,
        "n_parameters": sum(parameter.numel() for parameter in model.policy.parameters()),
        "sparsity_as_given": sparsity(model)["actor"],
        "timesteps": int(model.num_timesteps),
        "vec_normalize": _normalizer_name(subject, normalizer),
        "vec_normalize_sha256": _digest(subject.vec_normalize),
        "eps_raw": raw_eps(subject.agent.venv, eps),
    }


def _normalizer_name(subject: Subject, normalizer: VecNormalize | None) -> str | None:
    if normalizer is None:
        return None
    return "of this training" if subject.vec_normalize is None else str(subject.vec_normalize)


def raw_eps(venv: VecEnv, eps: float) -> list[float] | None:
    """
    The radius in the environment's own units, for each entry of the observation.

    VecNormalize hands on ``(obs - mean) / sqrt(var + epsilon)``.

    :param venv: environments
    :param eps: the radius in normalised units
    :return: ``eps * sqrt(var + epsilon)``; ``None`` when observations are not normalised
    """
    normalizer = unwrap_vec_normalize(venv)
    if normalizer is None or not normalizer.norm_obs:
        return None
    statistics: Any = normalizer.obs_rms
    scales = np.sqrt(np.ravel(statistics.var) + normalizer.epsilon)
    return [float(eps * scale) for scale in scales]


def _digest(path: Path | None) -> str | None:
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def write_report(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """
    Write ``report.md``, ``frontier.png``, ``certified.png`` where a return is certified, and ``report.json``, each whole or
    not.

    :param folder: where
    :param record: as :func:`audit` returns
    :return: the names of the files
    """
    files = {"report.md": write_markdown(record).encode(), "frontier.png": draw_frontier(record)}
    certified = draw_certified(record)
    if certified is None:  # one of an earlier report would be taken for this one's
        (folder / "certified.png").unlink(missing_ok=True)
    else:
        files["certified.png"] = certified
    files["report.json"] = to_json(record)
    write_files(folder, files)
    return list(files)


__all__ = [
    "Subject",
    "audit",
    "common_gamma",
    "horizon_of",
    "load_subjects",
    "modes_of",
    "raw_eps",
    "versions",
    "write_report",
]
