"""Sharing on the Hugging Face hub: a section for the model card, and the files of a zoo run as ``load_from_hub`` wants them.

Nothing here goes to the network: what is written is a folder, to be looked at and then uploaded.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_prune_robust.evaluation.tables import interval, number, table
from sb3_prune_robust.pruning import sparsity

SCHEMA_VERSION = 2  # of the reports read here, docs/report_schema.md
Record = Mapping[str, Any]

# RL Zoo knows this package's algorithms once this module was imported.
_LOADER = "-c \"import runpy, sb3_prune_robust.zoo; runpy.run_module('rl_zoo3.load_from_hub', run_name='__main__')\""

PICKLE_WARNING = (
    "**Loading a model runs code from its file.** SB3's `.zip` and `vec_normalize.pkl` hold pickled Python objects: whoever "
    "made them can run code on your machine when you load them. Load files only from people whom you trust."
)


def card_section(report: Record | str | Path | None = None, model: Any = None) -> str:
    """
    A section of a model card: sparsity, and what an audit measured. Each number in it stands in the report or is counted.

    :param report: an audit's ``report.json``, or its content; ``None``: the section says that no attack was tried
    :param model: the model, whose zeros are counted; ``None``: no sparsity is given
    :return: Markdown
    :raises ValueError: if both are missing, or for a report of another schema version
    """
    if report is None and model is None:
        raise ValueError("card_section needs a report or a model, got neither")
    lines = ["## Sparsity and robustness"]
    lines += [] if model is None else _sparsity(model)
    if report is None:
        lines.append("No attack on the observations was tried on this model: nothing is known of its robustness.")
    else:
        lines += _measured(read_report(report))
    return "\n\n".join(lines) + "\n"


def read_report(report: Record | str | Path) -> Record:
    """
    :param report: a ``report.json``, or its content
    :return: its content
    :raises ValueError: if it is not a report of the schema version read here
    """
    record = report if isinstance(report, Mapping) else json.loads(Path(report).read_text())
    version = record.get("schema_version") if isinstance(record, Mapping) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"report must be an audit's report.json of schema version {SCHEMA_VERSION}, got version {version!r}")
    return record


def _sparsity(model: Any) -> list[str]:
    shares = sparsity(model)
    rows = [[name, f"{share:.1%}"] for name, share in shares["layers"].items()]
    return [
        f"Weights that are exactly zero: {shares['actor']:.1%} of the actor's hidden layers, {shares['total']:.1%} of all "
        "weight matrices.",
        table(["layer", "zeros"], rows),
    ]


def _measured(record: Record) -> list[str]:
    settings = record["settings"]
    moved = "each entry of the observation" if settings["norm"] == "linf" else "the observation, in Euclidean norm,"
    names = ", ".join(f"`{model['name']}`" for model in record["models"])
    lines = [
        f"Measured on {settings['env']} with {names}: at each step an adversary moves {moved} by at most "
        f"**eps = {settings['eps']:g}**, in units of what the network receives; the environment moves from the true state. "
        f"{settings['n_episodes']} episodes for each agent, sparsity, attack and mode, seeds from {settings['seed']}; mean "
        f"return [interval at {settings['confidence']:.0%}]. {record['pruning']['description']}",
    ]
    for mode, result in record["modes"].items():
        lines += [f"### {mode.capitalize()} actions", _returns(result["points"], settings["attacks"])]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines += [
        "A return under attack bounds the return under the worst adversary from above only: a stronger attack may lower it.",
        f"Made {record['created']} by `{record['command']}` with {versions}; all returns and bounds are in `report.json`.",
    ]
    return lines


def _returns(points: list[Record], attacks: list[str]) -> str:
    rows = []
    for point in points:
        worst = f"{number(point['worst']['mean'])} ({point['worst']['attack'] or 'each agent its own'})"
        attacked = (_attacked(point["attacks"][name]) for name in attacks)
        rows.append([f"{point['reached']['actor']:.0%}", interval(point["clean"]), *attacked, worst])
    return table(["zeros in the actor's hidden layers", "clean", *attacks, "worst"], rows)


def _attacked(cell: Record) -> str:
    return f"not attacked: {cell['not_attacked']}" if "not_attacked" in cell else interval(cell)


def save_for_hub(
    algo: str,
    env: str,
    folder: str | Path,
    out: str | Path,
    exp_id: int = 0,
    load_best: bool = False,
    report: str | Path | None = None,
    n_eval_episodes: int = 10,
) -> Path:
    """
    Write the files of a zoo run as ``rl_zoo3.load_from_hub`` expects them in a repository, with a model card.

    ``<algo>-<env>.zip`` (the model file as it is), ``config.yml``, ``args.yml``, ``env_kwargs.yml``,
    ``train_eval_metrics.zip``, ``vec_normalize.pkl`` if the run normalises, ``results.json`` (the model plays
    deterministically, not attacked, as in ``rl_zoo3.push_to_hub``), ``README.md``, and ``report.json`` if one is given.

    :param algo: the zoo's name of the algorithm, e.g. ``"ppo"``
    :param env: environment id
    :param folder: the zoo's log folder, e.g. ``"logs"``; of your own runs only, as its files are unpickled
    :param out: a new folder to write
    :param exp_id: number of the run, 0: the latest, as in the zoo
    :param load_best: the best model instead of the last one
    :param report: ``report.json`` of an audit of this very model file
    :param n_eval_episodes: episodes of ``results.json``
    :return: ``out``
    :raises ValueError: if there is no such run, ``out`` exists, or the report is of another model file, other statistics of
        VecNormalize or another environment
    """
    out, (model_path, run_path) = Path(out), find_run(algo, env, folder, exp_id, load_best)
    if out.exists():
        raise ValueError(f"out {out} exists already; a new folder is written")
    if report is not None:
        _check_report(read_report(report), model_path, run_path / "vecnormalize.pkl", env)
    out.mkdir(parents=True)
    shutil.copy(model_path, out / f"{algo}-{_file_name(env)}.zip")
    for name in ("args.yml", "config.yml"):
        shutil.copy(run_path / name, out / name)
    if (run_path / "vecnormalize.pkl").is_file():
        shutil.copy(run_path / "vecnormalize.pkl", out / "vec_normalize.pkl")
    env_kwargs = _env_kwargs(run_path)
    (out / "env_kwargs.yml").write_text(yaml.dump(env_kwargs))
    _zip_metrics(run_path.parent, out / "train_eval_metrics.zip")
    model, results = _evaluate(algo, env, model_path, run_path, env_kwargs, n_eval_episodes)
    (out / "results.json").write_text(json.dumps(results))
    if report is not None:
        shutil.copy(report, out / "report.json")
    (out / "README.md").write_text(_card(algo, env, model, results, report))
    return out


def find_run(algo: str, env: str, folder: str | Path, exp_id: int, load_best: bool) -> tuple[Path, Path]:
    """
    :param algo: the zoo's name of the algorithm
    :param env: environment id
    :param folder: the zoo's log folder
    :param exp_id: number of the run, 0: the latest
    :param load_best: the best model instead of the last one
    :return: the model's file, and the folder of the run's configuration
    :raises ValueError: if there is none
    """
    from rl_zoo3.utils import ALGOS, get_model_path  # slow imports

    from sb3_prune_robust.tuning import register_algorithms

    register_algorithms()
    if algo not in ALGOS:
        raise ValueError(f"algo {algo!r} is unknown to the zoo; known: {', '.join(sorted(ALGOS))}")
    try:
        _, model_path, log_path = get_model_path(exp_id, str(folder), algo, _file_name(env), load_best)
    except AssertionError as error:
        raise ValueError(f"folder {folder} holds no run of {algo} on {env}: {error}") from error
    run_path = Path(log_path) / _file_name(env)
    missing = [name for name in ("args.yml", "config.yml") if not (run_path / name).is_file()]
    if missing:
        raise ValueError(f"folder {run_path} is not the configuration of a zoo run: {' and '.join(missing)} missing")
    return Path(model_path), run_path


def _file_name(env: str) -> str:
    """As ``huggingface_sb3.EnvironmentName``: no slashes, no module before a colon."""
    return env.replace("/", "-").split(":")[-1]


def _check_report(record: Record, model_path: Path, statistics: Path, env: str) -> None:
    if record["settings"]["env"] != env:
        raise ValueError(f"report was measured on {record['settings']['env']}, and the model is of {env}; audit it there")
    audited = [model for model in record["models"] if model["sha256"] == _digest(model_path)]
    if not audited:
        names = ", ".join(str(model["path"] or model["name"]) for model in record["models"])
        raise ValueError(
            f"report is of other model files ({names}) than {model_path}: its numbers would stand on the card of a model "
            "that they were not measured on; audit that file"
        )
    if all(model["vec_normalize_sha256"] != _digest(statistics) for model in audited):
        raise ValueError(
            f"report was measured with other statistics of VecNormalize than the run's ({statistics}, if it is there), "
            "which make another agent; audit with --vec-normalize where the run has them"
        )


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _env_kwargs(run_path: Path) -> dict[str, Any]:
    """Those of training's command line, which the zoo lets replace those of the entry."""
    texts = [(run_path / name).read_text() for name in ("args.yml", "config.yml")]
    given, config = (dict(yaml.load(text, Loader=yaml.UnsafeLoader)) for text in texts)  # the zoo writes Python objects
    return dict(given["env_kwargs"] or config.get("env_kwargs") or {})


def _zip_metrics(log_path: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in (log_path / "evaluations.npz", *sorted(log_path.glob("*.csv"))):
            if file.is_file():
                archive.write(file, arcname=file.name)


def _evaluate(
    algo: str, env: str, model_path: Path, run_path: Path, env_kwargs: dict[str, Any], n_episodes: int
) -> tuple[Any, dict[str, Any]]:
    import rl_zoo3.import_envs  # noqa: F401 (registers what the zoo knows)
    from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams

    hyperparams, stats_path = get_saved_hyperparams(str(run_path), test_mode=True)
    venv = create_test_env(env, stats_path=stats_path, hyperparams=hyperparams, env_kwargs=env_kwargs, should_render=False)
    model = ALGOS[algo].load(model_path, device="cpu")
    mean: Any
    std: Any
    mean, std = evaluate_policy(model, venv, n_eval_episodes=n_episodes, deterministic=True)
    venv.close()
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return model, {
        "mean_reward": float(mean),
        "std_reward": float(std),
        "is_deterministic": True,
        "n_eval_episodes": n_episodes,
        "eval_datetime": now,
    }


def metadata(algorithm: str, env: str, results: Record) -> dict[str, Any]:
    """
    The head of the model card, as the hub reads it.

    :param algorithm: class of the algorithm, e.g. ``"PPO"``
    :param env: environment id
    :param results: content of ``results.json``
    :return: the fields
    """
    score = f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    metric = {"type": "mean_reward", "value": score, "name": "mean_reward", "verified": False}
    return {
        "library_name": "stable-baselines3",
        "tags": [env, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3"],
        "model-index": [
            {"name": algorithm, "results": [{"task": task, "dataset": {"name": env, "type": env}, "metrics": [metric]}]}
        ],
    }


def _card(algo: str, env: str, model: Any, results: Record, report: str | Path | None) -> str:
    algorithm = type(model).__name__
    head = yaml.safe_dump(metadata(algorithm, env, results), sort_keys=False)
    ours, unknown = (type(one).__module__.startswith("sb3_prune_robust.") for one in (model.policy, model))
    needs = "rl_zoo3 sb3-prune-robust" if ours or unknown else "rl_zoo3"
    sections = [
        f"# {algorithm} on {env}",
        f"Mean return {results['mean_reward']:.2f}, standard deviation {results['std_reward']:.2f}, of "
        f"{results['n_eval_episodes']} episodes with deterministic actions, not attacked.",
        card_section(report, model).rstrip(),
        "## Usage",
        f"```\npip install {needs}\n"
        f"TRUST_REMOTE_CODE=True python {_LOADER if unknown else '-m rl_zoo3.load_from_hub'} "
        f"--algo {algo} --env {env} -orga ORGANISATION -f logs/\n"
        f"{'sb3-prune-robust enjoy' if unknown else 'python -m rl_zoo3.enjoy'} --algo {algo} --env {env} -f logs/\n```",
        PICKLE_WARNING,
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n"
