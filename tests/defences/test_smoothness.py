"""The measure of each kind of policy by hand; its bound above what any attack finds."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_prune_robust.attacks import MAD
from sb3_prune_robust.defences.smoothness import bound, chain_of, divergence, rival_margin

SMALL = dict(net_arch=[16, 16], activation_fn=nn.Tanh)  # finite differences know no kinks


def policy_of(algorithm, env):
    policy = algorithm("MlpPolicy", make_vec_env(env), seed=0, device="cpu", policy_kwargs=dict(SMALL)).policy
    policy.set_training_mode(False)
    return policy


def multi_discrete():
    th.manual_seed(0)
    box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    return ActorCriticPolicy(box, spaces.MultiDiscrete([2, 3, 1]), lambda _: 1e-3, net_arch=[16, 16])


POLICIES = {
    "gaussian": lambda: policy_of(PPO, "Pendulum-v1"),
    "categorical": lambda: policy_of(PPO, "CartPole-v1"),
    "multi-discrete": multi_discrete,
    "sac": lambda: policy_of(SAC, "Pendulum-v1"),
    "td3": lambda: policy_of(TD3, "Pendulum-v1"),
    "dqn": lambda: policy_of(DQN, "CartPole-v1"),
}


def sharpened(policy):
    """Heads start near 0, where nothing can be told apart."""
    with th.no_grad():
        for name, weight in policy.named_parameters():
            if name.endswith("weight") and weight.shape[0] <= 6:
                weight.div_(weight.abs().max())
    return policy


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", POLICIES)
def test_the_bound_is_above_what_attacks_find(name, norm, states):
    policy = sharpened(POLICIES[name]())
    size = int(np.prod(policy.observation_space.shape))
    observations = states(64, size)
    eps, chain = th.full((size,), 0.2), chain_of(policy)
    found = [divergence(policy, observations, MAD(0.2, norm, seed=s, restarts=3)(policy, observations)) for s in range(2)]
    found.append(divergence(policy, observations, observations + 0.2 / size**0.5 * th.sign(states(64, size, 1))))
    bounds = {linear: bound(policy, chain, observations, eps, norm, linear) for linear in (0.0, 0.5, 1.0)}
    for perturbed in found:
        assert all((perturbed <= one + 1e-4 * (1 + one.abs())).all() for one in bounds.values())
    assert found[0].mean() > found[2].mean() and (name == "dqn" or found[0].mean() > 1e-3)  # a hinge is below 0
    clean = divergence(policy, observations, observations)
    assert (clean <= found[0] + 1e-6).all() and (name == "dqn" or clean.abs().max() < 1e-6)


def test_gaussian_by_hand():
    """Means 0.3 apart in one dimension, sigma 0.5: KL = (0.3 / 0.5)^2 / 2 = 0.18."""
    policy = policy_of(PPO, "Pendulum-v1")
    with th.no_grad():
        policy.log_std.fill_(float(np.log(0.5)))
    first, second = th.zeros(1, 3), th.tensor([[0.4, -0.2, 0.1]])
    mean = [policy.get_distribution(obs).distribution.mean.item() for obs in (first, second)]
    with th.no_grad():
        policy.action_net.weight.mul_(0.3 / (mean[1] - mean[0]))
    assert divergence(policy, first, second).item() == pytest.approx(0.18, rel=1e-4)


def test_categorical_by_hand():
    """Logits (0, 0) against (ln 3, 0): KL = ln(1 / (3/4)^(1/2) / (1/4)^(1/2)) - ln 2 = .5 ln(16/3) - ln 2."""
    policy = policy_of(PPO, "CartPole-v1")
    with th.no_grad():
        for weight in policy.mlp_extractor.policy_net.parameters():
            weight.zero_()
        policy.mlp_extractor.policy_net[2].bias[0] = 10.0  # one unit saturated at 1; the logits from there
        policy.action_net.weight.zero_()
    observations = th.zeros(1, 4)
    with th.no_grad():
        policy.mlp_extractor.policy_net[0].weight[0, 0] = 100.0
        policy.mlp_extractor.policy_net[2].weight[1, 0] = 10.0
        policy.action_net.weight[0, 1] = float(np.log(3.0))
    perturbed = th.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert divergence(policy, observations, perturbed).item() == pytest.approx(0.5 * np.log(16 / 3) - np.log(2), abs=1e-5)


def test_margin_by_hand():
    values = th.tensor([[1.0, 3.0, 2.5], [0.0, 5.0, 1.0], [2.0, 1.0, 0.0]])
    chosen = th.tensor([1, 1, 2])
    assert rival_margin(chosen, values, 1.0).tolist() == [-0.5, -1.0, 2.0]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("convex", [True, False])
def test_gradient_against_finite_differences(name, convex, states):
    policy = sharpened(POLICIES[name]())
    size = int(np.prod(policy.observation_space.shape))
    observations = states(8, size)
    perturbed, eps = observations + 0.1 * th.sign(states(8, size, 1)), th.full((size,), 0.1)

    def loss():
        if convex:
            return bound(policy, chain_of(policy), observations, eps, "linf", 0.5, margin=100.0).sum()
        return divergence(policy, observations, perturbed, margin=100.0).sum()

    loss().backward()
    weight = chain_of(policy).layers[1].weight
    largest = int(weight.grad.abs().argmax())
    gradient = weight.grad.view(-1)[largest].item()
    with th.no_grad():
        weight.view(-1)[largest] += 1e-3
        above = loss().item()
        weight.view(-1)[largest] -= 2e-3
        below = loss().item()
    assert gradient == pytest.approx((above - below) / 2e-3, rel=0.02)


@pytest.mark.parametrize(("env", "divisor"), [("CartPole-v1", 8.0), ("Pendulum-v1", 2.0)])
def test_bound_by_hand(env, divisor):
    """No hidden layers: omega = eps |w_0 - w_1|, of which omega^2 / 8; d = eps |w| / sigma, of which half the square."""
    venv = make_vec_env(env)
    policy = PPO("MlpPolicy", venv, seed=0, device="cpu", policy_kwargs=dict(net_arch=[], log_std_init=-1.0)).policy
    weight = policy.action_net.weight.detach()
    row = weight[0] - weight[1] if env == "CartPole-v1" else weight[0] / np.exp(-1.0)
    eps = th.linspace(0.1, 0.4, len(row))
    found = bound(policy, chain_of(policy), th.zeros(1, len(row)), eps, "linf", 0.5)
    assert found.item() == pytest.approx(float((row.abs() * eps).sum()) ** 2 / divisor, rel=1e-4)


@pytest.mark.parametrize("convex", [True, False])
def test_sigma_takes_part_in_the_gradient(convex, states):
    """The KL of two Gaussians goes with 1 / sigma^2: its derivative by log sigma is -2 KL."""
    policy = sharpened(policy_of(PPO, "Pendulum-v1"))
    observations, eps = states(8, 3), th.full((3,), 0.1)
    if convex:
        term = bound(policy, chain_of(policy), observations, eps, "linf", 1.0).sum()
    else:
        term = divergence(policy, observations, observations + 0.1).sum()
    term.backward()
    assert policy.log_std.grad.sum().item() == pytest.approx(-2.0 * term.item(), rel=1e-4)
