"""`certify` on real policies: sound against attacks, monotone where it says so, and refusing what it does not cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_prune_robust.actor import Actor
from sb3_prune_robust.certificates import certify
from sb3_prune_robust.certificates.divergences import categorical_kl, gaussian_kl, gaussian_tv
from sb3_prune_robust.network import UnsupportedNetworkError, action_network
from sb3_prune_robust.policies import LipschitzGaussianPolicy

KINDS = ["gaussian", "categorical", "multi"]
OBSERVATIONS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def in_ball(rng, eps, norm, n):
    unit = np.sign(rng.normal(size=(n, len(eps)))) if norm == "linf" else rng.normal(size=(n, len(eps)))
    if norm == "l2":
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit * eps


def joint_logits(outputs, nvec):
    """Logits of the product of independent categoricals, by enumeration."""
    groups = np.split(outputs, np.cumsum(nvec)[:-1], axis=1)
    return np.stack([sum(np.meshgrid(*row, indexing="ij")).ravel() for row in zip(*groups, strict=True)])


def divergences(network, clean, attacked):
    if network.is_gaussian:
        delta = np.linalg.norm((attacked - clean) / network.std, axis=1)
        return gaussian_tv(delta), gaussian_kl(delta)
    p, q = joint_logits(clean, network.nvec), joint_logits(attacked, network.nvec)
    prob = [np.exp(x - x.max(1, keepdims=True)) / np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True) for x in (p, q)]
    return 0.5 * np.abs(prob[0] - prob[1]).sum(axis=1), np.maximum(categorical_kl(p, q), categorical_kl(q, p))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_point_of_the_ball_exceeds_the_certificate(build_policy, kind, norm):
    rng, eps = np.random.default_rng(1), np.array([0.3, 0.05, 0.0, 0.2, 0.3])
    for seed in range(4):
        policy = build_policy(kind, seed)
        certificate = certify(policy, OBSERVATIONS, eps, norm)
        network = action_network(policy).astype(np.float64)
        for i, state in enumerate(OBSERVATIONS.astype(np.float64)):
            attacked = network(state + in_ball(rng, eps, norm, 400))
            clean = np.repeat(network(state[None]), 400, axis=0)
            tv, kl = divergences(network, clean, attacked)
            for bound in (certificate, *certificate.by_method.values()):
                assert tv.max() <= bound.tv[i] + 1e-13
                assert kl.max() <= bound.kl[i] + 1e-13
                assert np.all(np.abs(attacked - clean) <= bound.radius[i] + 1e-13)
            assert tv.max() >= certificate.tv[i] / 60  # the bound is about this quantity, not merely large


def test_against_pgd_on_a_trained_agent(trained_agent):
    """The change that projected gradient ascent reaches through the policy's own distribution."""
    policy, eps = trained_agent.policy, 0.1
    states = th.as_tensor(np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
    certificate = certify(trained_agent, states, eps)
    with th.no_grad():
        clean = policy.get_distribution(states).distribution.mean
    for sign in (1.0, -1.0):
        step = th.zeros_like(states)
        for _ in range(20):
            step.requires_grad_()
            mean = policy.get_distribution(states + step).distribution.mean
            gradient = th.autograd.grad((sign * mean).sum(), step)[0]
            step = (step + eps / 4 * gradient.sign()).clamp(-eps, eps).detach()
        reached = (policy.get_distribution(states + step).distribution.mean - clean).abs().detach().numpy()
        assert np.all(reached <= certificate.radius + 1e-5)
        assert reached.mean() > 0.02 * certificate.radius.mean()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_theorem_1_on_policies(build_policy, kind, norm):
    """Zeroing more and more weights never raises any number of the "abs" certificate: exactly, tv and kl too."""
    for seed in range(12):
        policy, rng = build_policy(kind, seed), np.random.default_rng(seed)
        before = certify(policy, OBSERVATIONS, 0.1, norm, "abs")
        for _ in range(6):
            for layer in (*policy.mlp_extractor.policy_net, policy.action_net):
                if isinstance(layer, th.nn.Linear):
                    layer.weight.data[th.as_tensor(rng.random(layer.weight.shape) < rng.choice([0.003, 0.3]))] = 0.0
            after = certify(policy, OBSERVATIONS, 0.1, norm, "abs")
            for name in ("tv", "kl", "radius", "delta" if kind == "gaussian" else "omega"):
                assert np.all(getattr(after, name) <= getattr(before, name)), name
            before = after


def test_total_variation_never_falls_by_rounding():
    """erf itself does: two neighbouring float64, of which the larger has the smaller erf."""
    from scipy.special import erf

    from sb3_prune_robust.bounds import ActionChange
    from sb3_prune_robust.certificates.certify import state_bounds
    from sb3_prune_robust.network import TANH, ActionNetwork

    network = ActionNetwork((np.ones((1, 1)),) * 2, (np.zeros(1),) * 2, (TANH,), std=np.ones(1))
    delta = np.random.default_rng(0).uniform(0, 4, size=200_000)
    above = np.nextafter(delta, np.inf)
    assert np.any(erf(above) < erf(delta))
    lower, upper = (state_bounds(network, d[:, None], ActionChange(d[:, None], d[:, None])).tv for d in (delta, above))
    assert np.all(lower <= upper)


def test_best_is_the_smallest_of_each_and_names_it(build_policy):
    certificate = certify(build_policy(), OBSERVATIONS, 0.1)
    bounds = certificate.by_method
    assert set(bounds) == {"abs", "spectral", "lipsdp", "interval", "crown"}
    for name in ("tv", "kl", "radius", "delta"):
        np.testing.assert_array_equal(getattr(certificate, name), np.min([getattr(b, name) for b in bounds.values()], axis=0))
    for i, method in enumerate(certificate.method):
        assert bounds[method].tv[i] == certificate.tv[i]
    assert certificate.tv.shape == certificate.kl.shape == certificate.delta.shape == (6,)
    assert certificate.radius.shape == (6, 3) and certificate.omega is None
    assert certificate.norm == "linf" and "linf" not in certificate.by_method and "eps = 0.1" in certificate.assumptions


def test_one_method_alone_is_what_best_reports_for_it(build_policy):
    for name, bound in certify(build_policy("multi"), OBSERVATIONS, 0.1).by_method.items():
        alone = certify(build_policy("multi"), OBSERVATIONS, 0.1, method=name)
        np.testing.assert_array_equal(alone.tv, bound.tv)
        np.testing.assert_array_equal(alone.omega, bound.omega)
        assert alone.omega.shape == (6, 3) and np.all(alone.omega[:, 1] == 0.0)  # a single choice cannot change
        assert list(alone.by_method) == [name] and set(alone.method) == {name}


def test_numbers_by_hand(build_policy):
    """A network of one linear unit: change eps |w|, delta = eps |w| / std."""
    policy = build_policy(shape=(1,))
    with th.no_grad():
        for layer in (policy.mlp_extractor.policy_net[0], policy.mlp_extractor.policy_net[2], policy.action_net):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0] = 2.0
        policy.log_std[0] = np.log(0.5)
    certificate = certify(policy, np.zeros((1, 1)), 0.01, method="abs")
    np.testing.assert_allclose(certificate.radius, [[0.08, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(certificate.delta, 0.16, rtol=1e-6)
    np.testing.assert_allclose(certificate.tv, 0.0637628, rtol=1e-5)  # 2 Phi(0.08) - 1
    np.testing.assert_allclose(certificate.kl, 0.0128, rtol=1e-5)


def test_dimensions_that_cannot_be_attacked_do_not_count(build_policy):
    policy, eps = build_policy(), np.array([0.1, 0, 0, 0.1, 0])
    masked = certify(policy, OBSERVATIONS, eps)
    with th.no_grad():
        policy.mlp_extractor.policy_net[0].weight[:, [1, 2, 4]] = 0.0
    np.testing.assert_allclose(masked.by_method["abs"].tv, certify(policy, OBSERVATIONS, 0.1).by_method["abs"].tv, rtol=1e-9)


def test_observations_with_a_shape(build_policy):
    policy = build_policy(shape=(2, 3))
    observations = np.random.default_rng(0).normal(size=(4, 2, 3))
    scalar = certify(policy, observations, 0.1)
    np.testing.assert_array_equal(scalar.tv, certify(policy, observations, np.full((2, 3), 0.1)).tv)
    assert scalar.eps.shape == (6,)


def test_nothing_in_the_policy_changes(build_policy):
    """Not even a Lipschitz policy whose weights are out of its bound and would be projected by predict or save."""
    policy = build_policy(cls=LipschitzGaussianPolicy, lipschitz=1.0)
    policy.set_training_mode(True)
    with th.no_grad():
        policy.action_net.weight.mul_(50.0)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    certify(policy, OBSERVATIONS, 0.1)
    assert policy.training
    for name, parameter in policy.named_parameters():
        assert th.equal(parameter, before[name]), name


def test_a_policy_that_does_not_run_its_layers_is_refused(build_policy):
    policy = build_policy()
    handle = policy.action_net.register_forward_hook(lambda module, args, output: output * 1.001)
    with pytest.raises(UnsupportedNetworkError, match="does not compute what its layers say"):
        certify(policy, OBSERVATIONS, 0.1)
    handle.remove()
    assert np.all(certify(policy, OBSERVATIONS, 0.1).tv > 0)
    for kind in ("categorical", "multi"):
        policy = build_policy(kind)
        policy.mlp_extractor.policy_net[2].register_forward_hook(lambda module, args, output: output * 1.01)
        with pytest.raises(UnsupportedNetworkError, match="does not compute what its layers say"):
            certify(policy, OBSERVATIONS, 0.1)


class NoPolicy(th.nn.Module):
    observation_space = spaces.Box(-1.0, 1.0, (4,))


class OtherForward(ActorCriticPolicy):
    def get_distribution(self, obs):
        return super().get_distribution(2 * obs)


@pytest.mark.parametrize("method", ["predict", "_predict"])
def test_what_a_policy_does_before_its_network_is_played_and_not_certified(build_policy, method):
    """A defence such as a filter of what is observed: its network alone is another agent."""

    def defended(self, observation, *args, **kwargs):
        return getattr(ActorCriticPolicy, method)(self, observation * 0, *args, **kwargs)

    policy = build_policy(cls=type("Defended", (ActorCriticPolicy,), {method: defended}))
    with pytest.raises(UnsupportedNetworkError, match=f"Defended.{method} is not Stable-Baselines3's own"):
        certify(policy, OBSERVATIONS, 0.1)
    observations = 10 * OBSERVATIONS
    played, _ = Actor(policy, True)(observations, [np.random.default_rng(0)] * len(observations))
    np.testing.assert_array_equal(played, policy.predict(observations, deterministic=True)[0])
    assert (played == played[0]).all()  # whatever is observed
    assert not (ActorCriticPolicy.predict(build_policy(), observations, deterministic=True)[0] == played).all()


def test_policies_that_are_not_covered(build_policy):
    with pytest.raises(ValueError, match="get_distribution is not Stable-Baselines3's own"):
        certify(build_policy(cls=OtherForward), OBSERVATIONS, 0.1)
    with pytest.raises(ValueError, match="gSDE's actor"):
        certify(SAC("MlpPolicy", "Pendulum-v1", use_sde=True, buffer_size=10), np.zeros((1, 3)), 0.1)
    with pytest.raises(ValueError, match="covariance depends on the state"):
        certify(PPO("MlpPolicy", "Pendulum-v1", use_sde=True), np.zeros((1, 3)), 0.1)
    with pytest.raises(ValueError, match="NoPolicy is not a policy whose outputs are known"):
        certify(NoPolicy(), np.zeros((1, 4)), 0.1)
    with pytest.raises(TypeError, match="policy must be a Stable-Baselines3 policy or algorithm, got str"):
        certify("model.zip", OBSERVATIONS, 0.1)


def test_recurrent_policies_are_refused():
    from sb3_contrib import RecurrentPPO

    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8)
    with pytest.raises(UnsupportedNetworkError):
        certify(model, np.zeros((1, 4)), 0.1)


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (np.zeros(5), r"observations must have shape \(n, 5\), got \(5,\)"),
        (np.zeros((3, 4)), r"observations must have shape \(n, 5\), got \(3, 4\)"),
        (np.zeros((0, 5)), "observations must hold at least one observation"),
        (np.full((2, 5), np.nan), "observations must be finite; 2 of 2"),
        (np.array([["a"] * 5]), "observations must be an array of numbers"),
    ],
)
def test_bad_observations(build_policy, observations, message):
    with pytest.raises(ValueError, match=message):
        certify(build_policy(), observations, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": -1.0}, "eps must be finite and >= 0"),
        ({"eps": np.nan}, "eps must be finite and >= 0"),
        ({"eps": [0.1, 0.1]}, "eps must be a number or an array of shape"),
        ({"eps": 0.1, "norm": "l0"}, "norm must be one of 'linf', 'l2'"),
        (
            {"eps": 0.1, "method": "ibp"},
            "method must be one of 'abs', 'spectral', 'lipsdp', 'interval', 'crown', 'alpha', 'best'; got 'ibp'",
        ),
    ],
)
def test_bad_arguments(build_policy, arguments, message):
    with pytest.raises(ValueError, match=message):
        certify(build_policy(), OBSERVATIONS, **arguments)


def test_weights_and_std_that_are_not_finite(build_policy):
    policy = build_policy()
    policy.log_std.data[0] = -np.inf
    with pytest.raises(ValueError, match="standard deviation must be positive"):
        certify(policy, OBSERVATIONS, 0.1)
    policy.action_net.weight.data[0, 0] = np.nan
    with pytest.raises(ValueError, match="weights that are not finite"):
        certify(policy, OBSERVATIONS, 0.1)


def insert(policy, module):
    """A policy with a module between its first activation and its second layer."""
    policy.mlp_extractor.policy_net.insert(2, module)
    return policy


def test_layers_that_make_the_policy_no_function_of_its_observation(build_policy):
    dropped = insert(build_policy(), th.nn.Dropout(0.5))
    dropped.set_training_mode(True)
    with pytest.raises(UnsupportedNetworkError, match="Dropout is in training mode, where it drops units at random"):
        certify(dropped, OBSERVATIONS, 0.1)
    dropped.set_training_mode(False)
    np.testing.assert_array_equal(certify(dropped, OBSERVATIONS, 0.1).tv, certify(build_policy(), OBSERVATIONS, 0.1).tv)
    normalised = insert(build_policy(), th.nn.BatchNorm1d(16))
    with pytest.raises(UnsupportedNetworkError, match="BatchNorm1d is in training mode, where it depends on the other"):
        certify(normalised, OBSERVATIONS, 0.1)
    normalised.set_training_mode(False)
    with pytest.raises(UnsupportedNetworkError, match="BatchNorm1d is not covered; fold its statistics"):
        certify(normalised, OBSERVATIONS, 0.1)


def test_half_precision_and_unknown_layers_are_refused(build_policy):
    with pytest.raises(UnsupportedNetworkError, match="float16; float32 or float64 is needed"):
        certify(build_policy().half(), OBSERVATIONS, 0.1)
    with pytest.raises(UnsupportedNetworkError, match=r"LayerNorm.* has no known Lipschitz constant"):
        certify(insert(build_policy(), th.nn.LayerNorm(16)), OBSERVATIONS, 0.1)
