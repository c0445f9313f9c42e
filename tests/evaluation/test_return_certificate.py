"""Certified returns of real agents: sound against attacks, tight where that is known, refused where nothing holds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from sb3_prune_robust import certify_return
from sb3_prune_robust.attacks import MAD, RandomAttack
from sb3_prune_robust.evaluation.clean_play import play_clean
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.evaluation.return_certificate import METHODS, certify_play, largest_certified_eps
from sb3_prune_robust.evaluation.rollouts import RewardRangeError, rollout

from .conftest import Countdown

FEW: dict[str, Any] = dict(n_episodes=60, n_calibration=20)


@pytest.fixture(scope="module")
def cartpole_play(cartpole_model: PPO) -> Any:
    return play_clean(cartpole_model, make_env("CartPole-v1", 20), **FEW)


@pytest.mark.parametrize("eps", [0.002, 0.02, 0.2])
def test_no_attacked_return_is_below_the_certified_one(cartpole_model: PPO, cartpole_play: Any, eps: float) -> None:
    certificate = certify_play(cartpole_play, eps)
    assert set(certificate.by_method) == set(METHODS) and certificate.method in METHODS
    assert certificate.lower == max(bound.lower for bound in certificate.by_method.values())
    assert 0.0 <= certificate.lower <= certificate.clean
    for attack in (MAD(eps, seed=0), RandomAttack(eps, seed=0)):
        attacked = rollout(cartpole_model, make_env("CartPole-v1", 20), 60, attack=attack, seed=5000).returns
        upper = attacked.mean() + 3.0 * attacked.std() / np.sqrt(60)
        for method, bound in certificate.by_method.items():
            assert bound.lower <= upper, method


def test_the_certificate_says_what_it_is(cartpole_play: Any) -> None:
    certificate = certify_play(cartpole_play, 0.01, "l2", confidence=0.99)
    assert certificate.quantity == "undiscounted return of whole episodes of at most 500 steps"
    assert (certificate.eps, certificate.norm, certificate.gamma, certificate.horizon) == (0.01, "l2", 1.0, 500)
    assert certificate.n_episodes == 60 and certificate.confidence == 0.99 and certificate.not_certified == {}
    for bound in certificate.by_method.values():
        assert bound.confidence == pytest.approx(1 - 0.01 / 3)  # the best of three costs a union bound
        assert bound.n_episodes == 60 and bound.clean == pytest.approx(certificate.clean)
    assert certificate.share == pytest.approx(certificate.lower / certificate.clean)
    assert "cannot foresee" in certificate.assumptions


def test_certified_returns_fall_with_eps_and_the_noise_certifies_most(cartpole_play: Any) -> None:
    curve = [certify_play(cartpole_play, eps, bound="crown") for eps in (1e-5, 0.001, 0.003, 0.01)]
    assert all(below.lower > above.lower for below, above in pairwise(curve))
    assert curve[0].lower > 0.75 * curve[0].clean  # what is lost at eps = 0 is the confidence band
    assert curve[2].method == "action-noise" and curve[2].by_method["likelihood-ratio"].lower < 0.6 * curve[2].lower


def test_largest_eps_is_confirmed_on_the_certifying_episodes(cartpole_play: Any) -> None:
    found = largest_certified_eps(cartpole_play, 0.5, confidence=0.95)
    assert found.bound is not None and found.bound.lower >= 0.5 * found.clean
    assert [eps for eps, _ in found.tried] == sorted(eps for eps, _ in found.tried)
    passed = [eps for eps, share in found.tried if share >= 0.5]
    assert found.eps == passed[-1] and len(passed) >= len(found.tried) - 1  # stopped at the first failure
    assert 1e-4 < found.eps < 0.05
    assert found.clean == pytest.approx(max(cartpole_play.calibration.returns.mean(), cartpole_play.episodes.returns.mean()))
    assert largest_certified_eps(cartpole_play, 0.7, confidence=0.95).eps < found.eps


def test_discounted_and_cut_horizons(cartpole_model: PPO) -> None:
    discounted = certify_return(cartpole_model, make_env("CartPole-v1", 20), 0.002, gamma=0.9, **FEW)
    assert discounted.horizon is None and 0 < discounted.lower < discounted.clean < 10
    assert discounted.quantity == "return discounted by 0.9 of an infinite horizon"
    short = certify_return(cartpole_model, make_env("CartPole-v1", 20), 0.002, horizon=10, **FEW)
    assert short.horizon == 10 and 8 < short.lower <= short.clean <= 10


def test_episodes_are_cut_as_by_a_time_limit() -> None:
    venv = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    model = PPO("MlpPolicy", venv, seed=0, device="cpu")
    whole = rollout(model, venv, 6, record=True)
    length = int(np.sort(whole.lengths)[2])
    part = rollout(model, venv, 6, record=True, max_steps=length)
    assert part.lengths.tolist() == np.minimum(whole.lengths, length).tolist()
    assert part.terminated.tolist() == (whole.lengths <= length).tolist()
    for cut, full in zip(part.observations, whole.observations, strict=True):
        np.testing.assert_array_equal(cut, full[: len(cut)])


def test_the_policys_noise_is_not_the_environments() -> None:
    """Gymnasium seeds an episode with default_rng(seed), which is default_rng([seed, 0])."""
    venv = DummyVecEnv([lambda: gym.make("Pendulum-v1")])
    samples = rollout(PPO("MlpPolicy", venv, device="cpu"), venv, 1, record=True, seed=7).samples[0]
    assert not np.any(np.isclose(samples[:, 0], np.random.default_rng(7).standard_normal(200)[: len(samples)]))


class Bandit(gym.Env[Any, Any]):
    """One step: reward 1 if the action is positive. The observation is constant."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-10, 10, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), float(action[0] > 0), True, False, {}


def linear_bandit(mean: float, slope: float) -> PPO:
    model = PPO("MlpPolicy", DummyVecEnv([Bandit]), policy_kwargs=dict(net_arch=[]), seed=0, device="cpu")
    with th.no_grad():
        model.policy.action_net.weight.fill_(slope)
        model.policy.action_net.bias.fill_(mean)
        model.policy.log_std.zero_()
    return model


def test_the_noise_certificate_is_tight_on_a_threshold() -> None:
    """The adversary moves the mean by 0.7: P(a > 0) falls from Phi(1) to Phi(0.3), and nothing less can be certified."""
    from scipy.stats import norm

    model, env = linear_bandit(1.0, 2.0), DummyVecEnv([Bandit] * 50)
    certificate = certify_return(
        model, env, 0.35, horizon=1, reward_min=0.0, reward_max=1.0, n_episodes=4000, n_calibration=500, confidence=0.95
    )
    bound = certificate.by_method["action-noise"]
    assert bound.budget == pytest.approx(0.7, rel=1e-6)
    assert norm.cdf(0.3) - 0.05 < bound.lower < norm.cdf(0.3)
    assert certificate.by_method["performance-difference"].lower < bound.lower
    assert certificate.clean == pytest.approx(norm.cdf(1.0), abs=0.03)


def test_policy_smoothing_is_another_agent_and_never_the_best() -> None:
    """Noise of std 2 on the observation moves the mode 1 + 2 x by 4: Phi(.25), attacked Phi(.25 - .35 / 2)."""
    from scipy.stats import norm

    model, env = linear_bandit(1.0, 2.0), DummyVecEnv([Bandit] * 50)
    certificate = certify_return(
        model, env, 0.35, horizon=1, reward_min=0.0, n_episodes=4000, n_calibration=500, confidence=0.95, smoothing_std=2.0
    )
    smoothed = certificate.by_method["policy-smoothing"]
    assert smoothed.clean == pytest.approx(norm.cdf(0.25), abs=0.03)
    assert smoothed.budget == pytest.approx(0.175, rel=1e-6)
    assert norm.cdf(0.25 - 0.175) - 0.05 < smoothed.lower < norm.cdf(0.25 - 0.175)
    assert certificate.method != "policy-smoothing" and "performance-difference" in certificate.not_certified


def test_clipped_rewards_are_named_and_certified(countdown_policy: Any) -> None:
    env = make_env(Countdown, 10)
    certificate = certify_return(countdown_policy, env, 0.001, horizon=40, clip_rewards=(0.0, 0.5), **FEW)
    assert "each reward clipped to [0, 0.5]" in certificate.quantity and "clipped" in certificate.assumptions
    lengths = rollout(countdown_policy, env, 80).lengths[20:]
    assert certificate.clean == pytest.approx(0.5 * lengths.mean())
    assert 0 < certificate.lower < certificate.clean


def test_rewards_without_a_known_bound_are_not_certified(countdown_policy: Any) -> None:
    certificate = certify_return(countdown_policy, make_env(Countdown, 10), 0.01, horizon=40, **FEW)
    assert certificate.lower is None and certificate.share is None and certificate.by_method == {}
    assert set(certificate.not_certified) == set(METHODS)
    assert all("no range is proved" in reason for reason in certificate.not_certified.values())


def test_a_reward_that_contradicts_the_bound_stops_it(countdown_policy: Any) -> None:
    with pytest.raises(RewardRangeError, match=r"a reward of .* was seen outside \[1.2, inf\]"):
        certify_return(countdown_policy, make_env(Countdown, 10), 0.01, horizon=40, reward_min=1.2, **FEW)


def test_an_environment_with_other_arguments_has_no_proved_rewards() -> None:
    env = DummyVecEnv([lambda: gym.make("InvertedPendulum-v5", frame_skip=3)])
    model = PPO("MlpPolicy", env, device="cpu")
    certificate = certify_return(model, env, 0.01, horizon=2, n_episodes=2, n_calibration=1)
    assert certificate.lower is None and "default arguments" in certificate.not_certified["action-noise"]


@pytest.mark.parametrize("make", [lambda: make_vec_env("CartPole-v1", 4), lambda: PPO("MlpPolicy", "CartPole-v1").get_env()])
def test_environments_as_stable_baselines_makes_them_have_proved_rewards(cartpole_model: PPO, make: Any) -> None:
    certificate = certify_return(cartpole_model, make(), 0.002, n_episodes=10, n_calibration=4, confidence=0.9)
    assert certificate.lower > 0 and "1.0 at every step" in certificate.assumptions


def test_wrappers_that_may_change_the_reward_are_named(cartpole_model: PPO) -> None:
    env = DummyVecEnv([lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: 2 * reward)])
    certificate = certify_return(cartpole_model, env, 0.002, n_episodes=2, n_calibration=1)
    assert certificate.lower is None and "TransformReward" in certificate.not_certified["action-noise"]


class Penalty(VecEnvWrapper):
    """Hands rewards on but for a very rare one."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def test_smoothing_that_was_asked_for_and_not_certified_says_why() -> None:
    env = make_env("InvertedDoublePendulum-v5", 2)
    model = PPO("MlpPolicy", env, n_steps=64, device="cpu")
    certificate = certify_return(model, env, 0.001, n_episodes=3, n_calibration=1, smoothing_std=0.1)
    assert "velocities are not bounded" in certificate.not_certified["policy-smoothing"] and not certificate.by_method


@pytest.mark.filterwarnings("ignore:.*out of date")
def test_a_wrapper_around_all_and_one_around_a_single_environment_are_named_too(cartpole_model: PPO) -> None:
    plain, doubled = (lambda: gym.make("CartPole-v1")), (lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), abs))
    for env, name in ((Penalty(DummyVecEnv([plain])), "Penalty"), (DummyVecEnv([plain, doubled]), "TransformReward")):
        certificate = certify_return(cartpole_model, env, 0.002, n_episodes=2, n_calibration=1)
        assert certificate.lower is None and name in certificate.not_certified["action-noise"]
    mixed = DummyVecEnv([plain, lambda: gym.make("CartPole-v0")])
    assert certify_return(cartpole_model, mixed, 0.002, n_episodes=2, n_calibration=1).lower is None


def unlimited() -> Any:
    return DummyVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=-1)])


def test_environments_without_a_time_limit_end_at_the_horizon() -> None:
    model = PPO("MlpPolicy", unlimited(), device="cpu")
    for gamma, message in ((1.0, "gamma = 1 needs a horizon"), (0.9, "horizon must be given")):
        with pytest.raises(ValueError, match=message):
            certify_return(model, unlimited(), 0.01, gamma=gamma)
    certificate = certify_return(model, unlimited(), 0.001, horizon=20, n_episodes=6, n_calibration=2)
    assert certificate.horizon == 20 and certificate.lower >= 20 * -16.2736045


def test_the_environment_must_fit_the_agent(cartpole_model: PPO) -> None:
    with pytest.raises(TypeError, match="env must be a VecEnv built on DummyVecEnv"):
        certify_return(cartpole_model, gym.make("CartPole-v1"), 0.01)
    with pytest.raises(ValueError, match=r"env observes .* the policy was made for"):
        certify_return(cartpole_model, make_env("Acrobot-v1", 1), 0.01)
    venv = VecNormalize(make_env("InvertedPendulum-v5", 2))
    with pytest.raises(ValueError, match="env has no VecNormalize, and the model was trained on observations normalised"):
        certify_return(PPO("MlpPolicy", venv, device="cpu"), make_env("InvertedPendulum-v5", 1), 0.01)


def test_what_is_refused(cartpole_model: PPO) -> None:
    env = make_env("CartPole-v1", 2)
    for arguments, message in (
        (dict(deterministic=True), "deterministic=True: certified returns speak of the stochastic policy"),
        (dict(eps=-1.0), "eps must be finite and >= 0"),
        (dict(norm="l1"), "norm must be one of"),
        (dict(bound="sdp"), "method must be one of"),
        (dict(confidence=1.0), r"confidence must lie in \[0.5, 1\)"),
        (dict(gamma=1.5), r"gamma must be in \(0, 1\]"),
        (dict(horizon=501), "horizon must be at most the environment's time limit of 500, got 501"),
        (dict(horizon=10.5), "horizon must be a whole number of at least 1, got 10.5"),
        (dict(n_episodes=0), "n_episodes must be a whole number of at least 1"),
        (dict(n_calibration=3.5), "n_calibration must be a whole number of at least 1"),
        (dict(seed=-1), "seed must be a whole number of at least 0"),
        (dict(clip_rewards=(1.0, 0.0)), "clip_rewards must be two finite numbers"),
        (dict(clip_rewards=5), "clip_rewards must be two numbers, the smaller first; got 5"),
        (dict(clip_rewards=(0.0, 1.0), reward_min=0.0), "it is one or the other"),
        (dict(smoothing_std=0.0), "smoothing_std must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            certify_return(cartpole_model, env, **{"eps": 0.01, "n_episodes": 2, "n_calibration": 1, **arguments})


def test_gamma_1_needs_a_horizon(countdown_policy: Any) -> None:
    with pytest.raises(ValueError, match="gamma = 1 needs a horizon"):
        certify_return(countdown_policy, make_env(Countdown, 2), 0.01)


def test_statistics_that_are_still_being_updated_are_refused() -> None:
    venv = VecNormalize(make_env("InvertedPendulum-v5", 2))
    model = PPO("MlpPolicy", venv, device="cpu")
    with pytest.raises(ValueError, match="VecNormalize statistics are still being updated"):
        certify_return(model, venv, 0.01)
    venv.training = False
    assert certify_return(model, venv, 0.001, n_episodes=4, n_calibration=2).lower >= 0


def test_policies_that_are_not_covered_are_refused() -> None:
    for model, env in (
        (SAC("MlpPolicy", "Pendulum-v1", buffer_size=10), "Pendulum-v1"),
        (DQN("MlpPolicy", "CartPole-v1", buffer_size=10), "CartPole-v1"),
        (PPO("MlpPolicy", "Pendulum-v1", use_sde=True), "Pendulum-v1"),
    ):
        with pytest.raises(ValueError, match=r"covariance depends on the state|without noise of its own"):
            certify_return(model, make_env(env, 1), 0.01)
