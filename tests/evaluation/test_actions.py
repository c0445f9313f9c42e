"""The audit of agents that play without noise: what is certified of their actions, and which modes there are."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

from sb3_prune_robust import certify
from sb3_prune_robust.cli import main
from sb3_prune_robust.evaluation.loading import check_spaces, guess_algorithm

BUFFER = {"buffer_size": 10}


def small() -> dict[str, Any]:
    return {"policy_kwargs": {"net_arch": [16, 16]}, "device": "cpu", "seed": 0}  # anew: SB3 writes into it


def audit(model: Any, folder: Path, env: str, *more: str) -> int:
    model.save(folder / "model.zip")
    arguments = [str(folder / "model.zip"), "--env", env, "--eps", "0.1", "--episodes", "2", "--sparsities", "0.5"]
    return main(["audit", *arguments, "--attacks", "random,mad", "--out", str(folder / "out"), *more])


def report(folder: Path) -> tuple[dict[str, Any], str]:
    return json.loads((folder / "out" / "report.json").read_text()), (folder / "out" / "report.md").read_text()


def test_a_q_network_is_certified_by_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = DQN("MlpPolicy", "CartPole-v1", **small(), **BUFFER)
    with th.no_grad():  # it plays one choice wherever it looks: its other value lies far below
        model.q_net.q_net[-1].bias[:] = th.tensor([50.0, 0.0])
    assert audit(model, tmp_path, "CartPole-v1") == 0
    record, page = report(tmp_path)
    assert record["settings"]["modes"] == ["deterministic"] and record["models"][0]["algorithm"] == "dqn"
    for point in record["modes"]["deterministic"]["points"]:
        actions = point["actions"]
        assert point["certificate"] is None and actions["unit"] == "Q value" and actions["greedy_unchanged"] == 1.0
        assert 0 < actions["radius"]["mean"] <= actions["radius"]["max"] < 50
        assert point["attacks"]["mad"]["episodes"]["returns"] == point["clean"]["episodes"]["returns"]
    assert "| 100.0% |" in page and "choice cannot change" in page
    assert "choice kept" in capsys.readouterr().out


def test_an_actor_is_certified_by_its_action(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", **small(), **BUFFER)
    assert audit(model, tmp_path, "Pendulum-v1") == 0
    record, page = report(tmp_path)
    assert record["settings"]["modes"] == ["stochastic", "deterministic"]
    stochastic, deterministic = (record["modes"][mode]["points"][0] for mode in ("stochastic", "deterministic"))
    assert stochastic["actions"] is None and "SACPolicy" in stochastic["certificate"]["not_certified"]
    actions = deterministic["actions"]
    assert deterministic["certificate"] is None and actions["unit"] == "action" and actions["greedy_unchanged"] is None
    assert actions["n_states"] == 400
    # The same by hand, at the states of one episode.
    one = certify(model, np.zeros((1, 3)), 0.1, method="abs")
    np.testing.assert_allclose(actions["radius"]["by_method"]["abs"], one.radius[0, 0], rtol=1e-9)
    assert actions["radius"]["mean"] < one.radius[0, 0] and "deterministic action" in actions["assumptions"]
    assert f"{actions['radius']['mean']:.3g}" in page


def test_samples_of_what_never_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = TD3("MlpPolicy", "Pendulum-v1", **small(), **BUFFER)
    assert audit(model, tmp_path, "Pendulum-v1", "--stochastic") == 2
    assert "TD3 plays without sampling" in capsys.readouterr().err


def test_a_discount_is_asked_for_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(ARS("MlpPolicy", "Pendulum-v1", **small()), tmp_path, "Pendulum-v1") == 2
    assert "give one with --gamma" in capsys.readouterr().err


def test_default_attacks_leave_out_a_critic_that_is_not_there(tmp_path: Path) -> None:
    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, device="cpu", policy_kwargs={"lstm_hidden_size": 8})
    model.save(tmp_path / "model.zip")
    arguments = [str(tmp_path / "model.zip"), "--env", "CartPole-v1", "--eps", "0.1", "--episodes", "2", "--sparsities", "0.5"]
    assert main(["audit", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert report(tmp_path)[0]["settings"]["attacks"] == ["random", "fgsm", "mad"]


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([5, 7])),
        (spaces.Box(-1, 1, (2,)), spaces.Box(-9, 30, (2,))),
        (spaces.Discrete(2), spaces.Discrete(3)),
    ],
)
def test_an_environment_with_other_actions_is_not_the_models(own: Any, theirs: Any) -> None:
    model, venv = SimpleNamespace(observation_space=spaces.Box(-1, 1, (3,)), action_space=own), SimpleNamespace()
    venv.observation_space, venv.action_space = spaces.Box(-2, 2, (3,)), own
    check_spaces(model, venv)
    venv.action_space = theirs
    with pytest.raises(ValueError, match=r"actions"):
        check_spaces(model, venv)


ON = {"n_steps": 8, "batch_size": 8}


@pytest.mark.parametrize(
    ("algorithm", "env", "settings", "name"),
    [
        (PPO, "CartPole-v1", ON, "ppo"),
        (A2C, "CartPole-v1", {}, "a2c"),
        (TRPO, "CartPole-v1", ON, "trpo"),
        (RecurrentPPO, "CartPole-v1", ON, "ppo_lstm"),
        (MaskablePPO, "CartPole-v1", ON, "ppo_mask"),
        (SAC, "Pendulum-v1", BUFFER, "sac"),
        (TD3, "Pendulum-v1", BUFFER, "td3"),
        (DDPG, "Pendulum-v1", BUFFER, "td3"),  # which loads it
        (TQC, "Pendulum-v1", BUFFER, "tqc"),
        (CrossQ, "Pendulum-v1", BUFFER, "crossq"),
        (DQN, "CartPole-v1", BUFFER, "dqn"),
        (QRDQN, "CartPole-v1", BUFFER, "qrdqn"),
        (ARS, "CartPole-v1", {}, "ars"),
    ],
)
def test_algorithms_are_told_from_their_files(
    algorithm: Any, env: str, settings: dict[str, Any], name: str, tmp_path: Path
) -> None:
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    algorithm(policy, env, device="cpu", **settings).save(tmp_path / "model.zip")
    assert guess_algorithm(tmp_path / "model.zip") == name
