from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_prune_robust.attacks import AdversarialVecEnv, RandomAttack
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.evaluation.rollouts import NoAttackError, RewardRangeError, rollout

from .conftest import Countdown


def lengths_by_hand(n: int, seed: int = 0) -> list[int]:
    return [int(np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed + k))).choice([2, 40])) for k in range(n)]


@pytest.mark.parametrize("n_envs", [1, 3, 8, 40])
def test_episodes_are_those_of_their_seeds_whatever_the_number_of_environments(countdown_policy: Any, n_envs: int) -> None:
    episodes = rollout(countdown_policy, make_env(Countdown, n_envs), 24, seed=7)
    assert episodes.lengths.tolist() == lengths_by_hand(24, seed=7)
    reference = rollout(countdown_policy, make_env(Countdown, 5), 24, seed=7)
    np.testing.assert_allclose(episodes.returns, reference.returns, rtol=1e-5)


def test_taking_whichever_finish_first_would_be_biased(countdown_policy: Any) -> None:
    venv, first = make_env(Countdown, 32), []
    venv.seed(7)
    venv.reset()
    steps = np.zeros(32)
    while len(first) < 32:
        _, _, dones, _ = venv.step(np.zeros((32, 1), np.float32))
        steps += 1
        first += steps[dones].tolist()
        steps[dones] = 0
    fixed = rollout(countdown_policy, venv, 32, seed=7).lengths
    assert np.mean(first[:32]) < 0.5 * fixed.mean()


def test_returns_by_hand(countdown_policy: Any) -> None:
    episodes = rollout(countdown_policy, make_env(Countdown, 4), 6, gamma=0.5, deterministic=True, record=True)
    for k, observations in enumerate(episodes.observations):
        assert len(observations) == episodes.lengths[k]
        actions, _ = countdown_policy.predict(observations, deterministic=True)
        rewards = 1 + 0.25 * actions[:, 0].astype(np.float64)
        assert episodes.returns[k] == pytest.approx(rewards.sum(), rel=1e-5)
        assert episodes.discounted[k] == pytest.approx((rewards * 0.5 ** np.arange(len(rewards))).sum(), rel=1e-5)


def test_clean_and_attacked_meet_the_same_episodes_and_the_same_noise(cartpole_model: PPO) -> None:
    venv = make_env("CartPole-v1", 4)
    clean = rollout(cartpole_model, venv, 8, record=True)
    again = rollout(cartpole_model, venv, 8)
    attacked = rollout(cartpole_model, venv, 8, attack=RandomAttack(1e-6, seed=0), record=True)
    np.testing.assert_array_equal(clean.returns, again.returns)
    starts = [[e[0] for e in episodes.observations] for episodes in (clean, attacked)]
    np.testing.assert_array_equal(*starts)
    # A perturbation of a millionth changes next to no action, if the sampling noise is the same.
    assert np.mean(clean.returns == attacked.returns) >= 0.75
    assert attacked.perturbed > 0.9 and clean.perturbed == 0


def test_recorded_observations_are_the_true_ones(countdown_policy: Any) -> None:
    venv = make_env(Countdown, 3)
    attacked = rollout(countdown_policy, venv, 3, attack=RandomAttack(0.5, seed=0), record=True)
    for observations, length in zip(attacked.observations, attacked.lengths, strict=True):
        np.testing.assert_allclose(observations[:, 0], np.arange(length, 0, -1) / 40, rtol=1e-6)


@pytest.mark.parametrize("env", ["CartPole-v1", "InvertedPendulum-v5"])
def test_actions_are_those_of_predict(env: str) -> None:
    model = A2C("MlpPolicy", env, seed=1, device="cpu")
    seen: list[Any] = []

    class Recorder(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            seen.append(np.array(action))
            return self.env.step(action)

    episodes = rollout(model, make_env(lambda: Recorder(gym.make(env)), 1), 3, deterministic=True, record=True)
    expected, _ = model.predict(np.concatenate(episodes.observations), deterministic=True)
    np.testing.assert_allclose(np.stack(seen), expected, atol=1e-5)


def test_sampled_actions_follow_the_policys_distribution(cartpole_model: PPO) -> None:
    from sb3_prune_robust.actor import Actor

    observation = np.array([[0.01, 0.2, 0.02, -0.1]], np.float32)
    batch = np.repeat(observation, 20_000, axis=0)
    stream = np.random.default_rng(0)
    actions, choices = Actor(cartpole_model.policy, deterministic=False)(batch, [stream] * len(batch))
    share = actions.mean()
    np.testing.assert_array_equal(choices[:, 0], actions)
    probability = cartpole_model.policy.get_distribution(
        cartpole_model.policy.obs_to_tensor(observation)[0]
    ).distribution.probs
    assert share == pytest.approx(probability.detach().numpy()[0, 1], abs=0.015)


def test_sampled_gaussian_actions_have_the_policys_mean_and_std(countdown_policy: Any) -> None:
    from sb3_prune_robust.actor import Actor

    with th.no_grad():
        countdown_policy.log_std.fill_(-2.0)
    batch = np.repeat(np.array([[0.3, -0.4]], np.float32), 20_000, axis=0)
    actions, noise = Actor(countdown_policy, deterministic=False)(batch, [np.random.default_rng(0)] * len(batch))
    assert noise.mean() == pytest.approx(0.0, abs=0.03) and noise.std() == pytest.approx(1.0, rel=0.03)
    assert actions.std() == pytest.approx(np.exp(-2.0), rel=0.03)
    assert actions.mean() == pytest.approx(float(countdown_policy.predict(batch[0], deterministic=True)[0][0]), abs=0.005)


def test_a_policy_without_plain_layers_plays_through_predict(countdown_policy: Any) -> None:
    model = PPO("MlpPolicy", DummyVecEnv([Countdown]), use_sde=True, seed=0, device="cpu")
    first = rollout(model, make_env(Countdown, 3), 6)
    second = rollout(model, make_env(Countdown, 3), 6)
    assert first.returns.std() > 0
    np.testing.assert_array_equal(first.returns, second.returns)


def test_an_attack_that_does_nothing_is_refused(cartpole_model: PPO) -> None:
    class Nothing:
        eps = 0.1

        def __call__(self, policy: Any, observations: Any) -> Any:
            return observations

    venv = make_env("CartPole-v1", 2)
    with pytest.raises(NoAttackError, match="no attack happened"):
        rollout(cartpole_model, venv, 2, attack=Nothing())
    Nothing.eps = 0.0  # an attack without a budget claims nothing
    assert rollout(cartpole_model, venv, 2, attack=Nothing()).perturbed == 0


def test_rewards_outside_the_stated_range_stop_the_rollout(cartpole_model: PPO) -> None:
    venv = make_env("CartPole-v1", 2)
    assert rollout(cartpole_model, venv, 2, reward_range=(0.0, 1.0)).reward_max == 1
    with pytest.raises(RewardRangeError, match="reward_max: a reward of 1 was seen outside"):
        rollout(cartpole_model, venv, 2, reward_range=(0.0, 0.5))


def test_a_reward_at_the_end_of_the_range_is_inside_it_in_single_precision() -> None:
    env = gym.wrappers.TransformReward(gym.make("CartPole-v1", max_episode_steps=3), lambda reward: -0.1)
    model = PPO("MlpPolicy", env, device="cpu")
    assert rollout(model, make_env(lambda: env), 1, reward_range=(-0.1, 0.0)).returns[0] == pytest.approx(-0.3)


def test_normalisation_is_frozen_rewards_are_raw_and_settings_come_back(cartpole_model: PPO) -> None:
    venv = VecNormalize(make_env("CartPole-v1", 2))
    venv.reset()
    for _ in range(20):
        venv.step(np.array([0, 1]))
    mean = venv.obs_rms.mean.copy()
    inner = venv.unwrapped.envs[0]  # type: ignore[attr-defined]
    episodes = rollout(cartpole_model, venv, 4)
    np.testing.assert_array_equal(episodes.returns, episodes.lengths)
    np.testing.assert_array_equal(venv.obs_rms.mean, mean)
    assert venv.training and venv.norm_reward and venv.unwrapped.envs[0] is inner  # type: ignore[attr-defined]


def test_time_limits_are_told_from_terminations(cartpole_model: PPO) -> None:
    short = make_env(lambda: gym.make("CartPole-v1", max_episode_steps=5), 2)
    episodes = rollout(cartpole_model, short, 4)
    assert episodes.lengths.tolist() == [5] * 4 and not episodes.terminated.any()


def test_environments_attacked_already_are_refused(cartpole_model: PPO) -> None:
    venv = AdversarialVecEnv(make_env("CartPole-v1", 1), cartpole_model, RandomAttack(0.1, seed=0))
    with pytest.raises(ValueError, match="already holds an AdversarialVecEnv"):
        rollout(cartpole_model, venv, 1)


def test_other_vectorised_environments_are_refused(cartpole_model: PPO) -> None:
    venv = SubprocVecEnv([lambda: gym.make("CartPole-v1")])
    try:
        with pytest.raises(TypeError, match="DummyVecEnv"):
            rollout(cartpole_model, venv, 1)
    finally:
        venv.close()
