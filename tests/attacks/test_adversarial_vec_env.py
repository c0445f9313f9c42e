"""The wrapper: what the policy sees is perturbed, what everyone else sees is true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_prune_robust.attacks import MAD, AdversarialVecEnv, Attack, RandomAttack, make_attack

EPS = 0.25


def vec_env(counter: Any, n_envs: int = 2, dtype: Any = np.float32) -> DummyVecEnv:
    return DummyVecEnv([lambda: counter(dtype)] * n_envs)


def small_model(venv: VecEnv) -> PPO:
    return PPO("MlpPolicy", venv, n_steps=8, batch_size=8, seed=0, device="cpu")


def normalised(venv: VecEnv) -> VecNormalize:
    wrapped = VecNormalize(venv, training=False, norm_reward=False)
    wrapped.obs_rms.mean, wrapped.obs_rms.var = np.array([1.0, 2.0, 0.0]), np.array([4.0, 9.0, 1.0])
    return wrapped


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_true_observations_are_kept(counter: Any, n_envs: int, dtype: Any) -> None:
    inner = vec_env(counter, n_envs, dtype)
    venv = AdversarialVecEnv(inner, small_model(inner), RandomAttack(EPS, seed=0))
    obs = venv.reset()
    assert obs.dtype == dtype
    for i in range(n_envs):
        np.testing.assert_array_equal(venv.reset_infos[i]["true_observation"], [0, 0, 0])
        assert venv.reset_infos[i]["fresh"] == 0  # what the environment said is still there
    for step in range(1, 8):
        actions = np.zeros((n_envs, 1), np.float32)
        obs, _, dones, infos = venv.step(actions)
        episode, count = divmod(step, 3)
        assert obs.dtype == dtype and dones.all() == (count == 0)
        for i, info in enumerate(infos):
            np.testing.assert_array_equal(info["true_observation"], [episode, count, 0])
            change = np.abs(obs[i] - info["true_observation"])
            assert 0 < change.min() and change.max() <= EPS
            if dones[i]:
                np.testing.assert_array_equal(info["terminal_observation"], [episode - 1, 3, 0])
                np.testing.assert_array_equal(venv.reset_infos[i]["true_observation"], [episode, 0, 0])
                assert venv.reset_infos[i]["fresh"] == episode
    np.testing.assert_array_equal(inner.buf_obs[None][:, 2], 0)  # the environment's own buffer is untouched
    assert venv.n_perturbed == 8 * n_envs and EPS / 2 < venv.mean_perturbation < EPS


def test_eps_is_in_normalised_units(counter: Any) -> None:
    below = normalised(vec_env(counter))
    venv = AdversarialVecEnv(below, small_model(below), RandomAttack(EPS, mask=[True, True, False], seed=0))
    mean, std = below.obs_rms.mean, np.sqrt(below.obs_rms.var + below.epsilon)
    obs = venv.reset()
    for step in range(1, 5):
        obs, _, _, infos = venv.step(np.zeros((2, 1), np.float32))
        expected = ((np.array([*divmod(step, 3), 0]) - mean) / std).astype(np.float32)
        for row, info in zip(obs, infos, strict=True):
            np.testing.assert_array_equal(info["true_observation"], expected)
            assert (np.abs(row - expected) <= EPS).all() and row[2] == 0 and (row[:2] != expected[:2]).all()
        np.testing.assert_array_equal(below.get_original_obs()[0], [*divmod(step, 3), 0])
    terminal = ((np.array([0, 3, 0]) - mean) / std).astype(np.float32)
    venv.reset()
    for _ in range(3):
        _, _, _, infos = venv.step(np.zeros((2, 1), np.float32))
    np.testing.assert_array_equal(infos[0]["terminal_observation"][1:], terminal[1:])
    assert unwrap_vec_normalize(venv) is below
    np.testing.assert_array_equal(below.obs_rms.mean, mean)


def test_batch_equals_one_pass_of_the_attack(counter: Any) -> None:
    """The policy gets the very array that the attack made."""
    inner = vec_env(counter, 3)
    model = small_model(inner)
    venv = AdversarialVecEnv(inner, model, MAD(EPS, seed=3))
    direct = MAD(EPS, seed=3)
    obs = venv.reset()
    np.testing.assert_array_equal(obs, direct(model.policy, np.zeros((3, 3), np.float32)))
    obs, _, _, infos = venv.step(np.zeros((3, 1), np.float32))
    np.testing.assert_array_equal(obs, direct(model, np.stack([info["true_observation"] for info in infos])))


def test_no_attack_is_no_change(trained: PPO) -> None:
    def returns(venv: VecEnv) -> Any:
        venv.seed(0)
        return evaluate_policy(trained, venv, n_eval_episodes=4, return_episode_rewards=True, warn=False)

    plain = make_vec_env("CartPole-v1", n_envs=2)
    wrapped = AdversarialVecEnv(make_vec_env("CartPole-v1", n_envs=2), trained, RandomAttack(0.0))
    assert returns(plain) == returns(wrapped)
    assert wrapped.n_observations > 0 and wrapped.n_perturbed == 0 and wrapped.mean_perturbation == 0.0


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_attack_lowers_the_return_more_than_noise_does(trained: PPO, deterministic: bool) -> None:
    """Same episodes, same eps."""

    def mean_return(attack: Attack | None) -> float:
        venv: VecEnv = make_vec_env("CartPole-v1", n_envs=8)
        venv.seed(100)
        if attack is not None:
            venv = AdversarialVecEnv(venv, trained.policy, attack)
        mean, _ = evaluate_policy(trained, venv, n_eval_episodes=16, deterministic=deterministic, warn=False)
        assert isinstance(mean, float | np.floating)
        return float(mean)

    clean = mean_return(None)
    noise = mean_return(RandomAttack(0.2, seed=0))
    attacked = mean_return(make_attack("mad", 0.2, seed=0, deterministic=deterministic))
    assert clean > 200
    assert attacked < 0.5 * noise


def test_what_does_not_fit_is_refused(counter: Any) -> None:
    inner = vec_env(counter)
    model = small_model(inner)
    attack = RandomAttack(EPS)
    with pytest.raises(TypeError, match=r"attack must be an Attack.*None"):
        AdversarialVecEnv(inner, model, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be"):
        AdversarialVecEnv(inner, "model.zip", attack)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="venv must be a VecEnv"):
        AdversarialVecEnv(counter(), model, attack)
    with pytest.raises(ValueError, match="observations"):
        AdversarialVecEnv(make_vec_env("CartPole-v1"), model, attack)
    with pytest.raises(ValueError, match="two attacks"):
        AdversarialVecEnv(normalised(AdversarialVecEnv(inner, model, attack)), model, attack)


def test_moving_statistics_are_refused(counter: Any) -> None:
    below = normalised(vec_env(counter))
    venv = AdversarialVecEnv(below, small_model(below), RandomAttack(EPS))
    below.training = True
    with pytest.raises(ValueError, match="training mode"):
        venv.reset()
    with pytest.raises(ValueError, match="training mode"):
        AdversarialVecEnv(below, small_model(vec_env(counter)), RandomAttack(EPS))
    below.norm_obs = False  # rewards only: eps does not depend on it
    assert AdversarialVecEnv(below, small_model(vec_env(counter)), RandomAttack(EPS)).reset().shape == (2, 3)


def test_a_model_of_normalised_observations_needs_them(counter: Any) -> None:
    """The trap of wrapping inside VecNormalize, where eps would be in raw units, as far as it can be seen."""
    model = small_model(normalised(vec_env(counter)))
    with pytest.raises(ValueError, match="raw units"):
        normalised(AdversarialVecEnv(vec_env(counter), model, RandomAttack(EPS)))
