"""The package's own algorithms by their names: trained, continued, played, attacked, audited and tuned as RL Zoo's are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_prune_robust import sparsity, tuning
from sb3_prune_robust.cli import main
from sb3_prune_robust.defences import ALGORITHMS, SAPPO
from sb3_prune_robust.evaluation.loading import guess_algorithm, load_model

tuning.register()  # each test by itself, in whatever order

RUN = "sappo/Pendulum-v1_1"
SMALL = ["-params", "n_envs:2", "n_steps:64"]
ENVS = dict.fromkeys(ALGORITHMS, "Pendulum-v1") | {"sa_dqn": "CartPole-v1"}


def command(name: str, folder: Path, *options: object, algo: str = "sappo", env: str = "Pendulum-v1") -> int:
    return main([name, "--algo", algo, "--env", env, "-f", str(folder), *map(str, options)])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    th.set_num_threads(1)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    options = ["-n", 512, "--eval-freq", 256, "--eval-episodes", 1, "--save-freq", 256, "--seed", 1, *SMALL]
    assert command("train", folder, *options, "eps:0.2") == 0
    return folder


def test_training_by_its_name(logs: Path) -> None:
    names = {path.name for path in (logs / RUN).iterdir()}
    assert {"Pendulum-v1.zip", "best_model.zip", "evaluations.npz", "rl_model_256_steps.zip"} <= names
    model = SAPPO.load(logs / RUN / "Pendulum-v1.zip", device="cpu")
    assert (model.eps, model.kappa, model.num_timesteps) == (0.2, 0.2, 512)  # eps of the command, kappa of the entry
    untrained = SAPPO("MlpPolicy", "Pendulum-v1", seed=1, device="cpu").policy.state_dict()
    assert not all(weight.equal(untrained[name]) for name, weight in model.policy.state_dict().items())


def test_continuing(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The zoo starts counting steps anew, and with them the schedule: it must be switched off to go on at full radius."""
    before = logs / RUN / "Pendulum-v1.zip"
    options = ["-n", 128, "-i", before, "--eval-freq", -1, "--log-interval", 1, *SMALL, "eps:0.3"]
    assert command("train", tmp_path, *options, "eps_schedule:'constant'") == 0
    shown = capsys.readouterr().out
    assert "Loading pretrained agent" in shown and "Loading saved VecNormalize stats" in shown
    went_on = SAPPO.load(tmp_path / RUN / "Pendulum-v1.zip", device="cpu")
    assert went_on.eps_now == went_on.eps == 0.3
    old, new = (model.policy.state_dict() for model in (SAPPO.load(before, device="cpu"), went_on))
    moved = max(float((old[name] - new[name]).abs().max()) for name in old)
    assert 0 < moved < 0.05  # from where it was, not from new weights


def test_pruning_and_a_lipschitz_policy_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "both.yml"
    entry: dict[str, Any] = dict(n_envs=2, n_timesteps=512, n_steps=64, normalize=True, eps=0.1, kappa=0.2)
    entry["policy"] = "sb3_prune_robust.policies.LipschitzGaussianPolicy"
    entry["callback"] = [{"sb3_prune_robust.pruning.PruningCallback": {"final_sparsity": 0.7}}]
    file.write_text(yaml.dump({"Pendulum-v1": entry}))
    assert command("train", tmp_path, "--conf-file", file, "--eval-freq", -1) == 0
    model = SAPPO.load(tmp_path / RUN / "Pendulum-v1.zip", device="cpu")
    assert sparsity(model)["actor"] == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("which", [[], ["--load-best"], ["--load-checkpoint", 256]])
def test_evaluation_under_attack(which: list[object], logs: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation.json"
    options = ["--attacks", "random,mad", "--eps", 0.2, "--episodes", 2, "--out", out, *which]
    assert command("evaluate", logs, *options) == 0
    record = json.loads(out.read_text())
    assert record["run"]["algo"] == "sappo" and set(record["attacks"]) == {"random", "mad"}
    assert all(cell["perturbed"] > 0.9 for cell in record["attacks"].values())


def test_enjoy_plays(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.argv)
    assert command("enjoy", logs, "-n", 250, "--no-render", "--load-best") == 0
    shown = capsys.readouterr().out
    assert "Mean reward" in shown and "best_model.zip" in shown and sys.argv == before


def test_enjoy_looks_where_train_writes(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("rl_zoo3.enjoy.enjoy", lambda: seen.extend(sys.argv[1:]))
    assert main(["enjoy", "--algo", "sappo", "--env-kwargs", "g:9"]) == 0
    assert seen == ["--folder", "logs", "--num-threads", "1", "--algo", "sappo", "--env-kwargs", "g:9"]


def test_audit_tells_it_from_the_file(logs: Path, tmp_path: Path) -> None:
    run, out = logs / RUN, tmp_path / "report"
    options = ["--vec-normalize", run / "Pendulum-v1" / "vecnormalize.pkl", "--eps", 0.1, "--attacks", "random", "--out", out]
    arguments = [run / "Pendulum-v1.zip", "--env", "Pendulum-v1", *options, "--sparsities", "0", "--episodes", 2]
    assert main(["audit", *map(str, arguments)]) == 0
    assert json.loads((out / "report.json").read_text())["models"][0]["algorithm"] == "sappo"


def test_tune_searches_what_the_entry_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tuned.yml"
    options = ["--eps", "0.1", "--n-trials", "1", "--timesteps", "256", "--episodes", "1", "--out", str(out)]
    assert main(["tune", "--algo", "certified_ppo", "--env", "CartPole-v1", *options]) == 0
    (entry,) = yaml.safe_load(out.read_text()).values()
    assert entry["policy"] == "MlpPolicy" and entry["eps"] == 0.05 and "callback" not in entry
    shown = capsys.readouterr().out  # of one trial, the entry itself
    assert "kappa=0.1\n" in shown
    assert f"sb3-prune-robust train --algo certified_ppo --env CartPole-v1 --conf-file {out}" in shown
    assert main(["tune", "--algo", "sapo", "--env", "CartPole-v1", *options]) == 2
    assert "'sapo' is unknown; known: a2c, atla_ppo, certified_ppo" in capsys.readouterr().err


def test_the_zoos_own_optimisation_samples_as_for_what_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled: list[Any] = []
    sampler = HYPERPARAMS_SAMPLER["sappo"]
    small = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}

    def spy(*arguments: Any) -> dict[str, Any]:
        sampled.append(sampler(*arguments))
        return {**sampled[-1], **small}

    monkeypatch.setitem(HYPERPARAMS_SAMPLER, "sappo", spy)
    options = ["-n", 256, "-optimize", "--n-trials", 1, "--n-evaluations", 1, "--eval-episodes", 1, "--no-optim-plots"]
    assert command("train", tmp_path, *options, env="CartPole-v1") == 0
    assert {"gamma", "learning_rate", "clip_range"} <= set(sampled[0])
    assert "Number of finished trials:  1" in capsys.readouterr().out


def test_a_fresh_process_knows_them() -> None:
    """Whose zoo has not met this package yet: the launcher must bring them together before the zoo reads --algo."""
    command = [sys.executable, "-m", "sb3_prune_robust", "enjoy", "--algo", "sapo"]
    shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert shown.returncode == 2 and all(algo in shown.stderr.splitlines()[-1] for algo in ALGORITHMS)


@pytest.mark.parametrize("name", ["train", "enjoy"])
def test_an_unknown_name_lists_ours(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--conf-file", "mine.yml"] if name == "train" else []
    with pytest.raises(SystemExit) as stop:
        command(name, tmp_path, *options, algo="sapo")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "invalid choice: 'sapo'" in error and all(algo in error for algo in ALGORITHMS)
    assert command("evaluate", tmp_path, "--eps", 0.1, algo="sapo") == 2
    assert "algo 'sapo' is unknown to RL Zoo; known: a2c" in (error := capsys.readouterr().err) and "sappo" in error
    assert command("train", tmp_path, algo="sapo") == 2
    assert "algo 'sapo' has no hyperparameters here; those that have: a2c, atla_ppo" in capsys.readouterr().err


def test_registering_again_changes_nothing_and_takes_nothing_from_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name: ALGOS[name] for name in ALGORITHMS} == ALGORITHMS
    zoos: Any = type("Theirs", (BaseAlgorithm,), {})
    monkeypatch.setitem(ALGOS, "sappo", zoos)
    samplers = dict(HYPERPARAMS_SAMPLER)
    tuning.register_algorithms()
    tuning.register()
    assert ALGOS["sappo"] is zoos and samplers == HYPERPARAMS_SAMPLER


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_is_told_from_its_file(algo: str, tmp_path: Path) -> None:
    settings = {"buffer_size": 10} if algo in ("sa_sac", "sa_td3", "sa_dqn") else {"n_steps": 8, "batch_size": 8}
    model = ALGORITHMS[algo]("MlpPolicy", ENVS[algo], device="cpu", seed=0, **settings)
    model.save(tmp_path / "model.zip")
    assert guess_algorithm(tmp_path / "model.zip") == algo
    loaded = load_model(tmp_path / "model.zip")
    assert type(loaded) is ALGORITHMS[algo]
    observation = np.full(model.observation_space.shape, 0.1, np.float32)  # type: ignore[arg-type]
    played, before = (one.predict(observation, deterministic=True)[0] for one in (loaded, model))
    np.testing.assert_array_equal(played, before)
