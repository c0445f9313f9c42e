"""WocaR-PPO: the worst-case value on MDPs whose values are known, its advantage by hand, and as an ordinary algorithm."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn
from walk import BOX, Walk

from sb3_prune_robust import LipschitzGaussianPolicy, PruningCallback
from sb3_prune_robust.bounds import Ball, output_interval
from sb3_prune_robust.defences import wocar
from sb3_prune_robust.defences.state_adversarial import SAPPO
from sb3_prune_robust.defences.wocar import WocaRPPO
from sb3_prune_robust.network import UnsupportedNetworkError, action_modules, action_network

th.set_num_threads(1)


class Corridor(gym.Env[Any, Any]):
    """
    States 0 and 1 in turn, one number that is -1 or 1; the first action is worth 1 in state 0 and 2 in state 1, the second
    nothing. A time limit after ``limit`` steps; ``end``: state 1 is the last.
    """

    observation_space, action_space = spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2)

    def __init__(self, limit: int = 5, end: bool = False) -> None:
        self.limit, self.end = limit, end

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at, self.left = 0, self.limit
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        reward, last = (1.0 + self.at) * (action == 0), self.end and self.at == 1
        self.at, self.left = 1 - self.at, self.left - 1
        return self._observe(), reward, last, self.left == 0, {}

    def _observe(self) -> Any:
        return np.array([2.0 * self.at - 1.0], np.float32)


class Still(gym.Env[Any, Any]):
    """One state, the number 0; the reward is the action."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (1,))

    def __init__(self) -> None:
        self.left = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 7
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return np.zeros(1, np.float32), float(action[0]), False, self.left == 0, {}


def make(cls: type[PPO] = WocaRPPO, env: Any = None, **settings: Any) -> Any:
    ours = dict(eps=0.1, eps_schedule="constant") if cls is not PPO else {}
    defaults: dict[str, Any] = dict(policy="MlpPolicy", n_steps=64, batch_size=32, n_epochs=2, seed=3, device="cpu")
    return cls(env=env or Walk(), **{**defaults, **ours, **settings})


def state(model: Any, part: str = "policy") -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in getattr(model, part).state_dict().items()}


def equal(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> bool:
    return all(th.equal(one[name], other[name]) for name in one)


def rollout(model: Any) -> Any:
    """One rollout without an update of the policy."""
    train, model.train = model.train, lambda: None
    model.learn(model.n_steps * model.n_envs)
    model.train = train
    return model


def learn_q(model: Any, monkeypatch: pytest.MonkeyPatch, epochs: int = 400) -> Any:
    """Until ``Q_w`` does not move any more: with a target network that follows fast."""
    monkeypatch.setattr(wocar, "_FOLLOW", 0.1)
    model.n_epochs, model.batch_size = epochs, 64
    with th.no_grad():
        for lr in (5e-3, 5e-4):
            for group in model.worst_case_q.optimizer.param_groups:
                group["lr"] = lr
            model._learn_worst_case()
    return model.worst_case_q


def set_policy(model: Any, weight: list[list[float]], bias: list[float]) -> None:
    with th.no_grad():
        model.policy.action_net.weight.copy_(th.tensor(weight))
        model.policy.action_net.bias.copy_(th.tensor(bias))


def table(q: Any) -> np.ndarray[Any, Any]:
    with th.no_grad():
        return q.body(th.tensor([[-1.0], [1.0]])).numpy()


LINEAR = dict(net_arch=dict(pi=[], vf=[8]))


# ---------------------------------------------------------------- fixed points


def corridor(eps: float, **settings: Any) -> Any:
    # Logits -s and s: first choice in state 0 (s = -1), by 2; in state 1 the second. The choice turns for eps > 1.
    model = make(env=Corridor(**settings), eps=eps, gamma=0.5, n_steps=128, policy_kwargs=LINEAR)
    set_policy(model, [[-1.0], [1.0]], [0.0, 0.0])
    return rollout(model)


@pytest.mark.parametrize("limit", [5, 10**6])
def test_value_where_no_choice_can_be_turned(monkeypatch, limit):
    # V(0) = 1 + V(1) / 2, V(1) = 0 + V(0) / 2: V(0) = 4/3, V(1) = 2/3. A time limit changes nothing, though SB3's reward
    # there holds the value of another critic.
    q = learn_q(corridor(0.3, limit=limit), monkeypatch)
    assert table(q) == pytest.approx(np.array([[4 / 3, 1 / 3], [2 + 2 / 3, 2 / 3]]), abs=0.03)


def test_value_where_every_choice_can_be_turned(monkeypatch):
    # The adversary makes the victim earn nothing: the first action is worth what it pays at once.
    q = learn_q(corridor(1.5), monkeypatch)
    assert table(q) == pytest.approx(np.array([[1.0, 0.0], [2.0, 0.0]]), abs=0.03)


def test_value_where_state_one_is_the_last(monkeypatch):
    # State 1 in between is played, and then the episode is over: V(1) = 0, and nothing of the next episode counts.
    q = learn_q(corridor(0.3, end=True), monkeypatch)
    assert table(q) == pytest.approx(np.array([[1.0, 0.0], [2.0, 0.0]]), abs=0.03)


def test_value_of_box_actions_through_the_whole_network(monkeypatch):
    # mean = .2 + .5 tanh(s), so that with eps = .5 it is .2 +- .5 tanh(.5) = .2 +- .231 at s = 0.
    kwargs = dict(net_arch=dict(pi=[1], vf=[8]), log_std_init=-0.5)
    model = make(env=Still(), eps=0.5, gamma=0.5, n_steps=256, policy_kwargs=kwargs)
    set_policy(model, [[0.5]], [0.2])
    with th.no_grad():
        model.policy.mlp_extractor.policy_net[0].weight.fill_(1.0)
        model.policy.mlp_extractor.policy_net[0].bias.zero_()
    q = learn_q(rollout(model), monkeypatch)
    lowest = (0.2 - 0.5 * math.tanh(0.5)) / (1 - 0.5)  # V = lowest mean + V / 2
    actions = th.tensor([[-1.0], [0.0], [0.7], [1.0], [3.0]])  # 3 is played as 1
    with th.no_grad():
        values = q.value(q.body, th.zeros(5, 1), actions)
    assert values.numpy() == pytest.approx(actions.clamp(-1, 1)[:, 0].numpy() + 0.5 * lowest, abs=0.03)


def test_rewards_are_those_that_the_agent_sees(monkeypatch):
    env = VecNormalize(DummyVecEnv([lambda: Corridor(10**6)]), norm_obs=False, norm_reward=False)
    model = make(env=env, eps=1.5, gamma=0.5, n_steps=128, policy_kwargs=LINEAR)
    set_policy(model, [[-1.0], [1.0]], [0.0, 0.0])
    monkeypatch.setattr(env, "normalize_reward", lambda reward: 0.1 * reward)
    q = learn_q(rollout(model), monkeypatch)
    assert table(q) == pytest.approx(np.array([[0.1, 0.0], [0.2, 0.0]]), abs=0.01)


# ---------------------------------------------------------------- the parts, by hand


class Script(gym.Env[Any, Any]):
    """The observation counts all steps; an episode ends after 3, by termination first, then by a time limit."""

    observation_space, action_space = spaces.Box(-1e6, 1e6, (1,)), spaces.Discrete(2)

    def __init__(self, start: int) -> None:
        self.count, self.episode = start, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.left, self.episode, self.count = 3, self.episode + 1, self.count + 10
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.count, self.left = self.count + 1, self.left - 1
        over = self.left == 0
        return self._observe(), float(self.count), over and self.episode % 2 == 1, over and self.episode % 2 == 0, {}

    def _observe(self) -> Any:
        return np.array([self.count], np.float32)


def test_successors_by_hand():
    model = rollout(make(env=DummyVecEnv([lambda: Script(0), lambda: Script(1000)]), n_steps=7, batch_size=14))
    following, rewards, goes_on = (part.reshape(7, 2).T.numpy() for part in model._successors())
    # 10 11 12 (13, terminal) | 23 24 25 (26, time limit) | 36 (37): rewards are the counts after each step.
    expected = np.array([11, 12, 13, 24, 25, 26, 37])
    keep = np.array([0, 1, 3, 4, 5, 6])  # after a termination any state will do
    assert (following[0][keep] == expected[keep]).all() and (following[1][keep] == 1000 + expected[keep]).all()
    assert rewards[0] == pytest.approx(expected, abs=1e-3) and rewards[1] == pytest.approx(1000 + expected, abs=1e-2)
    assert (goes_on == [1, 1, 0, 1, 1, 1, 1]).all()
    assert (model.rollout_buffer.rewards[5] != rewards[:, 5]).all()  # SB3's, with the value in it


def test_a_cut_of_an_earlier_rollout_is_forgotten():
    model = make(env=Script(0), n_steps=6, batch_size=6)
    assert list(rollout(model)._cut) == [(5, 0)]
    model.n_steps = model.rollout_buffer.buffer_size = 5
    model.rollout_buffer.reset()
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, 5)
    assert model._cut == {}


def test_value_of_several_choices_by_hand():
    q = make(env=Walk(spaces.MultiDiscrete([3, 2]))).worst_case_q
    given = Given(lambda rows: th.tensor([[1.0, -2.0, -9.0, 5.0, 4.0]]).expand(len(rows), 5))
    assert q.value(given, th.zeros(2, 3), th.tensor([[2.0, 0.0], [0.0, 1.0]])).tolist() == [-9.0 + 5.0, 1.0 + 4.0]


def test_lowest_of_choices_by_hand():
    q = make(env=Walk(spaces.MultiDiscrete([3, 2]))).worst_case_q
    q.target = Given(lambda rows: th.tensor([[1.0, -2.0, -9.0, 5.0, 4.0]]).expand(len(rows), 5))
    lower = th.tensor([[0.0, 0.0, 0.0, 1.0, 0.0], [0.0, -1.0, -2.0, 0.0, 0.0]])
    upper = th.tensor([[1.0, 1.0, 1.0, 2.0, 1.0], [0.5, 0.1, -0.1, 0.0, 0.0]])
    # First row: all three choices, -9; both of the second group, as the other may come even: 4. Second row: not the third.
    assert q.lowest(th.zeros(2, 3), lower, upper).tolist() == [-9.0 + 4.0, -2.0 + 4.0]
    lower[0, 3] = 1.1
    assert q.lowest(th.zeros(2, 3), lower, upper).tolist() == [-9.0 + 5.0, -2.0 + 4.0]


class Given(nn.Module):
    """A network that is a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.forward = function


def box_q() -> Any:
    return make(env=Walk(spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 1.0])))).worst_case_q


def test_lowest_of_box_actions_by_hand():
    q = box_q()
    q.target = Given(lambda rows: (rows[:, 3] - 3.0 * rows[:, 4])[:, None])  # of scaled actions: 2 a / 4, 2 b - 1
    lower, upper = th.tensor([[-1.0, 0.25], [-5.0, -5.0]]), th.tensor([[1.0, 0.5], [5.0, 5.0]])
    # a = -1, b = .5: -.5 - 3 * 0; clipped to the action space: a = -2, b = 1: -1 - 3.
    assert q.lowest(th.zeros(2, 3), lower, upper).tolist() == pytest.approx([-0.5, -4.0])
    q.target = Given(lambda rows: (rows[:, 3] - 0.25).square()[:, None])  # least at a = .5, inside
    assert q.lowest(th.zeros(2, 3), lower, upper).tolist() == pytest.approx([0.0, 0.0], abs=0.02)


def test_lowest_of_box_actions_against_a_grid():
    q = box_q()
    th.manual_seed(0)
    with th.no_grad():
        for parameter in q.target.parameters():
            parameter.mul_(3.0)
    observations, middle = th.rand(40, 3) * 2 - 1, th.rand(40, 2) - 0.3
    lower, upper = middle - 0.2, middle + 0.2
    with th.no_grad():
        found = q.lowest(observations, lower, upper)
        steps = [th.tensor([i / 10, j / 10]) for i in range(11) for j in range(11)]
        grid = th.stack([q.value(q.target, observations, lower + step * (upper - lower)) for step in steps])
    assert (found <= grid[60] + 1e-6).all()  # the middle
    left = (found - grid.min(dim=0).values) / (grid.max(dim=0).values - grid.min(dim=0).values)
    assert left.max() < 0.1 and left.min() > -0.05
    assert all(parameter.grad is None for parameter in q.parameters())


def test_average_over_categorical_policies_is_exact():
    model = make(env=Walk(spaces.MultiDiscrete([2, 2])))
    q = model.worst_case_q
    q.body = Given(lambda rows: th.tensor([[1.0, 3.0, 10.0, 20.0]]).expand(len(rows), 4))
    outputs = th.tensor([[0.0, 0.0, math.log(3.0), 0.0]])
    assert q.average(model.policy, th.zeros(1, 3), outputs, model._defence_rng).item() == pytest.approx(2.0 + 12.5)


def test_average_over_gaussian_policies():
    model = make(policy_kwargs=dict(log_std_init=-1.0))
    q = model.worst_case_q
    outputs = th.tensor([[0.4, -0.2]]).repeat(300, 1)
    with th.no_grad():
        q.body = Given(lambda rows: rows[:, 3:4])
        linear = q.average(model.policy, th.zeros(300, 3), outputs, model._defence_rng)
        q.body = Given(lambda rows: (2 * rows[:, 3:4]).square())
        square = q.average(model.policy, th.zeros(300, 3), outputs, model._defence_rng)
    assert linear.numpy() == pytest.approx(0.2, abs=1e-5)  # of the scaled action, a / 2
    assert square.mean().item() == pytest.approx(0.16 + math.exp(-2.0), abs=0.01)


def test_advantages_by_hand():
    model = rollout(make(env=Walk(spaces.Discrete(2)), n_steps=4, batch_size=4, weight=0.6, eps_end=1.0, policy_kwargs=LINEAR))
    set_policy(model, [[0.0] * 3] * 2, [0.0, 0.0])
    model.worst_case_q.body = Given(lambda rows: 5.0 * rows[:, :1] + th.tensor([[1.0, 3.0]]))
    buffer = model.rollout_buffer
    buffer.actions[:, 0, 0] = [0, 1, 1, 0]
    buffer.advantages[:, 0] = [4.0, 8.0, 4.0, 8.0]
    model.num_timesteps, model._total_timesteps = 50, 100
    with th.no_grad():
        model._weigh_advantages()
    # Q_w less its mean 5 s + 2: -1, 1, 1, -1; over their spread sqrt(4 / 3); times .6 / 2 and the spread 2 of the advantages
    part = 0.3 * 2.0 * math.sqrt(3 / 4)
    assert buffer.advantages[:, 0] == pytest.approx([4 - part, 8 + part, 4 + part, 8 - part], abs=1e-5)


def test_one_step_of_the_critic_by_hand_and_by_finite_differences():
    q = box_q()
    q.optimizer = th.optim.SGD(q.body.parameters(), lr=1.0)
    th.manual_seed(0)
    observations, actions, targets = th.rand(16, 3), th.rand(16, 2), th.rand(16)
    q.double()
    batch = observations.double(), actions.double(), targets.double()

    def loss() -> float:
        with th.no_grad():
            return (q.value(q.body, *batch[:2]) - batch[2]).square().mean().item()

    index, h, first, weight = (3, 4), 1e-5, loss(), q.body[0].weight
    values = []
    for shift in (h, -2 * h, h):
        with th.no_grad():
            weight[index] += shift
        values.append(loss())
    before, target = weight[index].item(), q.target[0].weight[index].item()
    assert q.update(*batch) == pytest.approx(first)
    assert before - weight[index].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4)
    assert abs(values[0] - values[1]) > 1e-9
    # The target network goes a thousandth of the way.
    assert q.target[0].weight[index].item() - target == pytest.approx(1e-3 * (weight[index].item() - target), rel=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_bounds_are_those_of_the_whole_network(monkeypatch, norm):
    model = rollout(make(n_steps=16, batch_size=16, norm=norm, eps=[0.1, 0.0, 0.3]))
    with th.no_grad():
        model.policy.action_net.weight.normal_()
    asked = []
    monkeypatch.setattr(model.worst_case_q, "lowest", lambda *given: asked.append(given) or th.zeros(16))
    with th.no_grad():
        model._learn_worst_case()
    observations, lower, upper = (part.double().numpy() for part in asked[0])
    ball = Ball.create([0.1, 0.0, 0.3], norm, (3,))
    expected = output_interval(action_network(model.policy).astype(np.float64), observations, ball)
    assert (upper - lower).min() > 1e-3
    assert lower == pytest.approx(expected[0], abs=1e-5) and upper == pytest.approx(expected[1], abs=1e-5)


# ---------------------------------------------------------------- an algorithm

ACTIONS = {"gaussian": BOX, "categorical": spaces.Discrete(3), "multi": spaces.MultiDiscrete([3, 2])}


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("off", [dict(eps=0.0), dict(weight=0.0, kappa=0.0)])
def test_without_eps_or_weights_it_is_ppo_bit_for_bit(actions, off):
    plain, here = (make(cls, Walk(ACTIONS[actions]), **given).learn(128) for cls, given in ((PPO, {}), (WocaRPPO, off)))
    assert equal(state(plain), state(here))


@pytest.mark.parametrize("actions", ACTIONS)
def test_each_weight_alone_makes_another_agent(actions):
    def learned(cls: type[PPO], **given: Any) -> dict[str, th.Tensor]:
        return state(make(cls, Walk(ACTIONS[actions]), **given).learn(128))

    plain, smooth, worst = learned(PPO), learned(WocaRPPO, weight=0.0), learned(WocaRPPO, kappa=0.0)
    assert equal(smooth, learned(SAPPO))
    assert not equal(plain, smooth) and not equal(plain, worst) and not equal(smooth, worst)


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_random_numbers_of_others_are_not_touched(actions):
    make(PPO, Walk(ACTIONS[actions])).learn(128)
    drawn = th.rand(1).item(), np.random.random()  # noqa: NPY002  # torch's and numpy's own generators
    make(env=Walk(ACTIONS[actions]), inner="pgd").learn(128)
    assert (th.rand(1).item(), np.random.random()) == drawn  # noqa: NPY002


def test_same_seed_same_agent():
    one, other = make().learn(128), make().learn(128)
    assert equal(state(one), state(other)) and equal(state(one, "worst_case_q"), state(other, "worst_case_q"))
    third = make(seed=4)
    assert not equal(state(make(), "worst_case_q"), state(third, "worst_case_q"))
    assert equal(third.worst_case_q.body.state_dict(), third.worst_case_q.target.state_dict())


def test_the_weight_grows_and_is_logged():
    model = make(weight=0.6, eps_end=1.0)
    seen = []
    model._weigh_advantages = lambda: seen.append(model.weight_now)
    model.learn(256)
    assert seen == pytest.approx([0.15, 0.3, 0.45, 0.6])
    logged = model.logger.name_to_value
    assert logged["defence/weight"] == pytest.approx(0.6) and logged["defence/worst_case_loss"] > 0
    assert math.isfinite(logged["defence/worst_case_value"]) and logged["defence/kappa"] == 0.2


def test_values_of_the_critic_are_learned_from_clean_returns():
    model = rollout(make(n_steps=64))
    returns = model.rollout_buffer.returns.copy()
    before = model.rollout_buffer.advantages.copy()
    model.train()
    assert not np.allclose(model.rollout_buffer.advantages.ravel(), before.ravel())
    assert np.array_equal(model.rollout_buffer.returns.ravel(), returns.ravel())


def test_save_load_continue(tmp_path):
    model = make(weight=0.3, worst_case_lr=2e-3, inner="sgld").learn(128)
    model.save(tmp_path / "model")
    one, other = (WocaRPPO.load(tmp_path / "model", env=Walk(), device="cpu") for _ in range(2))
    assert (one.weight, one.worst_case_lr, one.inner) == (0.3, 2e-3, "sgld")
    for loaded in (one, other):
        assert equal(state(model), state(loaded)) and equal(state(model, "worst_case_q"), state(loaded, "worst_case_q"))
        moments, saved = (m.worst_case_q.optimizer.state_dict() for m in (loaded, model))
        assert moments["param_groups"] == saved["param_groups"] and saved["param_groups"][0]["lr"] == 2e-3
        assert len(saved["state"]) == 6 and loaded._cut == {}
        assert all(th.equal(saved["state"][i]["exp_avg"], moments["state"][i]["exp_avg"]) for i in saved["state"])
        assert loaded._defence_rng.bit_generator.state == model._defence_rng.bit_generator.state
        loaded.set_random_seed(7)
        loaded.learn(64, reset_num_timesteps=False)
    assert equal(state(one), state(other)) and equal(state(one, "worst_case_q"), state(other, "worst_case_q"))
    assert not equal(state(model), state(one)) and not equal(state(model, "worst_case_q"), state(one, "worst_case_q"))


def test_zeros_stay_with_pruning_and_a_lipschitz_policy(tmp_path):
    model = make(policy=LipschitzGaussianPolicy, policy_kwargs=dict(lipschitz=2.0, net_arch=[16, 16]))
    model.learn(256, callback=PruningCallback(0.5, schedule="linear", start=0.0, end=0.5))
    zeros = model.policy.mlp_extractor.policy_net[2].weight == 0
    assert 0.4 < zeros.double().mean() < 0.9
    assert all((parameter != 0).all() for parameter in model.worst_case_q.parameters())  # which is not pruned
    model.save(tmp_path / "model")
    loaded = WocaRPPO.load(tmp_path / "model", env=Walk(), device="cpu").learn(64, reset_num_timesteps=False)
    assert th.equal(loaded.policy.mlp_extractor.policy_net[2].weight == 0, zeros)
    layers = [module.weight for module in action_modules(loaded.policy) if isinstance(module, nn.Linear)]
    assert math.prod(th.linalg.matrix_norm(weight, 2).item() for weight in layers) <= 2.0 * 1.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(weight=-0.1), r"weight must be a finite number >= 0; got -0.1"),
        (dict(weight=math.nan), r"weight must be a finite number >= 0; got nan"),
        (dict(worst_case_lr=0.0), r"worst_case_lr must be a finite number > 0; got 0.0"),
        (dict(eps=[0.1, 0.1]), r"eps must be .*shape \(3,\).*\(2,\)"),
        (dict(kappa=-1), r"kappa must be .*got -1"),
        (dict(inner="none"), r"inner must be one of .*got 'none'"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.parametrize("inner", ["pgd", "convex"])
def test_policies_without_bounds_are_refused(inner):
    with pytest.raises(UnsupportedNetworkError, match=r"gSDE"):
        make(use_sde=True, inner=inner)
    with pytest.raises(UnsupportedNetworkError, match=r"Softsign"):
        make(policy_kwargs=dict(activation_fn=nn.Softsign), inner=inner)
    with pytest.raises(UnsupportedNetworkError, match=r"BernoulliDistribution"):
        make(env=Walk(spaces.MultiBinary(2)), inner=inner)
    with pytest.raises(ValueError, match=r"WocaRPPO needs Box observations, got Discrete"):
        make(env="FrozenLake-v1", inner=inner)
