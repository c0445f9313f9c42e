"""Robust Sarsa: its Q is the return, its bound is one, its gradient is right, and it hurts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_prune_robust.attacks import AdversarialVecEnv, Attack, Budget, NotFittedError, RandomAttack
from sb3_prune_robust.attacks.engines import AnalyticObjective, NetworkReader, OutputObjective
from sb3_prune_robust.attacks.fitting import read_arrays
from sb3_prune_robust.attacks.q_descent import LowQ, QDescent
from sb3_prune_robust.attacks.robust_q import QFunction, QLearning, Recipe
from sb3_prune_robust.attacks.robust_sarsa import RobustSarsa
from sb3_prune_robust.attacks.transitions import Transitions, choices, collect, probabilities

MakePolicy = Callable[..., ActorCriticPolicy]
GAMMA = 0.8
SMALL: dict[str, Any] = dict(grid=[(0.1, 0.3)], rounds=1, ratios=[0.0], transitions=400, updates=20)


class Walk(gym.Env[Any, Any]):
    """
    Position ``x``: an action moves it by ``a / 2``, and pays 3 more than the ``x`` it came from; beyond 1.2 the episode
    terminates (a fall), after 20 steps it is cut off.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, actions: spaces.Space[Any] | None = None) -> None:
        self.action_space = actions or spaces.Box(-1.0, 1.0, (1,))
        self.x, self.steps = 0.0, 0

    def _observation(self) -> Any:
        return np.array([self.x, 1.0], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.steps = self.np_random.uniform(-1.2, 1.2), 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        move = float(action) - 1.0 if isinstance(self.action_space, spaces.Discrete) else float(np.ravel(action)[0])
        reward = 3.0 + self.x
        self.x, self.steps = self.x + move / 2, self.steps + 1
        return self._observation(), reward, abs(self.x) > 1.2, self.steps == 20, {}


def walk_env(actions: spaces.Space[Any] | None = None, n: int = 8) -> DummyVecEnv:
    return DummyVecEnv([lambda: gym.wrappers.TimeLimit(Walk(actions), 20)] * n)


def linear_victim(slope: float = -0.3, std: float = 1.2) -> Any:
    """Its mean action is about ``slope * x``."""
    policy: Any = ActorCriticPolicy(Walk.observation_space, spaces.Box(-1.0, 1.0, (1,)), lambda _: 1e-3, net_arch=[2])
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        policy.mlp_extractor.policy_net[0].weight[0, 0] = 0.1
        policy.action_net.weight[0, 0] = 10 * slope
        policy.log_std.fill_(np.log(std))
    return policy


def play(policy: Any, deterministic: bool, n: int, seed: int = 0) -> Transitions:
    return collect(policy, walk_env(), None, deterministic, seed, lambda count: count < n)


def learned(data: Transitions, *, legacy: bool = False, updates: int = 1500, q_eps: float = 0.0) -> QFunction:
    learning = QLearning(data, (), Recipe(q_eps, 1.0, GAMMA, updates, legacy), seed=0)
    for i in range(updates):
        learning.update(i / updates)
    return learning.function()


def truth(policy: Any, x: float, action: float, n: int = 400) -> float:
    """By playing: the mean discounted return from a state after an action, without a time limit."""
    rng, xs, total, alive = np.random.default_rng(0), np.full(n, x), np.zeros(n), np.ones(n)
    acts = np.full(n, action)
    for t in range(60):
        total += alive * GAMMA**t * (3.0 + xs)
        xs = xs + np.clip(acts, -1, 1) / 2
        alive = alive * (np.abs(xs) <= 1.2)
        with th.no_grad():
            mean = policy.get_distribution(th.tensor(np.stack([xs, np.ones(n)], 1), dtype=th.float32)).distribution.mean
        acts = mean.numpy()[:, 0] + np.exp(policy.log_std.item()) * rng.standard_normal(n)
    return float(total.mean())


@pytest.fixture(scope="module")
def walk() -> tuple[ActorCriticPolicy, Transitions, QFunction]:
    policy = linear_victim()
    data = play(policy, False, 6000)
    return policy, data, learned(data)


PLACES = [(-0.9, 0.8), (-0.5, -0.5), (0.0, -0.5), (0.0, 0.5), (0.5, 0.0), (0.8, -0.5)]


def test_q_is_the_return(walk: tuple[ActorCriticPolicy, Transitions, QFunction]) -> None:
    """Against Monte Carlo: an episode cut by the time limit goes on, a fall ends it."""
    policy, data, q = walk
    assert data.terminal.any() and (data.ends & ~data.terminal).any()
    true = np.array([truth(policy, *place) for place in PLACES])
    states = np.array([[x, 1.0] for x, _ in PLACES], np.float32)
    found = q(states, np.array([[a] for _, a in PLACES], np.float32))
    assert np.ptp(true) > 5
    np.testing.assert_allclose(found, true, atol=1.5)


def test_transitions(walk: tuple[Any, Transitions, QFunction]) -> None:
    """Each row: the true step, also at the end of an episode; terminal is a fall and nothing else; rows in order."""
    data = walk[1]
    x, after, fell = data.states[:, 0], data.next_states[:, 0], np.abs(data.next_states[:, 0]) > 1.2
    np.testing.assert_allclose(after, x + np.clip(data.actions[:, 0], -1, 1) / 2, atol=1e-5)
    np.testing.assert_allclose(data.rewards, 3 + x, atol=1e-5)
    np.testing.assert_array_equal(data.terminal, fell)
    inside = np.flatnonzero(~data.ends[:-1])
    np.testing.assert_array_equal(data.states[inside + 1], data.next_states[inside])
    np.testing.assert_array_equal(data.actions[inside + 1], data.next_actions[inside])
    assert (data.ends & ~fell).sum() > 20 and np.abs(data.actions).max() > 2 and data.terminal.any()


def test_q_in_units_of_the_victim() -> None:
    """What comes out is what was learned, whatever the means and spreads of states and actions."""
    rng, flags = np.random.default_rng(0), np.zeros(100, bool)
    states, actions = rng.normal(3, 5, size=(100, 4)).astype(np.float32), rng.normal(-2, 7, size=(100, 3)).astype(np.float32)
    data = Transitions(states, actions, rng.normal(9, 2, size=100).astype(np.float32), states, actions, flags, flags)
    learning = QLearning(data, (), Recipe(0.1, 1.0, 0.9, 10, False), seed=0)
    inside = learning.values(learning.body, learning.inputs, learning.actions).detach().numpy()
    np.testing.assert_allclose(
        learning.function()(states, actions), learning.offset + learning.scale * inside, rtol=1e-4, atol=1e-4
    )
    assert learning.offset == pytest.approx(10 * data.rewards.mean())


def test_a_fall_is_worth_nothing(walk: tuple[ActorCriticPolicy, Transitions, QFunction]) -> None:
    policy, _, q = walk
    fall, stay = q(np.array([[1.1, 1.0]] * 2, np.float32), np.array([[0.9], [-0.9]], np.float32))
    true_fall, true_stay = truth(policy, 1.1, 0.9), truth(policy, 1.1, -0.9)
    assert true_fall == pytest.approx(4.1) and true_stay > 10
    assert stay - fall > 0.6 * (true_stay - true_fall)


def test_legacy_learns_the_reward_only() -> None:
    """Its Q does not depend on the action, which changes the next state but not the reward; the true one does."""
    data = play(linear_victim(-0.8, 0.3), False, 4000)
    assert data.terminal.sum() < 5
    q, old = (learned(data, legacy=legacy, updates=700) for legacy in (False, True))
    states = np.array([[x, 1.0] for x in np.linspace(-0.5, 0.5, 9)], np.float32)
    low, high = np.full((9, 1), -0.3, np.float32), np.full((9, 1), 0.3, np.float32)
    assert np.mean(q(states, high) - q(states, low)) > 0.2
    assert abs(np.mean(old(states, high) - old(states, low))) < 0.05
    slope = np.polyfit(states[:, 0], old(states, low), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.1)  # reward = 3 + x


@pytest.mark.parametrize("nvec, monotone", [((), False), ((), True), ((4,), False), ((3, 2), False)])
def test_bound_on_the_change_is_one(nvec: tuple[int, ...], monotone: bool) -> None:
    """No action of the ball changes Q by more; some by as much, for choices and where Q rises in every input."""
    rng, k = np.random.default_rng(0), sum(nvec) or 3
    actions = rng.normal(size=(64, k)).astype(np.float32)
    if nvec:
        actions = np.concatenate([np.eye(n, dtype=np.float32)[rng.integers(0, n, 64)] for n in nvec], axis=1)
    flags = np.zeros(64, bool)
    states = rng.normal(size=(64, 5)).astype(np.float32)
    data = Transitions(states, actions, rng.normal(size=64).astype(np.float32), states, actions, flags, flags)
    learning = QLearning(data, nvec, Recipe(0.1, 1.0, 0.9, 10, False), seed=0)
    with th.no_grad():
        for parameter in learning.body.parameters():
            parameter.copy_(parameter.abs() if monotone else 2.0 * parameter)
    inputs, acted = learning.inputs, learning.actions
    bound = learning.change_bound(inputs, acted, 0.3).detach()
    at = learning.values(learning.body, inputs, acted)
    largest = th.zeros(64)
    for _ in range(300):
        others = []
        for n in nvec:
            others.append(th.eye(n)[rng.integers(0, n, 64)])
        moved, mixed = inputs.clone(), acted
        if nvec:
            mixed = 0.7 * acted + 0.3 * th.cat(others, dim=1)
        else:
            moved[:, 5:] += th.as_tensor(0.3 * rng.choice([-1, 1], (64, 3)), dtype=th.float32)
        largest = th.maximum(largest, (learning.values(learning.body, moved, mixed) - at).detach().abs())
    assert (largest <= bound + 1e-5).all()
    assert not (nvec or monotone) or (largest / bound).min() > 0.999


def test_penalty_makes_q_smooth(walk: tuple[ActorCriticPolicy, Transitions, QFunction]) -> None:
    _, data, q = walk
    smooth = learned(data, q_eps=0.5, updates=600)
    states = np.array([[0.0, 1.0]] * 2, np.float32)
    actions = np.array([[-0.5], [0.5]], np.float32)
    assert abs(np.diff(smooth(states, actions))[0]) < 0.5 * abs(np.diff(q(states, actions))[0])


def random_q(policy: ActorCriticPolicy, d: int = 5, scale: float = 1.0) -> QFunction:
    """In float64, so that finite differences are exact enough."""
    rng, space = np.random.default_rng(0), policy.action_space
    nvec = (int(space.n),) if isinstance(space, spaces.Discrete) else tuple(map(int, getattr(space, "nvec", ())))
    sizes = [d, 64, 64, sum(nvec)] if nvec else [d + 3, 64, 64, 1]
    arrays: dict[str, Any] = {"mean": rng.normal(size=d), "spread": np.full(d, 1.3), "returns": np.array([1.0, 0.0])}
    for i in range(3):
        arrays |= {
            f"W{i}": scale * rng.normal(size=(sizes[i + 1], sizes[i])) / sizes[i] ** 0.5,
            f"b{i}": np.ones(sizes[i + 1]),
        }
    return QFunction.of(arrays)


KINDS = [(kind, deterministic) for kind in ("gaussian", "categorical", "multi") for deterministic in (True, False)]


@pytest.mark.parametrize("ratio", [0.0, 0.3])
@pytest.mark.parametrize("kind, deterministic", KINDS)
def test_gradient(make_policy: MakePolicy, kind: str, deterministic: bool, ratio: float) -> None:
    """Finite differences in float64; and the value is what it says."""
    policy = make_policy(kind).double()
    q, rng = random_q(policy), np.random.default_rng(1)
    clean = rng.normal(size=(20, 5))
    points = clean + 0.2 * rng.normal(size=(20, 5))
    attack = QDescent(0.2, "linf", None, 0, deterministic, q=q, ratio=ratio)
    objective = attack.objective_on(policy, clean)
    values, gradient = objective.value_and_gradient(points)
    for i in range(5):
        step = 1e-6 * np.eye(5)[i]
        numeric = (objective.value(points + step) - objective.value(points - step)) / 2e-6
        np.testing.assert_allclose(gradient[:, i], numeric, rtol=1e-4, atol=1e-6)
    assert np.abs(gradient).max() > 1e-3
    if ratio == 0.0 and (kind == "gaussian" or not deterministic):
        outputs = NetworkReader().read(policy, "action")(points)
        nvec = choices(policy.action_space)
        acted = probabilities(outputs, nvec) if nvec else outputs
        np.testing.assert_allclose(values, -q(clean, acted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.3])
@pytest.mark.parametrize("kind, deterministic", KINDS)
def test_engines_agree(make_policy: MakePolicy, kind: str, deterministic: bool, ratio: float) -> None:
    policy, rng = make_policy(kind), np.random.default_rng(1)
    clean = rng.normal(size=(20, 5)).astype(np.float32)
    points = clean + 0.2 * rng.normal(size=(20, 5)).astype(np.float32)
    found = []
    for engine in ("analytic", "autograd"):
        attack = QDescent(0.2, "linf", None, 0, deterministic, q=random_q(policy), ratio=ratio, engine=engine)
        objective = attack.objective_on(policy, clean)
        found.append((type(objective), objective.value(points), *objective.value_and_gradient(points)))
    assert found[0][0] is AnalyticObjective and found[1][0] is OutputObjective
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_margin_of_the_worst_choice(make_policy: MakePolicy) -> None:
    """A victim that plays its most likely choice: above 0 where it plays the choice of lowest Q."""
    policy = make_policy("categorical").double()
    q, clean = random_q(policy), np.random.default_rng(1).normal(size=(50, 5))
    each = np.stack([q(clean, np.eye(4)[[i] * 50]) for i in range(4)], axis=1)
    logits = NetworkReader().read(policy, "action")(clean)
    values, _ = LowQ(q, clean, (4,), True)(logits)
    np.testing.assert_array_equal(values > 0, logits.argmax(axis=1) == each.argmin(axis=1))
    assert 0 < (values > 0).sum() < 50


def mean_return(env: Any, policy: Any, attack: Attack, deterministic: bool) -> float:
    env.seed(100)
    attacked = AdversarialVecEnv(env, policy, attack)
    return float(np.mean(evaluate_policy(policy, attacked, 16, deterministic=deterministic, warn=False)[0]))


@pytest.mark.parametrize("deterministic", [True, False])
def test_it_lowers_the_return_on_cartpole(trained: PPO, deterministic: bool) -> None:
    env = make_vec_env("CartPole-v1", n_envs=8)
    settings: dict[str, Any] = dict(grid=[(0.1, 0.3)], rounds=2, ratios=[0.0], gamma=0.95, transitions=4000, updates=600)
    attack = RobustSarsa(0.2, seed=0, deterministic=deterministic, **settings).fit(trained, env, Budget(seconds=60))
    noise = mean_return(env, trained.policy, RandomAttack(0.2, seed=0), deterministic)
    assert mean_return(env, trained.policy, attack, deterministic) < 0.7 * noise


def test_it_lowers_the_return_on_a_continuous_task() -> None:
    """There is no return to lower but by pushing the victim down or over the edge."""
    policy, env = linear_victim(-0.8, 0.1), walk_env()
    settings: dict[str, Any] = dict(grid=[(0.1, 0.1)], rounds=2, ratios=[0.0, 0.1], transitions=2000, updates=400)
    attack = RobustSarsa(0.8, seed=0, gamma=GAMMA, **settings).fit(policy, env, Budget(seconds=60))
    assert {row[0] for row in attack.tried} == {0, 1, 2}
    noise = mean_return(env, policy, RandomAttack(0.8, seed=0), False)
    assert mean_return(env, policy, attack, False) < noise - 10


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["gaussian", "categorical", "multi"])
def test_ball_files_and_the_victim(make_policy: MakePolicy, kind: str, norm: str, tmp_path: Path) -> None:
    """The ball is kept; a file gives the same attack; the victim stays as it was."""
    policy, rng = make_policy(kind, shape=(2,)), np.random.default_rng(0)
    env, obs = VecNormalize(walk_env_of(policy)), rng.normal(size=(100, 2)).astype(np.float32)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    env.reset()
    statistics: Any = env.obs_rms
    count = statistics.count
    attack = RobustSarsa(0.2, norm, seed=3, deterministic=True, **SMALL | {"ratios": [0.0, 0.2]})
    with pytest.raises(NotFittedError, match="RobustSarsa"):
        attack(policy, obs)
    attack.fit(policy, env, Budget(seconds=30)).save(tmp_path / "file.npz")
    loaded = RobustSarsa.load(tmp_path / "file.npz")
    perturbed = attack(policy, obs)
    np.testing.assert_array_equal(loaded(policy, obs), perturbed)
    assert (loaded.cost, loaded.tried, loaded._settings()) == (attack.cost, attack.tried, attack._settings())
    change = perturbed.astype(np.float64) - obs
    size = np.abs(change).max(axis=1) if norm == "linf" else np.linalg.norm(change, axis=1)
    assert size.max() <= 0.2 and size.max() > 0.19
    assert all(th.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters()) and env.training and statistics.count == count
    with pytest.raises(ValueError, match=r"obs has 4 entries.* 2"):
        attack(make_policy(kind, shape=(4,)), np.zeros((1, 4), np.float32))


class Anything(Walk):
    """:class:`Walk` for any action space."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.x, self.steps = 0.9 * self.x + 0.1 * float(np.ravel(action)[0]), self.steps + 1
        return self._observation(), self.x, False, self.steps == 20, {}


def walk_env_of(policy: ActorCriticPolicy) -> DummyVecEnv:
    return DummyVecEnv([lambda: Anything(policy.action_space)] * 4)


class Stop(Exception): ...


class Counting(VecNormalize):
    """Counts its steps."""

    def __init__(self, venv: Any) -> None:
        super().__init__(venv, norm_obs=False)
        self.steps = 0

    def step_async(self, actions: Any) -> None:
        self.steps += self.num_envs
        super().step_async(actions)


def test_killed_and_continued_repeats_nothing(make_policy: MakePolicy, tmp_path: Path) -> None:
    """Stopped while the second Q is learned: what is there is not made again, and the end is the same."""
    policy, settings = make_policy("gaussian", shape=(2,)), {**SMALL, "grid": [(0.1, 0.3), (0.2, 1.0)], "updates": 250}

    def fit(folder: Path, on_progress: Any = None) -> tuple[RobustSarsa, int]:
        env = Counting(walk_env_of(policy))
        attack = RobustSarsa(0.2, seed=0, deterministic=True, **settings)
        return attack.fit(policy, env, Budget(steps=2000), checkpoint=folder, on_progress=on_progress), env.steps

    def stop(progress: float) -> None:
        if (tmp_path / "killed" / "q0_0.npz").exists():
            raise Stop

    with pytest.raises(Stop):
        fit(tmp_path / "killed", stop)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").iterdir()}
    assert set(times) == {"transitions0.npz", "q0_0.npz"}
    attack, steps = fit(tmp_path / "killed")
    whole, all_steps = fit(tmp_path / "whole")
    assert {name: (tmp_path / "killed" / name).stat().st_mtime_ns for name in times} == times
    # Not the 400 of playing, and the episodes of one Q where there were two.
    assert steps == (all_steps - 400) // 2 and attack.tried == whole.tried
    assert attack.cost is not None and whole.cost is not None and attack.cost.steps == whole.cost.steps
    obs = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    np.testing.assert_array_equal(attack(policy, obs), whole(policy, obs))
    with pytest.raises(ValueError, match="of another fit"):
        RobustSarsa(0.3, seed=0, deterministic=True, **settings).fit(
            policy, walk_env_of(policy), Budget(steps=2000), checkpoint=tmp_path / "killed"
        )
    assert read_arrays(tmp_path / "killed" / "q0_1.npz")[0]["mean_return"] == attack.tried[1][-1]


def test_budget_of_seconds(make_policy: MakePolicy) -> None:
    """Learning is shortened, whole Qs are left out, and there is an attack in the end."""
    policy, shown = make_policy("gaussian", shape=(2,)), list[float]()
    attack = RobustSarsa(0.2, seed=0, updates=10**9, transitions=10**9)
    attack.fit(policy, walk_env_of(policy), Budget(seconds=2.0), on_progress=shown.append)
    assert attack.cost is not None and 1.2 < attack.cost.seconds < 3.5
    assert shown == sorted(shown) and shown[-1] <= 1 and len(attack.tried) >= 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(grid=[]), "grid="),
        (dict(grid=[(0.1,)]), "grid="),
        (dict(grid=[(-0.1, 1.0)]), "grid="),
        (dict(ratios=[1.0]), "ratios="),
        (dict(ratios=[]), "ratios="),
        (dict(gamma=1.0), "gamma=1.0"),
        (dict(updates=0), "updates=0"),
        (dict(rounds=0), "rounds=0"),
        (dict(transitions=-1), "transitions=-1"),
        (dict(steps=0), "steps=0"),
        (dict(engine="magic"), "engine='magic'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RobustSarsa(0.1, **arguments)


def test_nothing_to_learn(make_policy: MakePolicy, counter: Any) -> None:
    """The same reward at every step, and no end that the victim's actions bring about."""
    data = play(linear_victim(), True, 200)
    flat = Transitions(**{**data.arrays(), "rewards": np.ones(200, np.float32), "terminal": np.zeros(200, bool)})
    with pytest.raises(ValueError, match=r"200 transitions paid 1\.0 and no episode terminated"):
        QLearning(flat, (), Recipe(0.1, 1.0, 0.9, 10, False), seed=0)
    with pytest.raises(ValueError, match="gave 0 transitions"):
        collect(linear_victim(), walk_env(), None, True, 0, lambda count: False)


def test_files_that_are_no_q(make_policy: MakePolicy) -> None:
    arrays = copy.deepcopy(random_q(make_policy()).arrays())
    arrays["W1"] = arrays["W1"][:, :5]
    with pytest.raises(ValueError, match="these arrays are no Q"):
        QFunction.of(arrays)
