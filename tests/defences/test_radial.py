"""RADIAL-PPO: the worst-case term by hand, its gradient, where it equals PPO, and that it is an ordinary SB3 algorithm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from walk import Walk

from sb3_prune_robust import LipschitzGaussianPolicy, PruningCallback
from sb3_prune_robust.defences.convex import Chain
from sb3_prune_robust.defences.radial import RADIALPPO, surrogate_loss, worst_log_prob
from sb3_prune_robust.network import UnsupportedNetworkError, action_modules

th.set_num_threads(1)
ACTIONS: dict[str, spaces.Space[Any]] = {
    "gaussian": spaces.Box(-1.0, 1.0, (2,)),
    "categorical": spaces.Discrete(3),
    "multi": spaces.MultiDiscrete([3, 2]),
}
HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)


def make(cls: type[PPO] = RADIALPPO, actions: str = "gaussian", **settings: Any) -> Any:
    ours = dict(eps=0.1, eps_schedule="constant") if issubclass(cls, RADIALPPO) else {}
    defaults: dict[str, Any] = dict(policy="MlpPolicy", n_steps=64, batch_size=32, n_epochs=2, seed=3, device="cpu")
    return cls(env=settings.pop("env", None) or Walk(ACTIONS[actions]), **{**defaults, **ours, **settings})


def state(model: Any) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def equal(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> bool:
    return all(th.equal(one[name], other[name]) for name in one)


def random_policy(actions: str, seed: int = 0) -> Any:
    """One that reacts to its input: SB3's own initialisation makes nearly constant policies. In float64."""
    th.manual_seed(seed)
    policy = ActorCriticPolicy(spaces.Box(-3.0, 3.0, (3,)), ACTIONS[actions], lambda _: 1e-3, net_arch=[8, 6])
    with th.no_grad():
        for module in policy.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1.5 / module.in_features**0.5)
        if actions == "gaussian":
            policy.log_std.copy_(th.tensor([-1.0, 0.4]))
    policy.extract_features = lambda observations: observations  # SB3's rounds to float32
    return policy.double()


def sampled(policy: Any, n: int, seed: int = 1) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """Observations, actions as a buffer has them, log-probabilities of an older policy, advantages."""
    generator = np.random.default_rng(seed)
    observations = th.as_tensor(generator.uniform(-1, 1, (n, 3)))
    with th.no_grad():
        actions, _, log_prob = policy(observations)
    old = log_prob + th.as_tensor(generator.uniform(-0.3, 0.3, n))
    return observations, actions.reshape(n, -1), old, th.as_tensor(generator.normal(size=n))


# ---------------------------------------------------------------- by hand


def test_gaussian_log_probability_by_hand():
    policy = random_policy("gaussian")
    with th.no_grad():
        policy.log_std.copy_(th.tensor([0.0, math.log(2.0)]))
    lower, upper = th.tensor([[1.8, -1.0]] * 2).double(), th.tensor([[2.2, 1.0]] * 2).double()
    actions = th.tensor([[2.5, 0.5]] * 2).double()
    low, high = worst_log_prob(policy, lower, upper, actions, th.tensor([True, False]))
    # Lowest: means 1.8 and -1: distances .7 and 1.5, the second .75 sigma. Highest: 2.2 and .5 itself: distances .3 and 0.
    constant = -2 * HALF_LOG_TAU - math.log(2.0)
    assert low.item() == pytest.approx(-0.245 - 0.28125 + constant, abs=1e-6)
    assert high.item() == pytest.approx(-0.045 + constant, abs=1e-6)


def test_categorical_log_probability_by_hand():
    policy = random_policy("categorical")
    lower, upper = th.zeros(4, 3), th.tensor([[math.log(3.0), math.log(2.0), math.log(5.0)]] * 4)
    chosen, lowest = th.tensor([[0.0], [0.0], [2.0], [2.0]]), th.tensor([True, False, True, False])
    # Odds 1 : 2 : 5, 3 : 1 : 1, 3 : 2 : 1, 1 : 1 : 5
    expected = np.log([1 / 8, 3 / 5, 1 / 6, 5 / 7])
    assert worst_log_prob(policy, lower, upper, chosen, lowest).numpy() == pytest.approx(expected, abs=1e-6)


def test_several_categoricals_add_up():
    policy = random_policy("multi")
    lower, upper = th.zeros(2, 5), th.log(th.tensor([[3.0, 2.0, 5.0, 4.0, 9.0]] * 2))
    chosen, lowest = th.tensor([[0.0, 1.0]] * 2), th.tensor([True, False])
    expected = np.log([1 / 8 * 1 / 5, 3 / 5 * 9 / 10])
    assert worst_log_prob(policy, lower, upper, chosen, lowest).numpy() == pytest.approx(expected, abs=1e-6)


def test_surrogate_by_hand():
    ratio, advantages = th.tensor([1.5, 0.5, 1.5, 0.5]), th.tensor([2.0, 2.0, -1.0, -1.0])
    # min(A r, A clip(r)): 2.4, 1.0, -1.5, -.8
    assert surrogate_loss(ratio.log(), advantages, 0.2).item() == pytest.approx(-(2.4 + 1.0 - 1.5 - 0.8) / 4, abs=1e-6)


def linear_model(**settings: Any) -> Any:
    """mean = 2 s + 1 in one dimension, sigma 1, value 0; plain gradient descent of rate 1 in one minibatch."""
    kwargs = dict(net_arch=[], optimizer_class=th.optim.SGD)
    once = dict(learning_rate=1.0, n_steps=4, batch_size=4, n_epochs=1, max_grad_norm=1e9, policy_kwargs=kwargs)
    model = make(env="Pendulum-v1", eps=[0.1, 0.0, 0.0], **{**once, **settings})
    model._setup_learn(100)
    policy, buffer = model.policy, model.rollout_buffer
    with th.no_grad():
        for module in (policy.action_net, policy.value_net):
            module.weight.zero_()
            module.bias.zero_()
        policy.action_net.weight[0, 0], policy.action_net.bias[0] = 2.0, 1.0
    for action in (2.5, 2.5, 2.1, 1.0):
        buffer.add(np.array([[0.5, 0, 0]]), np.array([[action]]), 0.0, np.zeros(1), th.zeros(1), th.zeros(1))
    # The mean is 2 and lies in [1.8, 2.2]; old probabilities are as they were at the clean mean.
    buffer.log_probs[:, 0] = [-0.125 - HALF_LOG_TAU, -0.125 - HALF_LOG_TAU, -0.005 - HALF_LOG_TAU, -0.5 - HALF_LOG_TAU]
    buffer.advantages[:, 0] = [3.0, -1.0, 2.0, -4.0]
    return model


def test_the_whole_update_by_hand():
    model = linear_model(ent_coef=0.3, weight=0.25)
    before = model.policy.action_net.bias.item()
    model.train()
    # Clean: ratios 1, so d(-A r)/db = -A (a - 2). Advantages 3, -1, 2, -4 less their mean 0, over their std sqrt(10).
    std = math.sqrt(10.0)
    clean = -(3 * 0.5 - 1 * 0.5 + 2 * 0.1 - 4 * -1.0) / std / 4
    # Worst: A > 0 at the farther end, A < 0 at the nearer one. Means 1.8, 2.2, 2.2, 1.8 (a = 1 lies below the box).
    # Log-ratios: .125 - .245, .125 - .045, .005 - .045 (the farther end from 2.1 is 1.8: .3), .5 - .32.
    ratios = np.exp([-0.12, 0.08, -0.04, 0.18])
    # d mean / d bias is 1 at either end, so the slope is (a - end): .7, .3, .3, -.8; none of the four is clipped.
    worst = -(3 * ratios[0] * 0.7 - ratios[1] * 0.3 + 2 * ratios[2] * 0.3 + 4 * ratios[3] * 0.8) / 4
    step = before - model.policy.action_net.bias.item()
    assert step == pytest.approx(0.75 * clean + 0.25 * worst, rel=1e-4)
    # In the weight the ends move apart: d end / d w = s -+ eps, .4 at 1.8 and .6 at 2.2.
    ends = np.array([0.4, 0.6, 0.4, 0.4])
    slopes = np.array([3, -1, 2, -4]) * ratios * [0.7, 0.3, 0.3, -0.8]
    expected = 0.75 * 0.5 * clean - 0.25 * (slopes * ends).sum() / 4
    assert 2.0 - model.policy.action_net.weight[0, 0].item() == pytest.approx(expected, rel=1e-4)
    # Logged: the worst-case surrogate itself.
    logged = model.logger.name_to_value["defence/worst_case_loss"]
    assert logged == pytest.approx(-(3 * ratios[0] - ratios[1] + 2 * ratios[2] - 4 * ratios[3]) / 4, rel=1e-4)


def test_entropy_and_value_terms_are_not_scaled():
    """With advantages of 0 they are all that is left."""
    steps = []
    for weight in (0.0, 0.9):
        model = linear_model(ent_coef=0.3, weight=weight)
        model.rollout_buffer.advantages[:] = 0.0
        model.rollout_buffer.returns[:] = 1.0
        model.train()
        steps.append((model.policy.log_std.item(), model.policy.value_net.bias.item()))
    assert steps[0] == pytest.approx((0.3, 1.0), abs=1e-6)  # d entropy / d log_std = 1; .5 * 2 * (1 - 0)
    assert steps[1] == pytest.approx(steps[0], abs=1e-6)


# ---------------------------------------------------------------- gradient, order


def worst_loss(policy: Any, batch: tuple[th.Tensor, ...], eps: float = 0.1, norm: str = "linf") -> th.Tensor:
    observations, actions, old, advantages = batch
    lower, upper = Chain(action_modules(policy)).interval(observations, th.full((3,), eps).double(), norm)
    return surrogate_loss(worst_log_prob(policy, lower, upper, actions, advantages > 0) - old, advantages, 0.2)


@pytest.mark.parametrize("actions", ACTIONS)
def test_gradient_against_finite_differences(actions):
    policy = random_policy(actions)
    batch = sampled(policy, 12)
    weights = [policy.mlp_extractor.policy_net[0].weight, policy.action_net.weight, policy.action_net.bias]
    weights += [policy.log_std] if actions == "gaussian" else []
    gradients = th.autograd.grad(worst_loss(policy, batch), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        values, index, h = [], (0,) * weight.dim(), 1e-5
        for shift in (h, -2 * h):
            with th.no_grad():
                weight[index] += shift
            values.append(worst_loss(policy, batch).item())
        with th.no_grad():
            weight[index] += h
        assert abs(gradient[index].item()) > 1e-6
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(gradient[index].item(), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("actions", ACTIONS)
def test_worst_case_is_never_better_than_the_ball(actions, norm):
    policy = random_policy(actions)
    observations, acted, old, advantages = sampled(policy, 200)
    eps, generator = th.full((3,), 0.2).double(), th.Generator().manual_seed(0)
    lower, upper = Chain(action_modules(policy)).interval(observations, eps, norm)
    worst = worst_log_prob(policy, lower, upper, acted, advantages > 0)
    given = acted.long().flatten() if actions == "categorical" else acted
    reached = th.zeros_like(worst)
    for i in range(40):
        noise = th.rand(observations.shape, generator=generator).double() * 2 - 1
        noise = noise.sign() if i % 2 and norm == "linf" else noise / max(1.0, noise.norm(dim=1).max().item())
        _, log_prob, _ = policy.evaluate_actions(observations + (eps * noise if i else 0.0), given)
        assert (advantages * (log_prob - worst) >= -1e-9).all()
        for one in range(0, 200, 20):
            rows = slice(one, one + 20)
            loss = surrogate_loss(log_prob[rows] - old[rows], advantages[rows], 0.2)
            assert loss <= surrogate_loss(worst[rows] - old[rows], advantages[rows], 0.2) + 1e-9
        reached = th.maximum(reached, (advantages * (log_prob - worst)).abs())
    assert reached.max() > 1e-3  # the ball is not a point


def test_worst_case_grows_with_the_ball():
    policy = random_policy("gaussian")
    batch = sampled(policy, 50)
    losses = [worst_loss(policy, batch, eps).item() for eps in (0.0, 0.05, 0.1, 0.3)]
    assert losses == sorted(losses) and losses[0] < losses[-1]


# ---------------------------------------------------------------- an algorithm


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("off", [dict(eps=0.0), dict(weight=0.0)])
def test_without_eps_or_weight_it_is_ppo_bit_for_bit(actions, off):
    here = make(actions=actions, **off).learn(128)
    assert equal(state(make(PPO, actions).learn(128)), state(here))
    assert "defence/worst_case_loss" not in here.logger.name_to_value  # nor does it compute the term


@pytest.mark.parametrize("actions", ACTIONS)
def test_with_both_it_is_another_agent_but_draws_the_same_random_numbers(actions):
    plain, drawn = make(PPO, actions).learn(128), _drawn()
    robust = make(actions=actions).learn(128)
    assert not equal(state(plain), state(robust))
    assert _drawn() == drawn


def _drawn() -> tuple[float, float]:
    """The next numbers of torch's and numpy's own generators, which SB3 uses."""
    return th.rand(1).item(), float(np.random.random())  # noqa: NPY002


def test_same_seed_same_agent():
    assert equal(state(make().learn(128)), state(make().learn(128)))


def test_the_ball_grows_with_a_linear_schedule():
    model = make(eps_schedule="linear", eps_end=1.0)
    model.learn(128)
    assert model.logger.name_to_value["defence/eps"] == pytest.approx(0.1)
    model._total_timesteps = 512
    assert model.eps_now == pytest.approx(0.025)


def test_save_load_continue(tmp_path):
    model = make(weight=0.3, eps=[0.1, 0.0, 0.2], norm="l2").learn(64)
    model.save(tmp_path / "model")
    one, other, gone = (RADIALPPO.load(tmp_path / "model", env=Walk(ACTIONS["gaussian"]), device="cpu") for _ in range(3))
    assert (one.weight, one.eps, one.norm) == (0.3, [0.1, 0.0, 0.2], "l2")
    assert equal(state(model), state(one)) and not {"_update", "_minibatch"} & vars(one).keys()
    gone.weight = 0.0
    for continued in (one, other, gone):
        continued.set_random_seed(7)
        continued.learn(64, reset_num_timesteps=False)
    assert equal(state(one), state(other)) and not equal(state(one), state(model))
    assert not equal(state(one), state(gone))  # the term takes part after loading, too
    plain = PPO("MlpPolicy", Walk(ACTIONS["gaussian"]), device="cpu")
    plain.policy.load_state_dict(one.policy.state_dict())  # its policy is that of PPO
    observation = np.full(3, 0.3, np.float32)
    assert (plain.predict(observation, deterministic=True)[0] == one.predict(observation, deterministic=True)[0]).all()


def test_zeros_stay_with_pruning_and_a_lipschitz_policy(tmp_path):
    model = make(policy=LipschitzGaussianPolicy, policy_kwargs=dict(lipschitz=2.0, net_arch=[16, 16]))
    model.learn(256, callback=PruningCallback(0.5, schedule="linear", start=0.0, end=0.5))
    weight = model.policy.mlp_extractor.policy_net[2].weight
    zeros = weight == 0
    assert 0.4 < zeros.double().mean() < 0.9
    model.learn(64, reset_num_timesteps=False)
    assert th.equal(weight == 0, zeros)
    model.save(tmp_path / "model")
    loaded = RADIALPPO.load(tmp_path / "model", env=Walk(ACTIONS["gaussian"]), device="cpu").learn(
        64, reset_num_timesteps=False
    )
    assert th.equal(loaded.policy.mlp_extractor.policy_net[2].weight == 0, zeros)
    norms = [th.linalg.matrix_norm(one.weight, 2).item() for one in loaded.policy.modules() if one in _mean_layers(loaded)]
    assert math.prod(norms) <= 2.0 * 1.01


def _mean_layers(model: Any) -> list[nn.Module]:
    return [module for module in action_modules(model.policy) if isinstance(module, nn.Linear)]


def test_the_buffer_and_the_policy_are_themselves_again():
    model = make().learn(64)
    assert "get" not in vars(model.rollout_buffer) and "evaluate_actions" not in vars(model.policy)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(weight=1.5), r"weight must be in \[0, 1\].*got 1.5"),
        (dict(weight=-0.1), r"weight must be in \[0, 1\].*got -0.1"),
        (dict(weight="half"), r"weight must be in \[0, 1\].*got 'half'"),
        (dict(eps=-0.1), r"eps must be .*got -0.1"),
        (dict(eps=[0.1, 0.1]), r"eps must be .*shape \(3,\).*\(2,\)"),
        (dict(norm="l1"), r"norm must be one of .*got 'l1'"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(use_sde=True), r"gSDE"),
        (dict(policy_kwargs=dict(activation_fn=nn.Softsign)), r"Softsign"),
    ],
)
def test_policies_without_bounds_are_refused(settings, message):
    with pytest.raises(UnsupportedNetworkError, match=message):
        make(**settings)


def test_other_spaces_are_refused():
    walk = Walk(ACTIONS["gaussian"])
    walk.action_space = spaces.MultiBinary(2)
    with pytest.raises(UnsupportedNetworkError, match=r"BernoulliDistribution"):
        make(env=walk)
    with pytest.raises(ValueError, match=r"RADIALPPO needs Box observations, got Discrete"):
        make(env="FrozenLake-v1")
