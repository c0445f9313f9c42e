"""RL Zoo as a user runs it: training, continuing, playing, training under attack, and evaluation under attack of runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from rl_zoo3.enjoy import enjoy
from rl_zoo3.utils import ALGOS
from stable_baselines3 import PPO
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, unwrap_vec_normalize

from sb3_prune_robust import sparsity
from sb3_prune_robust.attacks import ATTACKS, Attack
from sb3_prune_robust.cli import main
from sb3_prune_robust.zoo import Which, load_run

RUN = "ppo/CartPole-v1_1"


def train(folder: Path, *options: object, algo: str = "ppo", env: str = "CartPole-v1") -> int:
    return main(["train", "--algo", algo, "--env", env, "-f", str(folder), *map(str, options)])


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    options = ["-n", 6000, "--eval-freq", 3000, "--save-freq", 3000, "--seed", 1]
    assert train(folder, *options, "-params", "normalize:{'norm_obs': True, 'norm_reward': False}") == 0
    return folder


def zeros(path: Path) -> dict[str, Any]:
    weights = PPO.load(path, device="cpu").policy.state_dict()
    return {name: weight == 0 for name, weight in weights.items() if "policy_net" in name and weight.ndim == 2}


def test_training_by_the_zoo_prunes_evaluates_and_saves(logs: Path) -> None:
    names = {path.name for path in (logs / RUN).iterdir()}
    assert {"CartPole-v1.zip", "best_model.zip", "evaluations.npz", "rl_model_3000_steps.zip", "CartPole-v1"} <= names
    assert (logs / RUN / "CartPole-v1" / "vecnormalize.pkl").exists()
    for name in ("CartPole-v1.zip", "best_model.zip"):  # the best is no less pruned
        assert sparsity(PPO.load(logs / RUN / name, device="cpu"))["actor"] == pytest.approx(0.7, abs=1e-3)


def test_continuing_keeps_the_zeros(logs: Path, tmp_path: Path) -> None:
    before = logs / RUN / "CartPole-v1.zip"
    assert train(tmp_path, "-n", 600, "-i", before, "--eval-freq", -1) == 0
    after = zeros(tmp_path / RUN / "CartPole-v1.zip")
    was = zeros(before)
    assert was and all((after[name][zero]).all() for name, zero in was.items())
    moved = PPO.load(tmp_path / RUN / "CartPole-v1.zip", device="cpu").policy.state_dict()
    assert not all(weight.equal(moved[name]) for name, weight in PPO.load(before, device="cpu").policy.state_dict().items())


def test_the_zoo_alone_takes_the_file_by_its_path(tmp_path: Path) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "sb3_prune_robust", "hyperparams", "ppo"], capture_output=True, text=True, check=True
    )
    command = [
        sys.executable,
        "-m",
        "rl_zoo3.train",
        "--algo",
        "ppo",
        "--env",
        "CartPole-v1",
        "-n",
        "300",
        "--eval-freq",
        "-1",
    ]
    command += ["--conf-file", printed.stdout.strip(), "--gym-packages", "sb3_prune_robust.zoo", "-f", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sparsity(PPO.load(tmp_path / RUN / "CartPole-v1.zip", device="cpu"))["actor"] == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("which", [[], ["--load-best"], ["--load-checkpoint", "3000"]])
def test_enjoy_plays(
    logs: Path, which: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--algo", "ppo", "--env", "CartPole-v1", "-f", str(logs), "--no-render", "-n", "600", *which]
    monkeypatch.setattr(sys, "argv", ["enjoy", *options])
    enjoy()
    assert "Mean reward" in capsys.readouterr().out


ATTACKED = """
CartPole-v1:
  n_envs: 2
  n_timesteps: 600
  policy: sb3_prune_robust.policies.LipschitzCategoricalPolicy
  normalize: true
  n_steps: 64
  batch_size: 128
  n_epochs: 1
  callback:
    - sb3_prune_robust.pruning.PruningCallback:
        final_sparsity: 0.5
    - sb3_prune_robust.attacks.AdversarialTrainingCallback:
        attack: mad
        eps: 0.2
        eps_schedule: linear
        end: 0.5
        evaluate: EVALUATE
        attack_kwargs: {steps: 2, restarts: 1}
"""


@pytest.mark.parametrize(("vec_env", "evaluate"), [("dummy", "clean"), ("dummy", "attacked"), ("subproc", "clean")])
def test_training_under_attack_from_yaml(
    vec_env: str, evaluate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "attacked.yml"
    file.write_text(ATTACKED.replace("EVALUATE", evaluate))
    options = ["--conf-file", file, "--vec-env", vec_env, "--eval-freq", 256, "--eval-episodes", 2, "--save-freq", 256]
    assert train(tmp_path, *options, "--seed", 0) == 0
    shown = capsys.readouterr().out
    eps = [float(value) for value in re.findall(r"^\|    eps +\| ([\d.e-]+)", shown, flags=re.MULTILINE)]
    assert eps == [0, 0.084, 0.17, 0.2, 0.2]
    assert len(np.load(tmp_path / RUN / "evaluations.npz")["timesteps"]) >= 2
    assert (tmp_path / RUN / "best_model.zip").exists() and (tmp_path / RUN / "CartPole-v1" / "vecnormalize.pkl").exists()


def test_a_run_is_loaded_with_its_wrappers_and_statistics(tmp_path: Path) -> None:
    file = tmp_path / "stacked.yml"
    entry: dict[str, Any] = dict(n_envs=2, n_timesteps=128, policy="MlpPolicy", n_steps=64, normalize=True, frame_stack=3)
    entry.update(env_wrapper="gymnasium.wrappers.FlattenObservation", env_kwargs={"sutton_barto_reward": True})
    file.write_text(yaml.dump({"CartPole-v1": entry}))
    assert train(tmp_path, "--conf-file", file, "--eval-freq", -1) == 0
    run = load_run(Which("ppo", "CartPole-v1", str(tmp_path)), n_envs=2)
    stack: Any = run.env
    assert isinstance(stack, VecFrameStack) and isinstance(stack.venv, VecNormalize) and type(stack.unwrapped) is DummyVecEnv
    saved = VecNormalize.load(
        str(tmp_path / RUN / "CartPole-v1" / "vecnormalize.pkl"), DummyVecEnv([lambda: run.env.unwrapped.envs[0]])
    )  # type: ignore[attr-defined]
    np.testing.assert_array_equal(stack.venv.obs_rms.mean, saved.obs_rms.mean)
    assert saved.obs_rms.count > 100 and not stack.venv.training and not stack.venv.norm_reward
    assert run.env.num_envs == 2 and run.env.get_attr("spec")[0].kwargs["sutton_barto_reward"] is True
    assert "FlattenObservation" in str(run.env.unwrapped.envs[0])  # type: ignore[attr-defined]
    assert run.model.observation_space.shape == run.env.observation_space.shape == (12,)
    given = load_run(Which("ppo", "CartPole-v1", str(tmp_path)), env_kwargs={"sutton_barto_reward": False})
    assert given.env.get_attr("spec")[0].kwargs["sutton_barto_reward"] is False


def evaluate(folder: Path, *options: object, algo: str = "ppo", env: str = "CartPole-v1") -> int:
    return main(["evaluate", "--algo", algo, "--env", env, "-f", str(folder), *map(str, options)])


def test_evaluation_under_attack(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "evaluation.json"
    options = ["--attacks", "random,mad", "--eps", 1.5, "--episodes", 10, "--out", out]
    assert evaluate(logs, *options) == 0
    table = capsys.readouterr().out.splitlines()
    record = json.loads(out.read_text())
    clean, attacks = record["clean"]["mean"], {name: cell["mean"] for name, cell in record["attacks"].items()}
    assert attacks["mad"] < 0.7 * clean and set(attacks) == {"random", "mad"}
    assert record["worst"] == {"attack": "mad", "mean": attacks["mad"]} and any(
        line.startswith("worst: mad") for line in table
    )
    assert table[3].split()[:2] == ["clean", f"{clean:.1f}"] and table[5].split()[:2] == ["mad", f"{attacks['mad']:.1f}"]
    assert "70% of the actor's hidden layers pruned" in table[0] and str(logs / RUN / "CartPole-v1.zip") in table[0]
    for cell in (record["clean"], *record["attacks"].values()):
        assert len(cell["returns"]) == 10 and cell["mean"] == pytest.approx(np.mean(cell["returns"]))
        assert cell["low"] <= cell["mean"] <= cell["high"]
    assert record["attacks"]["mad"]["perturbed"] > 0.99
    assert evaluate(logs, *options[:-1], tmp_path / "again.json", "--n-envs", 3) == 0  # the same episodes
    assert json.loads((tmp_path / "again.json").read_text())["clean"]["returns"] == record["clean"]["returns"]


def test_evaluation_of_other_models_of_the_run(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--attacks", "random", "--eps", 0.1, "--episodes", 2]
    for flags, name in (
        (["--load-best"], "best_model.zip"),
        (["--load-checkpoint", 3000], "rl_model_3000_steps.zip"),
        (["--load-last-checkpoint", "--stochastic"], "rl_model_6000_steps.zip"),
    ):
        assert evaluate(logs, *options, *flags) == 0
        shown = capsys.readouterr().out
        assert name in shown and ("stochastic" in shown) == ("--stochastic" in flags)


class Still(Attack):
    """Moves what the policy sees by next to nothing."""

    def perturb(self, policy: Any, ball: Any) -> Any:
        return ball.center + np.float32(1e-6)


def test_attacks_that_do_not_lower_the_return_are_named(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ATTACKS, "still", Still)
    assert evaluate(logs, "--attacks", "still,mad", "--eps", 1.0, "--episodes", 3) == 0
    assert "not below the clean return: still (attacked" in capsys.readouterr().out


def test_learned_attacks_are_kept_beside_the_record(logs: Path, tmp_path: Path) -> None:
    options = ["--attacks", "pa-ad", "--attack-steps", 600, "--eps", 0.4, "--episodes", 3]
    assert evaluate(logs, *options, "--out", tmp_path / "evaluation.json") == 0
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["attacks"]["pa-ad"]["cost"]["steps"] >= 600
    assert record["settings"]["attack_budget"] == {"steps": 600, "seconds": None}
    assert list((tmp_path / "evaluation.progress").glob("attack-*.npz"))


class Null(Attack):
    """Changes nothing."""

    def perturb(self, policy: Any, ball: Any) -> Any:
        return ball.center


def test_a_clean_return_never_stands_under_an_attacks_name(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ATTACKS, "null", Null)
    assert evaluate(logs, "--attacks", "null", "--eps", 0.1, "--episodes", 2) == 2
    assert "no attack changed any observation" in capsys.readouterr().err
    out = tmp_path / "evaluation.json"
    assert evaluate(logs, "--attacks", "null,random", "--eps", 0.1, "--episodes", 2, "--out", out) == 0
    record = json.loads(out.read_text())
    assert set(record["attacks"]) == {"random"} and "unchanged" in record["skipped"]["null"]
    assert "no attack took place" in capsys.readouterr().out


BAD: dict[str, tuple[list[object], str]] = {
    "no folder": (["-f", "nowhere"], "folder nowhere: runs of ppo on CartPole-v1 there: none"),
    "no run": (["--env", "Pendulum-v1"], "runs of ppo on Pendulum-v1 there: none"),
    "exp-id": (["--exp-id", 7], "exp-id 7 was not found in .*there: CartPole-v1_1"),
    "no run folder": (["--exp-id", -1], "no final model"),
    "checkpoint": (["--load-checkpoint", 5], "no such checkpoint, which training with --save-freq writes"),
    "attack": (["--attacks", "laser"], "attacks: 'laser' is unknown; known: random, fgsm, pgd, mad"),
    "eps": (["--eps", 0], "--eps: a positive number is needed, got '0'"),
    "env": (["--env", "CartPole-v9"], "env 'CartPole-v9' is not registered, maybe you meant CartPole-v"),
    "algo": (["--algo", "ppo2"], "algo 'ppo2' is unknown to RL Zoo; known: a2c, ddpg"),
    "env-kwargs": (["--env-kwargs", "gravity"], "env-kwargs gravity: not KEY:VALUE"),
    "env-kwargs unknown": (["--env-kwargs", "colour:1"], "env CartPole-v1 of the run cannot be made: .*'colour'"),
    "gym-packages": (["--gym-packages", "nowhere"], "gym-packages: 'nowhere' cannot be imported"),
    "a budget for nothing": (["--attack-steps", 9], "none of random learns"),
    "out": (["--out", "."], "out . is a folder; give a file"),
    "seed": (["--seed", -1], "seed must be at least 0"),
}


def check_refused(folder: Path, options: list[object], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = evaluate(folder, "--attacks", "random", "--eps", 0.1, "--episodes", 2, *options)
    except SystemExit as stop:  # argparse's own
        code = int(stop.code or 0)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2
    assert error.startswith("sb3-prune-robust evaluate: error:")
    assert re.search(message, error), error


@pytest.mark.parametrize("case", BAD)
def test_wrong_options_are_named_in_one_line(case: str, logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = BAD[case]
    check_refused(logs, options, message, capsys)


def fake_run(folder: Path, algo: str, env: str) -> Path:
    """An untrained agent in the folders in which the zoo would have saved it."""
    policies = {"ppo_lstm": "MlpLstmPolicy"}
    kwargs: dict[str, Any] = {"buffer_size": 10} if issubclass(ALGOS[algo], OffPolicyAlgorithm) else {}
    run = folder / algo / f"{env}_1"
    (run / env).mkdir(parents=True)
    (run / env / "config.yml").write_text("n_envs: 1\n")
    ALGOS[algo](policies.get(algo, "MlpPolicy"), env, device="cpu", seed=0, **kwargs).save(run / f"{env}.zip")
    return run


@pytest.mark.parametrize("algo", ALGOS)
def test_runs_of_every_algorithm_of_the_zoo_are_evaluated(
    algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = "CartPole-v1" if algo in ("dqn", "qrdqn", "sa_dqn") else "Pendulum-v1"
    fake_run(tmp_path, algo, env)
    out = tmp_path / "evaluation.json"
    options = ["--attacks", "random,mad", "--eps", 0.5, "--episodes", 2, "--out", out]
    assert evaluate(tmp_path, *options, algo=algo, env=env) == 0
    record = json.loads(out.read_text())
    assert {name: cell["perturbed"] > 0.9 for name, cell in record["attacks"].items()} == {"random": True, "mad": True}


def test_what_a_run_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fake_run(tmp_path, "ppo", "CartPole-v1")
    check_refused(tmp_path, ["--load-best"], "load-best: the run has no best_model.zip.*--eval-freq", capsys)
    (run / "CartPole-v1" / "config.yml").write_text("normalize: true\n")
    check_refused(tmp_path, [], "VecNormalize stats .* not found", capsys)
    (run / "CartPole-v1" / "config.yml").unlink()
    check_refused(tmp_path, [], "config.yml is missing: how the run wrapped and normalised", capsys)
    (run / "CartPole-v1" / "config.yml").write_text("n_envs: 1\n")
    (run / "CartPole-v1.zip").write_bytes(b"not a model")
    check_refused(tmp_path, [], "CartPole-v1.zip could not be loaded as ppo", capsys)


def test_statistics_of_the_run_make_the_return(logs: Path, tmp_path: Path) -> None:
    """What the command says is what SB3's own evaluation says of the same environments."""
    out = tmp_path / "evaluation.json"
    assert evaluate(logs, "--attacks", "random", "--eps", 0.1, "--episodes", 3, "--seed", 5, "--out", out) == 0
    run = load_run(Which("ppo", "CartPole-v1", str(logs)))
    returns = []
    for k in range(3):
        run.env.seed(5 + k)
        obs, done, total = run.env.reset(), False, 0.0
        while not done:
            with th.no_grad():
                obs, reward, dones, _ = run.env.step(run.model.predict(obs, deterministic=True)[0])
            done, total = bool(dones[0]), total + float(reward[0])
        returns.append(total)
    assert json.loads(out.read_text())["clean"]["returns"] == returns


def test_a_checkpoint_is_played_with_the_statistics_that_it_had(logs: Path) -> None:
    runs = [load_run(Which("ppo", "CartPole-v1", str(logs), load_checkpoint=n)) for n in (3000, 6000)]
    seen = [unwrap_vec_normalize(run.env).obs_rms.count for run in runs]
    assert [run.model.num_timesteps for run in runs] == [3000, 6000] == pytest.approx(seen, abs=16)
    last = load_run(Which("ppo", "CartPole-v1", str(logs), load_last_checkpoint=True))
    assert unwrap_vec_normalize(last.env).obs_rms.count == seen[1]


def test_a_training_that_is_killed_continues_from_its_checkpoint(tmp_path: Path) -> None:
    """With its masks, and with the VecNormalize statistics that belong to it: the zoo itself saves none with checkpoints."""
    zoo = [sys.executable, "-m", "rl_zoo3.train", "--gym-packages", "sb3_prune_robust.zoo", "-f", str(tmp_path)]
    zoo += ["--algo", "ppo", "--env", "CartPole-v1", "--conf-file", "sb3_prune_robust.hyperparams.ppo", "--eval-freq", "-1"]
    zoo += ["-params", "normalize:True", "--num-threads", "1"]
    killed = subprocess.Popen([*zoo, "-n", "200000", "--save-freq", "4000"], stdout=subprocess.DEVNULL)
    statistics = tmp_path / RUN / "CartPole-v1" / "vecnormalize.pkl"
    for _ in range(600):
        checkpoints = sorted((tmp_path / RUN).glob("rl_model_*_steps.zip"), key=os.path.getmtime)
        if statistics.exists() and len(checkpoints) > 12:  # beyond the schedule's start, at a fifth
            break
        assert killed.poll() is None, "it ended before it was killed"
        time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    checkpoint = checkpoints[-2]  # the last may be cut short
    before = zeros(checkpoint)
    assert sum(int(zero.sum()) for zero in before.values()) > 100
    again = subprocess.run([*zoo, "-n", "400", "-i", str(checkpoint)], capture_output=True, text=True, check=True)
    assert "Loading saved VecNormalize stats" in again.stdout
    after = zeros(tmp_path / "ppo/CartPole-v1_2/CartPole-v1.zip")
    assert all(after[name][zero].all() for name, zero in before.items())


def test_tensorboard_progress_bar_and_plots(tmp_path: Path) -> None:
    options = ["-n", 2000, "--eval-freq", 1000, "--tensorboard-log", tmp_path / "tb", "-P"]
    assert train(tmp_path / "logs", *options) == 0
    (events,) = (tmp_path / "tb").rglob("events.out.tfevents.*")
    assert b"prune/sparsity" in events.read_bytes()
    plots = [sys.executable, "-m", "rl_zoo3.plots.all_plots", "-a", "ppo", "-e", "CartPole-v1", "-f", "logs", "-o", "all"]
    environment = os.environ | {"MPLBACKEND": "Agg"}
    shown = subprocess.run(plots, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True).stdout
    assert re.search(r"CartPole-v1 *\|\s*\d+ \+/- \d+", shown)
