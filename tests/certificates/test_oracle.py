"""The performance-difference bounds against the exact worst case of finite SA-MDPs, found by dynamic programming."""

from __future__ import annotations

import numpy as np
import pytest
from finite_mdp import FiniteMDP, random_mdp
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_prune_robust.certificates.divergences import categorical_tv
from sb3_prune_robust.certificates.returns import capped_performance_difference, performance_difference

CASES = {"seed": st.integers(0, 2**32 - 1), "ends_early": st.booleans()}


@settings(max_examples=120, deadline=None)
@given(**CASES, gamma=st.sampled_from([0.3, 0.9, 0.97]))
def test_1_discounted_loss_of_the_optimal_adversary(seed, ends_early, gamma):
    mdp = random_mdp(seed, ends_early)
    steps = int(np.log(1e-13) / np.log(gamma))
    loss = (mdp.value(gamma, steps, False) - mdp.value(gamma, steps, True))[0]
    assert loss <= performance_difference(mdp.span, gamma, mdp.visited_tv(mdp.tv_max(), gamma)) + 1e-9


@settings(max_examples=120, deadline=None)
@given(**CASES, gamma=st.sampled_from([0.5, 0.95, 1.0]), cap=st.integers(1, 25))
def test_1_prime_capped_loss_of_the_optimal_adversary(seed, ends_early, gamma, cap):
    mdp = random_mdp(seed, ends_early)
    loss = (mdp.value(gamma, cap, False) - mdp.value(gamma, cap, True))[0]
    assert loss <= capped_performance_difference(mdp.span, mdp.capped_tv(mdp.tv_max(), gamma, cap)) + 1e-9


@settings(max_examples=100, deadline=None)
@given(**CASES, gamma=st.sampled_from([0.5, 0.95]), cap=st.integers(1, 20), scale=st.sampled_from([0.01, 0.3, 2.0]))
def test_2_loss_between_two_policies(seed, ends_early, gamma, cap, scale):
    mdp = random_mdp(seed, ends_early)
    other = FiniteMDP(mdp.move, mdp.reward, mdp.logits.copy(), mdp.seen, ends_early)
    other.logits += scale * np.random.default_rng(seed).normal(size=mdp.logits.shape)
    tv = categorical_tv(mdp.logits, other.logits)
    difference = np.abs(mdp.value(gamma, 400, False) - other.value(gamma, 400, False))[0]
    assert difference <= performance_difference(mdp.span, gamma, mdp.visited_tv(tv, gamma)) + 1e-7
    capped = np.abs(mdp.value(gamma, cap, False) - other.value(gamma, cap, False))[0]
    assert capped <= capped_performance_difference(mdp.span, mdp.capped_tv(tv, gamma, cap)) + 1e-9


def one_decision(tv: float) -> FiniteMDP:
    """State 0: action 0 leads to pay 1 for ever (1), action 1 to pay 0 (2). The adversary shows 3 for 0: 1 is likelier."""
    move = np.zeros((4, 2, 4))
    move[0, 0, 1] = move[0, 1, 2] = move[3, :, 2] = 1.0
    move[1, :, 1] = move[2, :, 2] = 1.0
    reward = np.zeros((4, 2))
    reward[1] = 1.0
    p = np.array([[0.5 + tv / 2, 0.5 - tv / 2], [0.5, 0.5], [0.5, 0.5], [0.5 - tv / 2, 0.5 + tv / 2]])
    return FiniteMDP(move, reward, np.log(p), [[0, 3], [1], [2], [3]], ends_early=False)


def test_1_is_nearly_attained():
    mdp, gamma = one_decision(0.2), 0.99
    loss = (mdp.value(gamma, 3000, False) - mdp.value(gamma, 3000, True))[0]
    bound = performance_difference(mdp.span, gamma, mdp.visited_tv(mdp.tv_max(), gamma))
    assert loss == pytest.approx(0.2 * gamma / (1 - gamma))
    assert gamma - 1e-9 <= loss / bound <= 1.0


def test_counterexample_a_plain_average_over_steps_is_unsound():
    mdp, gamma, steps = one_decision(0.2), 0.9, 1000
    loss = (mdp.value(gamma, steps, False) - mdp.value(gamma, steps, True))[0]
    average = float((mdp.alive(steps) @ mdp.tv_max()).mean())
    assert performance_difference(mdp.span, gamma, average) < 0.02 * loss
    assert loss <= performance_difference(mdp.span, gamma, mdp.visited_tv(mdp.tv_max(), gamma))


def test_counterexample_reward_1_while_alive_has_range_0():
    """``r_max - r_min`` would certify that nothing can be lost; half the return is."""
    move = np.zeros((2, 2, 2))
    move[0, 0, 0] = move[1, 0, 1] = 1.0  # action 1 ends the episode
    mdp = FiniteMDP(move, np.ones((2, 2)), np.log([[0.9, 0.1], [0.5, 0.5]]), [[0, 1], [1]], ends_early=True)
    clean, attacked = mdp.value(0.9, 400, False)[0], mdp.value(0.9, 400, True)[0]
    assert attacked < 0.5 * clean
    assert mdp.reward.max() - mdp.reward.min() == 0.0
    assert mdp.span == 1.0
    assert clean - attacked <= performance_difference(mdp.span, 0.9, mdp.visited_tv(mdp.tv_max(), 0.9))
