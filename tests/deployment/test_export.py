"""The ONNX file of every kind of policy, run in onnxruntime, against SB3's ``predict``."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_prune_robust import LipschitzGaussianPolicy
from sb3_prune_robust.deployment import export_onnx, shrink

BOX = spaces.Box(-1.0, 1.0, (4,), dtype=np.float32)
DOUBLE = spaces.Box(-np.inf, np.inf, (4,), dtype=np.float64)  # as MuJoCo's
TORQUES = spaces.Box(np.array([-2.0, -0.5]), np.array([0.1, 3.0]), dtype=np.float32)  # not symmetric
BUTTONS = spaces.Discrete(3)
IMAGES = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
DICT = spaces.Dict(camera=IMAGES, position=BOX, gear=spaces.Discrete(4))
SMALL: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[16, 16]))
OFF_POLICY: dict[str, Any] = dict(buffer_size=10, **SMALL)


class Spaces(gym.Env[Any, Any]):
    """Any spaces, nothing happens."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def build(algorithm: Any, policy: Any, observations: Any, actions: Any, **kwargs: Any) -> Any:
    """A random policy that reacts to its input, and whose actions leave the action space."""
    env = Spaces(copy.deepcopy(observations), actions)
    model = algorithm(policy, env, device="cpu", **copy.deepcopy(kwargs))
    th.manual_seed(0)
    with th.no_grad():
        for module in model.policy.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=2.0 / module.in_features**0.5)
            if hasattr(module, "ra_mean"):  # batch renormalisation, as after training
                module.ra_mean.normal_()
                module.ra_var.uniform_(0.5, 2.0)
    return model


def sample(space: Any, n: int, scale: float = 1.0) -> Any:
    space = copy.deepcopy(space)
    space.seed(3)
    parts = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {name: np.stack([part[name] for part in parts]) for name in space.spaces}
    found = np.stack(parts)
    return (found * scale).astype(found.dtype)


def run(path: Path, observations: Any) -> np.ndarray[Any, Any]:
    inputs = observations if isinstance(observations, dict) else {"observation": observations}
    session = onnxruntime.InferenceSession(path)
    (output,) = session.get_outputs()
    assert output.name == "action" and {i.name for i in session.get_inputs()} == set(inputs)
    return session.run(None, inputs)[0]


CASES: list[tuple[Any, Any, Any, Any, dict[str, Any]]] = [
    (PPO, "MlpPolicy", BOX, TORQUES, SMALL),
    (PPO, "MlpPolicy", BOX, BUTTONS, SMALL),
    (PPO, "MlpPolicy", BOX, spaces.MultiDiscrete([2, 3]), SMALL),
    (PPO, "MlpPolicy", BOX, spaces.MultiBinary(3), SMALL),
    (PPO, "MlpPolicy", spaces.Discrete(5), BUTTONS, SMALL),
    (PPO, "MlpPolicy", spaces.Box(-1, 1, (2, 3)), spaces.Box(-1, 1, (2, 2)), SMALL),
    (PPO, "MlpPolicy", BOX, TORQUES, SMALL | dict(use_sde=True)),
    (PPO, LipschitzGaussianPolicy, BOX, TORQUES, SMALL),
    (PPO, "CnnPolicy", IMAGES, BUTTONS, {}),
    (PPO, "MultiInputPolicy", DICT, TORQUES, SMALL),
    (A2C, "MlpPolicy", BOX, TORQUES, SMALL),
    (MaskablePPO, "MlpPolicy", BOX, BUTTONS, SMALL),
    (ARS, "MlpPolicy", BOX, TORQUES, SMALL),
    (SAC, "MlpPolicy", BOX, TORQUES, OFF_POLICY),
    (TD3, "MlpPolicy", BOX, TORQUES, OFF_POLICY),
    (TQC, "MlpPolicy", BOX, TORQUES, OFF_POLICY),
    (CrossQ, "MlpPolicy", BOX, TORQUES, OFF_POLICY),
    (DQN, "MlpPolicy", BOX, BUTTONS, OFF_POLICY),
    (QRDQN, "MlpPolicy", BOX, BUTTONS, OFF_POLICY),
]


def name_of(case: Any) -> str:
    observations, actions = (type(space).__name__ for space in case[2:4])
    return f"{case[0].__name__}-{getattr(case[1], '__name__', case[1])}-{observations}-{actions}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_acts_as_predict(case: Any, tmp_path: Path) -> None:
    algorithm, policy, observations, actions, kwargs = case
    model = build(algorithm, policy, observations, actions, **kwargs)
    path = export_onnx(model, tmp_path / "policy.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["policy.onnx"]  # nothing beside it
    for n in (1, 50):
        seen = sample(model.observation_space, n)
        expected, found = model.predict(seen, deterministic=True)[0], run(path, seen)
        assert found.shape == expected.shape and np.abs(found - expected).max() <= 1e-5
    assert len(np.unique(found, axis=0)) > 1  # it reacts to what it sees
    if isinstance(actions, spaces.Box) and not model.policy.squash_output:
        at_bounds = (found == actions.low) | (found == actions.high)
        assert at_bounds.any() and not at_bounds.all()  # clipping is at work


def test_observation_statistics_are_folded_in(tmp_path: Path) -> None:
    model = build(PPO, "MlpPolicy", DOUBLE, TORQUES, **SMALL)
    venv = VecNormalize(DummyVecEnv([lambda: Spaces(DOUBLE, TORQUES)]), clip_obs=1.5)
    raw = sample(DOUBLE, 50, scale=30.0) + 100.0
    venv.obs_rms.update(raw)
    expected = model.predict(venv.normalize_obs(raw), deterministic=True)[0]
    assert (np.abs(venv.normalize_obs(raw)) == 1.5).any()
    assert np.abs(run(export_onnx(model, tmp_path / "a.onnx", vec_normalize=venv), raw) - expected).max() <= 1e-5
    venv.save(str(tmp_path / "statistics.pkl"))
    path = export_onnx(model.policy, tmp_path / "b.onnx", vec_normalize=tmp_path / "statistics.pkl")
    assert np.abs(run(path, raw) - expected).max() <= 1e-5


def test_statistics_of_some_keys_of_a_dict(tmp_path: Path) -> None:
    space = spaces.Dict(position=BOX, speed=spaces.Box(-1.0, 1.0, (2,), dtype=np.float32))
    model = build(PPO, "MultiInputPolicy", space, TORQUES, **SMALL)
    venv = VecNormalize(DummyVecEnv([lambda: Spaces(space, TORQUES)]), norm_obs_keys=["speed"])
    raw = sample(space, 50)
    venv.obs_rms["speed"].update(3.0 * raw["speed"] + 1.0)
    expected = model.predict(venv.normalize_obs(raw), deterministic=True)[0]
    assert np.abs(run(export_onnx(model, tmp_path / "a.onnx", vec_normalize=venv), raw) - expected).max() <= 1e-5


def test_recurrent_policy_over_several_steps(tmp_path: Path) -> None:
    layers = 2
    kwargs = dict(lstm_hidden_size=8, n_lstm_layers=layers, net_arch=[16])
    model = build(RecurrentPPO, "MlpLstmPolicy", BOX, TORQUES, policy_kwargs=kwargs)
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "policy.onnx"))
    n, state, rng = 5, None, np.random.default_rng(0)
    hidden = cell = np.zeros((layers, n, 8), dtype=np.float32)
    for step in range(6):
        seen, start = rng.uniform(-1, 1, size=(n, 4)).astype(np.float32), np.arange(n) == step
        expected, state = model.predict(seen, state, start, deterministic=True)
        inputs = dict(observation=seen, hidden_state=hidden, cell_state=cell, episode_start=start.astype(np.float32))
        found, hidden, cell = session.run(["action", "next_hidden_state", "next_cell_state"], inputs)
        assert np.abs(found - expected).max() <= 1e-5
        assert np.abs(hidden - state[0]).max() <= 1e-5 and np.abs(cell - state[1]).max() <= 1e-5


def test_shrunk_model(tmp_path: Path) -> None:
    model = build(PPO, "MlpPolicy", BOX, TORQUES, **SMALL)
    with th.no_grad():
        model.policy.mlp_extractor.policy_net[0].weight[:10] = 0.0
    small = export_onnx(shrink(model), tmp_path / "small.onnx")
    seen = sample(BOX, 50)
    assert np.abs(run(small, seen) - model.predict(seen, deterministic=True)[0]).max() <= 1e-5


def test_exporting_changes_nothing(tmp_path: Path) -> None:
    model = build(PPO, "MlpPolicy", BOX, TORQUES, **SMALL)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    checks, numbers = th.distributions.Distribution._validate_args, th.get_rng_state()
    export_onnx(model, tmp_path / "policy.onnx")
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert th.distributions.Distribution._validate_args is checks and th.equal(th.get_rng_state(), numbers)


class Shy(ActorCriticPolicy):
    """Not what a graph can hold: it acts otherwise when it is looked at."""

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        sign = 1.0 if type(observation) is th.Tensor else -1.0
        return sign * super()._predict(observation, deterministic)


def test_a_file_that_acts_otherwise_is_not_left_behind(tmp_path: Path) -> None:
    model = build(PPO, Shy, BOX, TORQUES, **SMALL)
    with pytest.raises(RuntimeError, match=r"Shy does not give the actions of predict"):
        export_onnx(model, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_statistics_of_other_observations(tmp_path: Path) -> None:
    model = build(PPO, "MlpPolicy", BOX, TORQUES, **SMALL)
    other = spaces.Box(-1.0, 1.0, (5,), dtype=np.float32)
    venv = VecNormalize(DummyVecEnv([lambda: Spaces(other, TORQUES)]))
    with pytest.raises(ValueError, match=r"vec_normalize holds statistics of other observations: .*\(5,\)"):
        export_onnx(model, tmp_path / "policy.onnx", vec_normalize=venv)
    with pytest.raises(ValueError, match=r"vec_normalize must be a VecNormalize or its file, got a dict"):
        export_onnx(model, tmp_path / "policy.onnx", vec_normalize={})  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    model = build(PPO, "MlpPolicy", BOX, TORQUES, **SMALL)
    with pytest.raises(ImportError, match=rf"needs {package}.*pip install onnx onnxscript onnxruntime"):
        export_onnx(model, tmp_path / "policy.onnx")


def test_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"model must be an SB3 model or policy, got Linear"):
        export_onnx(nn.Linear(2, 2), tmp_path / "policy.onnx")  # type: ignore[arg-type]
