"""Every attack stays in its ball, in exact arithmetic, whatever it does."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_prune_robust.attacks import ATTACKS, Attack, Budget, FittedAttack, RandomAttack, make_attack
from sb3_prune_robust.attacks.balls import Ball, LInfBall, round_down

FEW_STEPS: dict[str, dict[str, int]] = {
    "pgd": {"steps": 3, "restarts": 2},
    "mad": {"steps": 3, "restarts": 2},
    "critic": {"steps": 3, "restarts": 2},
    "mad-sgld": {"steps": 3},
    "robust-sarsa": {"updates": 50},
}


class Five(gym.Env[Any, Any]):
    """Five numbers to observe, three steps an episode."""

    observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (3,))
    steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.normal(size=5).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.np_random.normal(size=5).astype(np.float32), float(action[0]), self.steps == 3, False, {}


LEARNED: dict[str, FittedAttack] = {}


def ready(policy: ActorCriticPolicy, name: str, eps: Any, norm: str, mask: Any = None, seed: int | None = None) -> Attack:
    """An attack by name; one that is learned is fitted once on a tiny budget, and takes over from that what it learned."""
    attack = make_attack(name, eps, norm, mask=mask, seed=seed, **FEW_STEPS.get(name, {}))
    if isinstance(attack, FittedAttack):
        if name not in LEARNED:
            first = make_attack(name, 0.1, seed=0, **FEW_STEPS.get(name, {}))
            assert isinstance(first, FittedAttack)
            LEARNED[name] = first.fit(policy, DummyVecEnv([Five] * 4), Budget(steps=400))
        attack._restore(LEARNED[name]._arrays())
        attack.cost = LEARNED[name].cost
    return attack


class Far(Attack):
    """Leaves the ball by far."""

    def perturb(self, policy: Any, ball: Ball) -> Any:
        return ball.center + self._rng.normal(size=ball.center.shape) * 10.0 ** self._rng.integers(-8, 9)


def in_ball(true: Any, perturbed: Any, eps: Any, norm: str) -> bool:
    """Membership without rounding: floats are fractions."""
    eps = np.broadcast_to(np.asarray(eps, np.float64), true.shape[1:])
    for row, hat in zip(true, perturbed, strict=True):
        moves = [abs(Fraction(float(h)) - Fraction(float(s))) for s, h in zip(row, hat, strict=True)]
        radii = [Fraction(float(e)) for e in eps]
        if any(m > e for m, e in zip(moves, radii, strict=True)):
            return False
        if norm == "l2" and sum((m / e) ** 2 for m, e in zip(moves, radii, strict=True) if e) > 1:
            return False
    return True


def observations(dtype: Any) -> st.SearchStrategy[Any]:
    entries = st.floats(-100, 100, width=32) | st.floats(-1e6, 1e6, width=32)
    return hnp.arrays(dtype, st.tuples(st.integers(1, 4), st.just(5)), elements=entries)


radius = st.floats(0, 2) | st.just(0.075) | st.floats(1e-9, 1e-3)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from([*ATTACKS, "far"]), norm=st.sampled_from(["linf", "l2"]), seed=st.integers(0, 99))
def test_every_attack_stays_in_the_ball(policy: ActorCriticPolicy, data: Any, name: str, norm: str, seed: int) -> None:
    obs = data.draw(observations(data.draw(st.sampled_from([np.float32, np.float64]))))
    eps = data.draw(radius | hnp.arrays(np.float64, 5, elements=radius))
    mask = data.draw(st.none() | hnp.arrays(np.bool_, 5).filter(np.any))
    if name == "far":
        attack: Attack = Far(eps, norm, mask, seed)
    else:
        attack = ready(policy, name, eps, norm, mask, seed)
    before = obs.copy()
    perturbed = attack(policy, obs)
    assert perturbed.dtype == obs.dtype and perturbed.shape == obs.shape
    np.testing.assert_array_equal(obs, before)
    allowed = np.broadcast_to(eps, 5) * (True if mask is None else mask)
    assert in_ball(obs, perturbed, allowed, norm)
    np.testing.assert_array_equal(perturbed[:, allowed == 0], obs[:, allowed == 0])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_whole_ball_is_used(policy: ActorCriticPolicy, norm: str, dtype: Any) -> None:
    """Rounding inward costs a rounding error, not more."""
    obs = np.random.default_rng(0).normal(size=(500, 5)).astype(dtype)
    eps = np.array([0.1, 0.2, 0.05, 0.3, 0.075])
    change = (Far(eps, norm, seed=0)(policy, obs).astype(np.float64) - obs) / eps
    size = np.abs(change).max(axis=1) if norm == "linf" else np.linalg.norm(change, axis=1)
    assert np.mean(size > 1 - 1e-4) > 0.3  # the share of draws that really left the ball
    assert size.max() <= 1


def test_plain_addition_leaves_the_ball_where_the_projection_does_not() -> None:
    obs = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    eps = np.full(5, 0.075)
    ball = LInfBall(obs, eps, round_down(eps, np.float32))
    assert not in_ball(obs, obs + np.float32(0.075), 0.075, "linf")
    assert in_ball(obs, ball.project(obs + np.float32(0.075)), 0.075, "linf")


def test_random_is_uniform_in_volume(policy: ActorCriticPolicy) -> None:
    obs = np.zeros((20_000, 5), np.float64)
    mask = np.array([True, True, True, False, False])
    flat = RandomAttack(2.0, "l2", mask, seed=1)(policy, obs)
    # In three dimensions the cube of the radius is uniform.
    cubes = np.sort((np.linalg.norm(flat, axis=1) / 2.0) ** 3)
    assert np.abs(cubes - np.linspace(0, 1, len(cubes))).max() < 0.02
    assert np.abs(flat[:, :3].mean(axis=0)).max() < 0.03
    box = np.sort(RandomAttack(2.0, seed=1)(policy, obs)[:, 4])
    assert np.abs(box - np.linspace(-2, 2, len(box))).max() < 0.08


@pytest.mark.parametrize("name", list(ATTACKS))
def test_zero_eps_returns_the_observation_exactly(policy: ActorCriticPolicy, name: str) -> None:
    obs = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(make_attack(name, 0.0)(policy, obs), obs)
    np.testing.assert_array_equal(make_attack(name, np.zeros(5), "l2")(policy, obs), obs)
    assert make_attack(name, 0.1)(policy, obs[:0]).shape == (0, 5)


@pytest.mark.parametrize("name", list(ATTACKS))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_seed_fixes_the_perturbation(policy: ActorCriticPolicy, name: str, norm: str) -> None:
    obs = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    first, again = (ready(policy, name, 0.1, norm, seed=7)(policy, obs) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, obs)
    if name != "critic" and name not in LEARNED:  # may start, and win, at the observation itself; the seed is that of learning
        assert not np.array_equal(first, ready(policy, name, 0.1, norm, seed=8)(policy, obs))


def test_tensors_stay_tensors(policy: ActorCriticPolicy) -> None:
    obs = th.randn(4, 5)
    perturbed = make_attack("mad", 0.1, seed=0)(policy, obs)
    assert isinstance(perturbed, th.Tensor) and perturbed.dtype == th.float32
    np.testing.assert_array_equal(perturbed.numpy(), make_attack("mad", 0.1, seed=0)(policy, obs.numpy()))


@pytest.mark.parametrize("engine", ["analytic", "autograd"])
def test_observations_of_any_shape(make_policy: Callable[..., ActorCriticPolicy], engine: str) -> None:
    policy = make_policy(shape=(2, 3))
    obs = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    mask = np.array([[True, False, True], [False, False, True]])
    change = np.abs(make_attack("mad", 0.1, mask=mask, seed=0, engine=engine)(policy, obs) - obs)
    assert change[:, mask].min() > 0.09 and change[:, ~mask].max() == 0
    flat = np.abs(make_attack("mad", 0.1, mask=mask.ravel(), seed=0, engine=engine)(policy, obs) - obs)
    np.testing.assert_array_equal(change, flat)


def test_the_final_call_cannot_be_overridden() -> None:
    with pytest.raises(TypeError, match="perturb, not __call__"):
        type("Rogue", (RandomAttack,), {"__call__": lambda self, policy, obs: obs + 1})
