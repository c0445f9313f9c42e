"""The search for pushes: it finds the one that topples, and luck does not win."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_prune_robust.attacks import PAAD, Budget
from sb3_prune_robust.attacks import search as search_module
from sb3_prune_robust.attacks.adversary_env import AdversaryVecEnv
from sb3_prune_robust.attacks.fitting import Meter, attacked_returns
from sb3_prune_robust.attacks.search import Candidate, PushSearch, curriculum_scale

STEPS, FALL = 40, 10.0


class Topple(gym.Env[Any, Any]):
    """
    A body that forgets 5 % of its lean at each step and falls at a lean of 10: only a push to one side, kept up, topples it.

    Observes its lean as 0, always (the sensor is what the adversary moves); pays 1 a step; the action is added to the lean.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.lean, self.time = np.zeros(2), 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.lean, self.time = 0.95 * self.lean + action, self.time + 1
        fallen = self.lean[0] - self.lean[1] > FALL  # one push of four, and only if both parts agree
        return np.zeros(2, np.float32), 1.0, bool(fallen), self.time == STEPS, {}


@pytest.fixture
def victim() -> ActorCriticPolicy:
    """Its mean is what it observes."""
    policy = ActorCriticPolicy(Topple.observation_space, Topple.action_space, lambda _: 1e-3, net_arch=[2])
    with th.no_grad():
        policy.mlp_extractor.policy_net[0].weight.copy_(th.eye(2))
        policy.action_net.weight.copy_(th.eye(2))
        for layer in (policy.mlp_extractor.policy_net[0], policy.action_net):
            layer.bias.zero_()
    return policy


def least(eps: float) -> int:
    """Steps until the best push topples it."""
    lean, steps = 0.0, 0
    while lean <= FALL:
        lean, steps = 0.95 * lean + 2 * np.tanh(eps), steps + 1
    return steps


@pytest.mark.parametrize("curriculum", [1.0, 3.0])
def test_the_push_that_topples_is_found(victim: ActorCriticPolicy, curriculum: float) -> None:
    venv = DummyVecEnv([Topple] * 16)
    attack = PAAD(0.5, seed=0, deterministic=True, search=0.8, curriculum=curriculum)
    attack.fit(victim, venv, Budget(steps=40_000))
    assert attack._push is not None
    constant = attack._push[0]
    assert constant[0] > 0 > constant[1]
    returns = attacked_returns(attack, victim, venv, 4, deterministic=True, seed=1)
    assert returns.mean() == least(0.5) < STEPS
    moved = attack(victim, np.zeros((3, 2), np.float32))
    np.testing.assert_allclose(moved, [[0.5, -0.5]] * 3, rtol=1e-6)


def adversary(victim: ActorCriticPolicy, n_envs: int) -> AdversaryVecEnv:
    space = spaces.Box(-1, 1, (2,), np.float32)
    return AdversaryVecEnv(DummyVecEnv([Topple] * n_envs), victim, space, lambda obs, a, scale: obs + scale * a, True, 0)


def test_the_luckiest_does_not_win(victim: ActorCriticPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """One finalist returned -100 in the search and returns 50 when played again; the other 20, always."""

    def played(group: list[Candidate], *_: Any) -> None:
        for candidate in group:
            candidate.returns.append(50.0 if candidate.push[0] == 1.0 else 20.0)

    monkeypatch.setattr(search_module, "_try", played)
    search = PushSearch(1, np.random.default_rng(0))
    search.finalists = [np.array([1.0]), np.array([2.0])]
    found = search._playoff(adversary(victim, 2), lambda push, obs: push, Meter(Budget(steps=1)))
    assert found == 2.0


@pytest.mark.parametrize("n_envs", [1, 3, 7, 64])
def test_any_number_of_environments_plays(victim: ActorCriticPolicy, n_envs: int) -> None:
    meter, scales = Meter(Budget(steps=30_000)), []
    env = adversary(victim, n_envs)

    def direct(pushes: Any, observations: Any) -> Any:
        assert len(pushes) == len(observations) == n_envs
        scales.append(env.scale)
        return np.sign(pushes) / 2

    push = PushSearch(2, np.random.default_rng(0)).run(env, direct, meter, 1.0, 2.0, lambda progress: None)
    assert push[0] > 0 > push[1]
    assert max(scales) == pytest.approx(2.0, abs=0.2) and scales[-1] == 1.0 == env.scale
    assert meter.cost.steps >= 30_000


def test_the_curriculum_ends_at_eps() -> None:
    assert [curriculum_scale(3.0, done) for done in (0.0, 0.3, 0.6, 1.0)] == [3.0, 2.0, 1.0, 1.0]


def test_a_push_that_does_not_help_is_dropped(victim: ActorCriticPolicy) -> None:
    """Nothing topples within this eps: every push returns what none returns, and learning starts from scratch."""
    venv = DummyVecEnv([Topple] * 4)
    attack = PAAD(0.01, seed=0, deterministic=True, search=0.5, curriculum=2.0)
    attack.fit(victim, venv, Budget(steps=8000))
    assert attack._push is None and "push" not in attack._arrays()
    assert not np.array_equal(attack(victim, np.zeros((1, 2), np.float32)), np.zeros((1, 2)))
