"""
An SA-MDP whose optimal adversary is known: the learned ones come within 5 % of it, the myopic one does not.

``Lure``: the agent walks on a road for ``STEPS`` steps, reward 1 a step. Its sensor ``z`` is 0 and says nothing. Who reads
``z > 0`` trips often (half the reward is lost, no more); who reads ``z < 0`` leaves the road now and then, for an edge, at no
loss. On the edge, tripping is a fall: the episode is over. MAD moves the action furthest, so that the agent trips on the road
for ever; the optimal adversary first lures it to the edge, with the smaller change of the two, and then makes it fall.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy.special import ndtr, softmax
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_prune_robust.attacks import MAD, PAAD, SARL, Attack, Budget, LearnedAttack, RandomAttack
from sb3_prune_robust.attacks.fitting import attacked_returns

STEPS = 8
EPS = 0.4
SIGMA = 0.3
ROAD, EDGE, OVER = 0, 1, 2
WALK, TRIP, LEAVE = 0, 1, 2
TRIP_ABOVE, LEAVE_BELOW = 0.6, -0.3  # what a real-valued action means
TRUE = np.array([[t / STEPS, lane, 0.0] for t in range(STEPS) for lane in (-1.0, 1.0)], np.float32)


class Lure(gym.Env[Any, Any]):
    """Observes time, lane and the sensor ``z``; see above."""

    def __init__(self, actions: spaces.Space[Any]) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = actions
        self.time, self.lane = 0, ROAD

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.lane = 0, ROAD
        return TRUE[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if isinstance(self.action_space, spaces.Box):
            action = TRIP if action[0] > TRIP_ABOVE else LEAVE if action[0] < LEAVE_BELOW else WALK
        reward = 0.5 if action == TRIP and self.lane == ROAD else 1.0
        fallen = self.lane == EDGE and action == TRIP
        self.time, self.lane = self.time + 1, EDGE if action == LEAVE else self.lane
        over = fallen or self.time == STEPS
        return TRUE[2 * (self.time % STEPS) + self.lane], 0.0 if fallen else reward, over, False, {}


@dataclass
class Victim:
    """A policy of given weights, and the chances of its three choices at observations ``(n, 3)``."""

    policy: ActorCriticPolicy
    deterministic: bool

    def chances(self, obs: Any) -> Any:
        with th.no_grad():
            distribution: Any = self.policy.get_distribution(th.as_tensor(obs, dtype=th.float32)).distribution
        if hasattr(distribution, "logits"):
            return softmax(distribution.logits.double().numpy(), axis=1)
        mean = distribution.mean[:, 0].double().numpy()
        if self.deterministic:
            trip, leave = (mean > TRIP_ABOVE) * 1.0, (mean < LEAVE_BELOW) * 1.0
        else:
            trip, leave = ndtr((mean - TRIP_ABOVE) / SIGMA), ndtr((LEAVE_BELOW - mean) / SIGMA)
        return np.stack([1.0 - trip - leave, trip, leave], axis=1)


def victim(kind: str) -> Victim:
    """Two hidden units: one reads ``z``, the other time and lane too, so that the network is no function of ``z`` alone."""
    actions: spaces.Space[Any] = spaces.Discrete(3) if kind == "categorical" else spaces.Box(-1.0, 1.0, (1,))
    space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    network: dict[str, Any] = dict(activation_fn=nn.Tanh, net_arch=dict(pi=[2], vf=[2]))
    policy = ActorCriticPolicy(space, actions, lambda _: 0.0, **network)
    rows = [[0.0, 0.0], [0.4, 8.0], [-0.4, -9.0]] if kind == "categorical" else [[0.05, 1.4]]
    low = float(np.tanh(0.4))  # minus the unit that reads z, where z is 0
    bias = [2.5, -1.0 + 8.0 * low, -1.0 - 9.0 * low] if kind == "categorical" else [1.4 * low]
    with th.no_grad():
        policy.mlp_extractor.policy_net[0].weight.copy_(th.tensor([[0.3, 0.3, 0.1], [0.0, 0.0, 1.5]]))
        policy.mlp_extractor.policy_net[0].bias.copy_(th.tensor([0.0, -0.4]))
        policy.action_net.weight.copy_(th.tensor(rows))
        policy.action_net.bias.copy_(th.tensor(bias))
        if kind != "categorical":
            policy.log_std.fill_(np.log(SIGMA))
    return Victim(policy, kind == "deterministic")


def backup(chances: Any, after: Any) -> Any:
    """Expected return of a step from each lane, chances ``(2, n, 3)``, and of what follows, ``(3,)`` by lane: ``(2, n)``."""
    rewards = np.array([[1.0, 0.5, 1.0], [1.0, 0.0, 1.0]])
    following = after[[[ROAD, ROAD, EDGE], [EDGE, OVER, EDGE]]]
    return (chances * (rewards + following)[:, None]).sum(axis=2)


def value(one: Victim, shown: Any) -> float:
    """The victim's exact expected return when the adversary chooses the worst of ``shown``: ``(n_states, n, 3)``."""
    chances = one.chances(shown.reshape(-1, 3)).reshape(STEPS, 2, -1, 3)
    after = np.zeros(3)
    for t in range(STEPS - 1, -1, -1):
        after[:2] = backup(chances[t], after).min(axis=1)
    return float(after[ROAD])


def optimal(one: Victim, norm: str) -> float:
    """Over a grid of the whole ball."""
    axis = np.linspace(-1.0, 1.0, 41)
    unit = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    if norm == "l2":
        unit = unit[np.linalg.norm(unit, axis=1) <= 1]
    return value(one, TRUE[:, None] + EPS * unit)


def under(attack: Attack, one: Victim) -> float:
    """Exact: the attack answers each state with one observation."""
    return value(one, attack(one.policy, TRUE)[:, None])


def lures(one: Victim, n_envs: int = 16) -> DummyVecEnv:
    return DummyVecEnv([lambda: Lure(one.policy.action_space)] * n_envs)


class Shift(Attack):
    """Turns the sensor up on the edge, down on the road: lures, then trips."""

    def perturb(self, policy: Any, ball: Any) -> Any:
        return ball.center + np.where(ball.center[:, 1:2] < 0, -1.0, 1.0) * [0.0, 0.0, EPS]


@pytest.mark.parametrize("kind", ["categorical", "stochastic", "deterministic"])
def test_the_exact_value_is_that_of_episodes(kind: str) -> None:
    """By playing: the dynamic program and the environment are the same problem."""
    one = victim(kind)
    for attack in (Shift(0.0), Shift(EPS)):
        played = attacked_returns(attack, one.policy, lures(one), 800, deterministic=one.deterministic, seed=0)
        error = played.std() / np.sqrt(len(played))
        assert abs(played.mean() - under(attack, one)) <= 3.5 * error + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["categorical", "stochastic", "deterministic"])
def test_the_myopic_attack_is_far_from_the_optimum(kind: str, norm: str) -> None:
    """So that coming near it says something. To plan is worth more than half of what can be gained."""
    one = victim(kind)
    clean, best = value(one, TRUE[:, None]), optimal(one, norm)
    myopic = under(MAD(EPS, norm, seed=0, deterministic=one.deterministic, restarts=20), one)
    noise = under(RandomAttack(EPS, norm, seed=0), one)
    assert best < 0.3 * clean and myopic < noise <= clean
    assert myopic - best > 0.4 * (clean - best)


@pytest.mark.parametrize("attack", [SARL, PAAD])
@pytest.mark.parametrize(
    "kind, norm", [("categorical", "linf"), ("categorical", "l2"), ("stochastic", "linf"), ("deterministic", "l2")]
)
def test_learned_adversaries_come_within_five_percent_of_the_optimum(
    attack: type[LearnedAttack], kind: str, norm: str
) -> None:
    """Of its value, which is stricter than of what it takes away; and below it there is nothing but the grid's width."""
    one = victim(kind)
    best = optimal(one, norm)
    quick = dict(n_steps=32, batch_size=256, n_epochs=5, learning_rate=2e-3)
    fitted = attack(EPS, norm, seed=0, deterministic=one.deterministic, algorithm_kwargs=quick)
    found = under(fitted.fit(one.policy, lures(one), Budget(steps=20_000)), one)
    assert 0.995 * best <= found <= 1.05 * best
