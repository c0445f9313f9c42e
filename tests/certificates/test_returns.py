"""Confidence bounds, sums over episodes, reward ranges and the regret, against hand-computed values and simulation."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from scipy import stats

from sb3_prune_robust.certificates import (
    RewardRange,
    attacked_loss_bound,
    capped_tv,
    certified_gain,
    check_rewards,
    loss_bound,
    lower_mean,
    policy_difference,
    regret_terms,
    return_lower_bound,
    reward_range,
    robustness_gain,
    upper_mean,
    visitation_tv,
)
from sb3_prune_robust.certificates.regret import CertifiedRegret
from sb3_prune_robust.certificates.returns import discounted_sums, remaining

UNIT = RewardRange(0.0, 1.0, True, "test")


def test_betting_bound_by_hand():
    """One sample 0 at alpha 1/2: the wealth 1 + 0.75 m / (1 - m) reaches 2 at m = 4/7."""
    bound = upper_mean([0.0], 0.0, 1.0, alpha=0.5)
    assert bound.bound == pytest.approx(4 / 7, abs=1e-9)
    assert (bound.mean, bound.confidence, bound.n_episodes) == (0.0, 0.5, 1)
    assert lower_mean([3.0], 1.0, 3.0, alpha=0.5).bound == pytest.approx(3 - 2 * 4 / 7, abs=1e-9)


@pytest.mark.parametrize("law", [stats.bernoulli(0.03), stats.bernoulli(0.6), stats.beta(0.3, 2), stats.beta(5, 1)])
@pytest.mark.parametrize("n", [10, 60])
def test_confidence_bounds_fail_no_more_often_than_stated(law, n):
    rng, alpha, trials = np.random.default_rng(0), 0.1, 500
    samples = law.rvs(size=(trials, n), random_state=rng).astype(float)
    above = np.array([upper_mean(row, 0.0, 1.0, alpha).bound for row in samples])
    below = np.array([lower_mean(row, 0.0, 1.0, alpha).bound for row in samples])
    allowed = stats.binom(trials, alpha).ppf(0.9999) / trials
    assert np.mean(above < law.mean()) <= allowed
    assert np.mean(below > law.mean()) <= allowed
    hoeffding = math.sqrt(math.log(1 / alpha) / (2 * n))
    assert np.mean(above - samples.mean(axis=1)) < 1.15 * hoeffding


def test_confidence_bound_of_small_values_is_far_below_hoeffding():
    samples = np.random.default_rng(0).uniform(0.0, 0.02, size=100)
    bound = upper_mean(samples, 0.0, 1.0, 0.05).bound
    assert samples.mean() < bound < 0.4 * (samples.mean() + math.sqrt(math.log(20) / 200))
    assert upper_mean(samples, 0.0, 0.02, 0.05).bound < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0, 1, 0.05), "samples must be a non-empty vector"),
        (([2.0], 0, 1, 0.05), r"samples must lie in \[low, high\] = \[0, 1\]"),
        (([np.nan], 0, 1, 0.05), "samples must lie in"),
        (([0.5], 0, 1, 0.0), r"alpha must be in \(0, 0.5\]"),
        (([0.5], 0, 1, 0.7), r"alpha must be in \(0, 0.5\]"),
        (([0.5], 1, 0, 0.05), "low <= high"),
    ],
)
def test_bad_samples(arguments, message):
    with pytest.raises(ValueError, match=message):
        upper_mean(*arguments)


def test_sums_by_hand():
    values = [[1.0, 2.0, 4.0], [8.0]]
    np.testing.assert_allclose(discounted_sums(values, [True, True], 0.5), [3.0, 8.0])
    # cut after 3 steps and after 1: gamma^T tail / (1 - gamma)
    np.testing.assert_allclose(discounted_sums(values, [False, False], 0.5, tail=2.0), [3.5, 10.0])
    np.testing.assert_allclose(discounted_sums(values, [False, True], 1.0, horizon=3), [7.0, 8.0])
    np.testing.assert_allclose(remaining([1, 2, 3], 0.5), [1.0, 1.5, 1.75])
    np.testing.assert_allclose(remaining([1, 2, 3], 1.0), [1, 2, 3])


def test_f_counts_what_a_time_limit_cut_off():
    ended = visitation_tv([[0.5, 0.5]], [True], 0.5)
    cut = visitation_tv([[0.5, 0.5]], [False], 0.5)
    assert ended.mean == pytest.approx(0.375)
    assert cut.mean == pytest.approx(0.375 + 0.25)
    assert visitation_tv([[0.5, 0.5]], [False], 0.5, tv_everywhere=0.6).mean == pytest.approx(0.375 + 0.15)
    assert ended.bound > ended.mean


def test_capped_weights_by_hand():
    assert capped_tv([[0.1, 0.2, 0.3]], [False], 1.0, horizon=3).mean == pytest.approx(3 * 0.1 + 2 * 0.2 + 0.3)
    assert capped_tv([[0.1]], [True], 0.5, horizon=2).mean == pytest.approx(1.5 * 0.1)
    # the range is that of the weighted sum: a certain total variation of 1 is where the bound ends
    assert capped_tv([[1.0] * 3] * 40, [True] * 40, 1.0, horizon=3).bound == pytest.approx(6.0)


def test_loss_bound_by_hand():
    tv = [[0.01] * 50] * 200
    loss = loss_bound(tv, [True] * 200, UNIT, gamma=0.5, alpha=0.05, tv_everywhere=0.01)
    assert loss.formula == "(1)" and loss.span == 1.0
    assert loss.tv.bound == pytest.approx(0.01)  # all samples at the top of their range
    assert loss.value == pytest.approx(0.04)
    capped = loss_bound([[0.01, 0.01]] * 200, [False] * 200, UNIT, 1.0, horizon=2, tv_everywhere=0.01)
    assert capped.formula == "(1')" and capped.value == pytest.approx(0.03)


def test_a_vacuous_loss_is_the_span_of_the_return():
    assert loss_bound([[1.0] * 9], [False], UNIT, 0.9).value == pytest.approx(10.0)
    assert loss_bound([[1.0] * 9], [False], UNIT, 1.0, horizon=9).value == pytest.approx(9.0)


def test_without_a_reward_range_nothing_is_certified():
    unknown = reward_range("Hopper-v5")
    assert unknown.span is None and "velocities" in unknown.reason
    assert loss_bound([[0.0]], [True], unknown, 0.9) is None
    assert return_lower_bound([[0.0]], [True], unknown, 0.9) is None
    assert attacked_loss_bound(([[0.0]], [True]), ([[0.0]], [True]), unknown, 0.9) is None


def test_return_lower_bound_takes_the_tail_at_its_worst():
    negative = RewardRange(-1.0, 1.0, False, "test")
    bound = return_lower_bound([[1.0]] * 30, [False] * 30, negative, 0.5)
    assert bound.mean == pytest.approx(1.0 - 0.5 * 2.0)
    assert -2.0 <= bound.bound < bound.mean
    assert return_lower_bound([[1.0]] * 30, [True] * 30, UNIT, 0.5).mean == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0.1]], [True], UNIT, 1.0), "gamma = 1 needs a horizon"),
        (([[0.1]], [True], UNIT, 1.5), r"gamma must be in \(0, 1\]"),
        (([[0.1]], [False], UNIT, 0.9, 5), "incomplete or longer than horizon 5"),
        (([[0.1] * 6], [True], UNIT, 0.9, 5), "incomplete or longer than horizon 5"),
        (([[0.1]], [True, True], UNIT, 0.9), "1 episodes and 2 terminated flags"),
        (([], [], UNIT, 0.9), "0 episodes and 0 terminated flags"),
        (([[]], [True], UNIT, 0.9), "episode 0 must be a non-empty vector"),
        (([[1.2]], [True], UNIT, 0.9), r"tv of episode 0 must be in \[0, tv_everywhere = 1\]"),
        (([[np.nan]], [True], UNIT, 0.9), "tv of episode 0"),
        (([[0.1]], [True], RewardRange(0.0, 1.0, False, ""), 0.9), "ends_early=False"),
    ],
)
def test_bad_episodes(arguments, message):
    with pytest.raises(ValueError, match=message):
        loss_bound(*arguments)


def test_reward_ranges():
    assert reward_range("CartPole-v1").span == 1.0  # r_max - r_min would be 0
    assert reward_range("Pendulum-v1").span == pytest.approx(math.pi**2 + 6.4 + 0.004, abs=1e-6)
    assert reward_range("MountainCar-v0").span == 1.0
    assert reward_range("CartPole-v1", env_kwargs={"sutton_barto_reward": True}).span is None
    assert reward_range("Hopper-v5", 0.0, 5.0).span == 5.0
    assert reward_range("Hopper-v5", 2.0, 5.0).span == 5.0
    one_sided = reward_range("Hopper-v5", reward_min=0.0)
    assert one_sided.span is None and "reward_max was not given" in one_sided.reason
    with pytest.raises(ValueError, match="reward_min must be at most reward_max"):
        reward_range("Hopper-v5", 1.0, 0.0)
    with pytest.raises(ValueError, match="reward_max must be finite"):
        reward_range("Hopper-v5", 1.0, math.inf)


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "InvertedPendulum-v5"]
)
def test_proved_ranges_hold_in_play(env_id):
    env, known = gym.make(env_id), reward_range(env_id)
    env.action_space.seed(0)
    env.reset(seed=0)
    rewards, ended = [], False
    for _ in range(600):
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        rewards.append(float(reward))
        ended |= terminated
        if terminated or truncated:
            env.reset()
    check_rewards(rewards, known)
    assert known.ends_early or not ended


def test_a_reward_outside_its_range_stops():
    with pytest.raises(ValueError, match=r"a reward of -0.5 was seen outside \[0, 1\]"):
        check_rewards([0.5, -0.5], UNIT)


def test_regret_by_hand():
    terms = regret_terms(10.0, dense_clean=[9.0, 7.0], pruned_clean=[6.0], pruned_attacked=[1.0, 2.0])
    assert (terms.clean_task, terms.pruning_loss, terms.robustness, terms.total) == (2.0, 2.0, 4.5, 8.5)
    assert robustness_gain([8.0], [1.0], [6.0], [1.5]) == pytest.approx(7.0 - 4.5)
    with pytest.raises(ValueError, match="best_clean_return_seen 7 is below"):
        regret_terms(7.0, [8.0], [6.0], [1.0])
    with pytest.raises(ValueError, match="pruned_attacked must be one or more finite returns"):
        regret_terms(10.0, [8.0], [6.0], [])


def test_certified_gain_is_attacked_loss_minus_certified_loss():
    n = 200
    clean, attacked = ([[1.0] * 10] * n, [False] * n), ([[1.0]] * n, [True] * n)
    loss = attacked_loss_bound(clean, attacked, UNIT, 1.0, horizon=10, alpha=0.05)
    assert loss.mean == pytest.approx(9.0)
    assert 8.0 < loss.bound < 9.0
    certified = loss_bound([[0.001] * 10] * n, [False] * n, UNIT, 1.0, 10, alpha=0.05, tv_everywhere=0.001)
    gain = certified_gain(loss, certified)
    assert gain.value == pytest.approx(loss.bound - 0.055)
    assert gain.confidence == pytest.approx(0.9)
    regret = CertifiedRegret(certified, certified)
    assert regret.total == pytest.approx(0.11) and regret.confidence == pytest.approx(0.9)
    assert CertifiedRegret(None, certified).total is None


def test_attacked_loss_gives_no_credit_for_what_was_cut_off():
    """Discounted, cut at one step: the attacked policy may have earned everything after it, the clean one nothing."""
    loss = attacked_loss_bound(([[1.0]] * 9, [False] * 9), ([[0.0]] * 9, [False] * 9), UNIT, 0.5)
    assert loss.mean == pytest.approx(1.0 - 0.5 * 2.0)


def test_policy_difference(build_policy):
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(5, 5)).astype(np.float32)
    policy, other = build_policy(seed=0), build_policy(seed=0)
    assert np.all(policy_difference(policy, other, observations).tv < 1e-9)
    other.action_net.bias.data[1] += 0.5
    difference = policy_difference(policy, other, observations)
    assert difference.method == "exact"
    np.testing.assert_allclose(difference.tv, 2 * stats.norm.cdf(0.25 / math.exp(0.2)) - 1, rtol=1e-5)
    other.log_std.data[0] += 0.1
    assert policy_difference(policy, other, observations).method == "kl"
    assert np.all(policy_difference(policy, other, observations).tv > difference.tv)


def test_policy_difference_of_std_alone_is_not_0(build_policy):
    policy, other = build_policy(seed=0), build_policy(seed=0)
    other.log_std.data[0] -= math.log(2)
    assert np.all(policy_difference(policy, other, np.zeros((1, 5))).tv >= 0.3227)  # TV(N(0, 1), N(0, 1/4))


@pytest.mark.parametrize("kind", ["categorical", "multi"])
def test_policy_difference_of_categoricals_against_torch(build_policy, kind):
    observations = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    policy, other = build_policy(kind, 0), build_policy(kind, 1)
    difference = policy_difference(policy, other, observations)
    with th.no_grad():
        p, q = (x.get_distribution(th.as_tensor(observations)).distribution for x in (policy, other))
    joint = [joint_probabilities(x if isinstance(x, list) else [x]) for x in (p, q)]
    exact = 0.5 * np.abs(joint[0] - joint[1]).sum(axis=1)
    assert np.all(exact <= difference.tv + 1e-6)
    if kind == "categorical":
        np.testing.assert_allclose(difference.tv, exact, atol=1e-6)


def joint_probabilities(categoricals):
    probabilities = [c.probs.numpy() for c in categoricals]
    joint = probabilities[0]
    for more in probabilities[1:]:
        joint = (joint[:, :, None] * more[:, None, :]).reshape(len(joint), -1)
    return joint


def test_policies_of_other_spaces_are_refused(build_policy):
    with pytest.raises(ValueError, match="policy and other must have the same spaces"):
        policy_difference(build_policy(), build_policy("categorical"), np.zeros((1, 5)))
