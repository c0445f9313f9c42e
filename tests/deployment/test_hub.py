"""The files of a zoo run for the hub, taken up again by the zoo's own ``load_from_hub``; no network is used."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from stable_baselines3 import PPO

from sb3_prune_robust.defences import SAPPO
from sb3_prune_robust.deployment import card_section, hub, save_for_hub
from sb3_prune_robust.pruning import prune_policy

REPORT = Path(__file__).parents[2] / "docs" / "results" / "demo" / "report.json"
ENV = "CartPole-v1"
CONFIG = {ENV: dict(n_timesteps=128, policy="MlpPolicy", n_steps=64, batch_size=64, normalize="dict(norm_obs=True)")}
PLAIN = {ENV: {key: value for key, value in CONFIG[ENV].items() if key != "normalize"}}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the zoo's own training: 1 normalises its observations, 2 does not."""
    folder = tmp_path_factory.mktemp("zoo")
    for name, config in (("a", CONFIG), ("b", PLAIN)):
        (folder / f"{name}.yml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "ppo", "--env", ENV, "--conf-file", f"{name}.yml"]
        command += ["-f", "logs", "--eval-freq", "64", "--eval-episodes", "1", "--device", "cpu"]
        command += ["--env-kwargs", "max_episode_steps:20"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder / "logs"


def download(monkeypatch: pytest.MonkeyPatch, repository: Path, folder: Path) -> Path:
    """``rl_zoo3.load_from_hub`` with the repository a folder."""
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3 import load_from_hub as module

    def fetch(repo_id: str, filename: str) -> str:
        assert repo_id == "someone/ppo-CartPole-v1"
        if not (repository / filename).exists():
            raise module.HTTPError(f"404: {filename}")
        return str(repository / filename)

    monkeypatch.setattr(module, "load_from_hub", fetch)
    module.download_from_hub("ppo", EnvironmentName(ENV), 0, str(folder), "someone")
    return folder / "ppo" / f"{ENV}_1"


@pytest.mark.parametrize(("exp_id", "normalizes"), [(1, True), (2, False)])
def test_the_zoo_takes_it_up_again(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exp_id: int, normalizes: bool
) -> None:
    repository = save_for_hub("ppo", ENV, logs, tmp_path / "repository", exp_id, n_eval_episodes=2)
    run = download(monkeypatch, repository, tmp_path / "downloaded")
    original = logs / "ppo" / f"{ENV}_{exp_id}"
    kept = [f"{ENV}.zip", f"{ENV}/config.yml", f"{ENV}/args.yml", "evaluations.npz", "0.monitor.csv"]
    kept += [f"{ENV}/vecnormalize.pkl"] if normalizes else []
    assert all((run / name).read_bytes() == (original / name).read_bytes() for name in kept)
    assert (run / ENV / "vecnormalize.pkl").exists() is normalizes
    assert yaml.safe_load((run / ENV / "env_kwargs.yml").read_text()) == {"max_episode_steps": 20}
    results = json.loads((repository / "results.json").read_text())
    assert results["n_eval_episodes"] == 2 and 1 <= results["mean_reward"] <= 20 and results["is_deterministic"]

    from rl_zoo3.utils import create_test_env, get_saved_hyperparams  # and plays it, as rl_zoo3.enjoy does

    hyperparams, stats = get_saved_hyperparams(str(run / ENV))
    venv = create_test_env(ENV, stats_path=stats, hyperparams=hyperparams, should_render=False)
    action, _ = PPO.load(run / f"{ENV}.zip", env=venv, device="cpu").predict(venv.reset(), deterministic=True)
    assert action.shape == (1,)


def test_card_and_its_head(logs: Path, tmp_path: Path) -> None:
    repository = save_for_hub("ppo", ENV, logs, tmp_path / "repository", 1, n_eval_episodes=2)
    results = json.loads((repository / "results.json").read_text())
    card = ModelCard.load(repository / "README.md")
    (result,) = card.data.eval_results
    assert card.data.library_name == "stable-baselines3" and {ENV, "reinforcement-learning"} <= set(card.data.tags)
    assert result.dataset_type == ENV and result.metric_type == "mean_reward"
    assert result.metric_value == f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    assert "runs code from its file" in card.text and "No attack on the observations was tried" in card.text
    assert "sb3-prune-robust" not in card.text  # plain SB3's policy: the package is not needed


def test_the_best_model_and_the_latest_run(logs: Path, tmp_path: Path) -> None:
    repository = save_for_hub("ppo", ENV, logs, tmp_path / "repository", load_best=True, n_eval_episodes=1)
    stored = (repository / f"ppo-{ENV}.zip").read_bytes()
    assert stored == (logs / "ppo" / f"{ENV}_2" / "best_model.zip").read_bytes()
    with zipfile.ZipFile(repository / "train_eval_metrics.zip") as archive:
        assert set(archive.namelist()) == {"evaluations.npz", "0.monitor.csv"}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def report_of(path: Path, tmp_path: Path) -> Path:
    record = json.loads(REPORT.read_text())
    statistics = path.parent / ENV / "vecnormalize.pkl"
    record["settings"]["env"] = ENV
    record["models"][0].update(sha256=digest(path), vec_normalize_sha256=digest(statistics) if statistics.exists() else None)
    (tmp_path / "report.json").write_text(json.dumps(record))
    return tmp_path / "report.json"


def test_report_of_this_file_only(logs: Path, tmp_path: Path) -> None:
    report = report_of(logs / "ppo" / f"{ENV}_1" / f"{ENV}.zip", tmp_path)
    repository = save_for_hub("ppo", ENV, logs, tmp_path / "repository", 1, report=report, n_eval_episodes=1)
    assert (repository / "report.json").read_bytes() == report.read_bytes()
    assert "eps = 0.01" in (repository / "README.md").read_text()
    with pytest.raises(ValueError, match=r"report is of other model files .* audit that file"):
        save_for_hub("ppo", ENV, logs, tmp_path / "other", 2, report=report)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("part", "changed", "message"),
    [
        ("settings", {"env": "Acrobot-v1"}, r"report was measured on Acrobot-v1, and the model is of"),
        ("models", {"vec_normalize_sha256": "0" * 64}, "report was measured with other statistics of VecNormalize"),
    ],
)
def test_report_of_this_agent_only(part: str, changed: Any, message: str, logs: Path, tmp_path: Path) -> None:
    report = report_of(logs / "ppo" / f"{ENV}_1" / f"{ENV}.zip", tmp_path)
    record = json.loads(report.read_text())
    (record[part] if part == "settings" else record[part][0]).update(changed)
    report.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        save_for_hub("ppo", ENV, logs, tmp_path / "repository", 1, report=report)


def test_wrong_runs_are_named(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"algo 'pp0' is unknown to the zoo; known: .*ppo"):
        save_for_hub("pp0", ENV, logs, tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds no run of ppo on CartPole-v1"):
        save_for_hub("ppo", ENV, logs, tmp_path / "out", exp_id=7)
    with pytest.raises(ValueError, match=r"exists already"):
        save_for_hub("ppo", ENV, logs, tmp_path, exp_id=1)


# The section ------------------------------------------------------------------------------------------------------------


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.-])-?\d+(?:\.\d+)?(?![\w.])", text))


def test_section_holds_what_was_measured_and_nothing_else() -> None:
    record = json.loads(REPORT.read_text())
    text = card_section(REPORT)
    cell = record["modes"]["deterministic"]["points"][0]["attacks"]["critic"]
    assert all(f"{cell[key]:.0f}" in text for key in ("mean", "low", "high"))
    assert "eps = 0.01" in text and "20 episodes" in text and "[interval at 95%]" in text and record["command"] in text
    assert all(name in text for name in record["settings"]["attacks"])
    # every number of the tables is a rounded one of the record, whatever else stands in it
    known = [value for value in leaves(record["modes"]) if isinstance(value, float)]
    rounded = {f"{v:.0f}" for v in known} | {f"{v:.4g}" for v in known} | {f"{100 * v:.0f}" for v in known}
    rows = "\n".join(line for line in text.splitlines() if line.startswith("| "))
    assert len(numbers(rows)) > 50 and numbers(rows) <= rounded


def leaves(value: Any) -> Any:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        yield value
        return
    for part in value:
        yield from leaves(part)


def test_no_number_where_no_attack_happened() -> None:
    record = copy.deepcopy(json.loads(REPORT.read_text()))
    for result in record["modes"].values():
        for point in result["points"]:
            point["attacks"]["critic"] = {"not_attacked": "it has no critic"}
    assert card_section(record).count("not attacked: it has no critic") == sum(
        len(result["points"]) for result in record["modes"].values()
    )


def test_sparsity_is_counted() -> None:
    model = PPO("MlpPolicy", ENV, device="cpu")
    prune_policy(model, 0.75)
    text = card_section(model=model)
    weights = [module.weight for module in model.policy.mlp_extractor.policy_net if hasattr(module, "weight")]
    share = np.mean([float(entry == 0) for weight in weights for entry in weight.flatten()])
    assert f"{share:.1%} of the actor's hidden layers" in text and f"{share:.1%}" == "75.0%"
    assert "eps" not in text and "No attack on the observations was tried" in text


def test_section_of_nothing_or_of_another_version() -> None:
    with pytest.raises(ValueError, match=r"needs a report or a model, got neither"):
        card_section()
    with pytest.raises(ValueError, match=r"schema version 2, got version 1"):
        card_section({"schema_version": 1})


@pytest.mark.parametrize(
    ("typed", "of_entry", "expected"), [(None, {"k": 1}, {"k": 1}), ({"k": 2}, {"k": 1}, {"k": 2}), (None, None, {})]
)
def test_arguments_of_the_environment_are_those_of_the_run(typed: Any, of_entry: Any, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "args.yml").write_text(yaml.dump(OrderedDict(env_kwargs=typed)))
    entry = OrderedDict(n_envs=1) if of_entry is None else OrderedDict(env_kwargs=of_entry)
    (tmp_path / "config.yml").write_text(yaml.dump(entry))
    assert hub._env_kwargs(tmp_path) == expected


def test_usage_of_an_algorithm_that_the_zoo_does_not_know() -> None:
    """What the card says to type finds it: the zoo's own loader would refuse the name."""
    results = dict(mean_reward=1.0, std_reward=0.0, n_eval_episodes=2, is_deterministic=True, eval_datetime="now")
    card = hub._card("sappo", ENV, SAPPO("MlpPolicy", ENV, n_steps=16, batch_size=16), results, None)
    assert (
        f"sb3-prune-robust enjoy --algo sappo --env {ENV} -f logs/" in card and "pip install rl_zoo3 sb3-prune-robust" in card
    )
    (code,) = re.findall(r'^TRUST_REMOTE_CODE=True python -c "(.*)" --algo sappo', card, re.MULTILINE)
    help_text = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True).stdout
    assert "sappo" in help_text
