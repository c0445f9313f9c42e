"""Robust pruning scores: by hand, against finite differences, in trainings, and where they must refuse."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import QRDQN, CrossQ, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC

from sb3_prune_robust.network import action_network
from sb3_prune_robust.policies import LipschitzGaussianPolicy
from sb3_prune_robust.pruning import SCORES, DivergenceScore, PathScore, PruningCallback, RadiusScore, prune_policy, sparsity
from sb3_prune_robust.pruning.robust_scores import _Expansion

ROBUST = ("divergence", "path", "radius")
HIDDEN, SECOND, HEAD = "mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"


class Line(gym.Env):
    """Two inputs, one continuous action."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)


def make(env="InvertedPendulum-v5", policy="MlpPolicy", **kwargs):
    return PPO(policy, env, n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu", **kwargs)


def small():
    """y = (5, -6) relu(W s) / 2 with W = [[1, 2], [3, 4]]; all units are alive at the states used."""
    model = make(Line(), policy_kwargs=dict(net_arch=[2], activation_fn=th.nn.ReLU))
    layers = model.policy.mlp_extractor.policy_net[0], model.policy.action_net
    with th.no_grad():
        layers[0].weight.copy_(th.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layers[1].weight.copy_(th.tensor([[5.0, -6.0]]))
        for layer in layers:
            layer.bias.zero_()
        model.policy.log_std.fill_(np.log(2.0))
    return model


STATES = np.array([[1.0, 1.0], [2.0, 0.0]])


def values(score, policy, states):
    score.prepare(policy, states)
    score.look()
    return {name: score(name, module.weight) for name, module in policy.named_modules() if name in (HIDDEN, SECOND, HEAD)
            if hasattr(module, "weight")}  # fmt: skip


def states(n=64, n_inputs=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, n_inputs)) * 0.3


def randomised(model):
    """Heads start near zero, where everything is small."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        model.policy.action_net.weight.normal_(0.0, 0.5, generator=generator)
    return model


# Whitened head (2.5, -3). E s_1^2 = 5/2, E s_2^2 = 1/2; hidden units: (3, 7) and (2, 6).
CURVATURE = {
    HIDDEN: [[1 * 2.5 * 2.5**2, 4 * 0.5 * 2.5**2], [9 * 2.5 * 9, 16 * 0.5 * 9]],
    HEAD: [[2.5**2 * (9 + 4) / 2, 9 * (49 + 36) / 2]],
}


def test_divergence_by_hand():
    found = values(DivergenceScore(), small().policy, STATES)
    for name, expected in CURVATURE.items():
        assert found[name].numpy() == pytest.approx(np.array(expected), rel=1e-6)


def test_path_by_hand():
    found = values(PathScore(), small().policy, STATES)
    contribution = {HIDDEN: [[2.5 * 1, 2.5 * 2], [3 * 3, 3 * 4]], HEAD: [[2.5 * 3, 3 * 7]]}
    for name, expected in CURVATURE.items():
        assert found[name].numpy() == pytest.approx(np.array(expected) / np.sqrt(contribution[name]), rel=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.1, 10.0])
def test_radius_by_hand(eps):
    found = values(RadiusScore(eps), small().policy, STATES)
    # The Jacobian is (2.5 - 9, 5 - 12) = (-6.5, -7) everywhere: R = 13.5^2; w dR/dw = -2 * 13.5 * (its share of the sum).
    share = {HIDDEN: [[2.5, 5.0], [-9.0, -12.0]], HEAD: [[2.5 + 5.0, -9.0 - 12.0]]}
    for name, expected in CURVATURE.items():
        gain = -2 * 13.5 * np.array(share[name])
        wanted = np.maximum(np.array(expected) - eps**2 * gain, np.array(expected) / 2)
        assert found[name].numpy() == pytest.approx(wanted, rel=1e-6)


def test_the_slope_counts_from_the_policy_before_pruning():
    """A weight whose removal undoes the damage done is worth less than its curvature, but not less than half of it."""
    model, score = small(), DivergenceScore()
    score.prepare(model.policy, STATES)
    with th.no_grad():
        model.policy.mlp_extractor.policy_net[0].weight[0, 1] = 0.0
    score.look()
    # y moved by -2.5 * 2 s_2: -5 at the first state, 0 at the second, so dL = mean over both of (2 * -5 * move + move^2).
    # Removing w_11 moves it on by -2.5; w_21 by +9 and +18; w_22 by +12 and 0: 72 - 60 is below the floor, half of its 72.
    weight = model.policy.mlp_extractor.policy_net[0].weight
    assert score(HIDDEN, weight).numpy() == pytest.approx(np.array([[15.625 + 12.5, 0.0], [202.5 - 45.0, 36.0]]), rel=1e-6)


def whitened(policy, seen):
    """Of a policy with unit noise, or with logits."""
    network = action_network(policy).astype(np.float64)
    outputs = network(seen)
    return outputs if network.is_gaussian else outputs - outputs.mean(axis=1, keepdims=True)


def replaced(weight, i, value, call):
    """What ``call`` returns while one weight has another value."""
    flat = weight.detach().view(-1)
    kept = flat[i].item()
    flat[i] = value
    result = call()
    flat[i] = kept
    return result


@pytest.mark.parametrize("env", ["InvertedPendulum-v5", "CartPole-v1"])
def test_curvature_is_the_mean_square_of_what_a_weight_moves(env):
    """At states where the units' slopes differ: ``E[h^2 |dy/dz|^2]`` is not a product of two means."""
    policy, seen = randomised(make(env)).policy, 10 * states()
    found = values(DivergenceScore(), policy, seen)
    for name, weight in ((HIDDEN, policy.mlp_extractor.policy_net[0].weight), (HEAD, policy.action_net.weight)):
        for i in range(0, weight.numel(), 25):
            w = weight.view(-1)[i].item()
            up, down = (replaced(weight, i, factor * w, lambda: whitened(policy, seen)) for factor in (1.01, 0.99))
            expected = np.square((up - down) / 0.02).sum(axis=1).mean()
            assert found[name].view(-1)[i].item() == pytest.approx(expected, rel=0.02, abs=1e-9)


def test_damage_of_the_head_is_what_removal_adds_to_the_divergence():
    """Outputs are linear in the head's weights: there the expansion is exact, but for its floor."""
    policy, seen = randomised(make("CartPole-v1")).policy, states()
    score, weight, before = DivergenceScore(), policy.action_net.weight, whitened(policy, seen)
    score.prepare(policy, seen)
    with th.no_grad():
        weight *= 0.99

    def loss():
        return np.square(whitened(policy, seen) - before).sum(axis=1).mean()

    score.look()
    found, floor = score(HEAD, weight).view(-1), values(DivergenceScore(), policy, seen)[HEAD].view(-1) / 2
    added = np.array([replaced(weight, i, 0.0, loss) for i in range(weight.numel())]) - loss()
    assert found.numpy() == pytest.approx(np.maximum(added, floor.numpy()), rel=1e-3, abs=1e-9)
    assert (added > floor.numpy()).sum() > 5 and (added < floor.numpy()).sum() > 5


@pytest.mark.parametrize("env", ["InvertedPendulum-v5", "CartPole-v1"])
def test_contribution_is_what_bound_a_loses(env):
    """Bound A is linear in each absolute weight but for the last norm: halve steps until the difference is the gradient."""
    policy = randomised(make(env)).policy
    with th.enable_grad():
        expansion = _Expansion(policy, th.as_tensor(states()))
    contribution = expansion.contributions()[1][3, 5].item()
    weight = policy.mlp_extractor.policy_net[2].weight

    def bound():
        arrays = [np.abs(w.astype(np.float64)) for w in action_network(policy).weights]
        product = arrays[2] @ arrays[1] @ arrays[0]
        return float(np.linalg.norm(expansion.whitening.abs().numpy() @ product.sum(axis=1)))

    before, step = bound(), 1e-2
    with th.no_grad():
        weight[3, 5] *= 1 - step
    assert (before - bound()) / step == pytest.approx(contribution, rel=1e-2)


def test_gain_against_finite_differences_of_the_radius():
    policy = randomised(make()).policy
    weights = [
        module.weight for module in (policy.mlp_extractor.policy_net[0], policy.mlp_extractor.policy_net[2], policy.action_net)
    ]
    seen = 5 * states()  # far from 0: the units' slopes change with the weights

    def radius():
        """R from central differences of the network itself."""
        net, h = action_network(policy).astype(np.float64), 1e-5
        columns = [(net(seen + h * e) - net(seen - h * e)) / (2 * h) for e in np.eye(4)]
        return float(np.square(np.abs(np.stack(columns, axis=2) / net.std[:, None]).sum(axis=2)).sum(axis=1).mean())

    with th.enable_grad():
        gains = _Expansion(policy, th.as_tensor(seen)).gains()
    for weight, gain in zip(weights, gains, strict=True):
        i = int(gain.abs().argmax())
        before, kept = radius(), weight.detach().clone()
        with th.no_grad():
            weight.view(-1)[i] *= 1 - 1e-2
        assert (before - radius()) / 1e-2 == pytest.approx(float(gain.view(-1)[i]), rel=0.1)
        with th.no_grad():
            weight.copy_(kept)


def test_less_is_lost_than_by_magnitude():
    """Where inputs differ in size, weights say little of what they do."""
    moved, scale = {}, np.array([3.0, 0.3, 0.03, 0.003])
    for scores in ("magnitude", "divergence"):
        model = randomised(make())
        before = action_network(model.policy).astype(np.float64)(states(seed=1) * scale)
        prune_policy(model, 0.5, scores=scores, distribution="uniform", observations=states(512) * scale)
        moved[scores] = np.square(action_network(model.policy).astype(np.float64)(states(seed=1) * scale) - before).mean()
        assert sparsity(model)["actor"] == 0.5
    assert moved["divergence"] < 0.3 * moved["magnitude"]


def test_radius_lowers_the_radius_below_that_of_the_damage_alone():
    def radius(score):
        model = randomised(make())
        prune_policy(model, 0.5, scores=score, observations=states())
        expansion = _Expansion(model.policy, th.as_tensor(states(seed=1)))
        return float(expansion.jacobian.abs().sum(dim=2).square().sum(dim=1).mean().detach())

    assert radius(RadiusScore(0.3)) < 0.8 * radius(DivergenceScore())


@pytest.mark.parametrize("env", ["InvertedPendulum-v5", "CartPole-v1"])
@pytest.mark.parametrize("name", ROBUST)
def test_in_training_it_is_deterministic_and_leaves_the_rest_alone(env, name):
    def learn():
        model = make(env)
        model.learn(512, callback=PruningCallback(0.6, scores=name))
        return model

    one, other = learn(), learn()
    assert sparsity(one)["actor"] == pytest.approx(0.6, abs=1e-3) and sparsity(one)["critic"] == 0.0
    assert all(th.equal(a, b) for a, b in zip(one.policy.parameters(), other.policy.parameters(), strict=True))


@pytest.mark.parametrize("name", ROBUST)
def test_looking_changes_no_gradient_and_no_random_number(name):
    model = make()
    random, before = th.get_rng_state(), [p.detach().clone() for p in model.policy.parameters()]
    values(SCORES[name](), model.policy, states())
    assert th.equal(random, th.get_rng_state()) and all(p.grad is None for p in model.policy.parameters())
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("make_model", [
    lambda: SAC("MlpPolicy", "InvertedPendulum-v5", seed=0, learning_starts=64, policy_kwargs=dict(net_arch=[16, 16])),
    lambda: DQN("MlpPolicy", "CartPole-v1", seed=0, learning_starts=64, policy_kwargs=dict(net_arch=[16, 16])),
    lambda: make(policy=LipschitzGaussianPolicy),
])  # fmt: skip
def test_other_policies_with_plain_layers(make_model):
    model = make_model()
    model.learn(192, callback=PruningCallback(0.5, scores="path"))
    assert sparsity(model)["actor"] == pytest.approx(0.5, abs=1e-2)


def test_it_starts_when_it_has_seen_states():
    callback = PruningCallback(0.5, scores="path", schedule="one_shot", start=0.0)
    for _ in range(2):  # the second model's states are its own
        make().learn(256, callback=callback)
        assert [event.timestep for event in callback.events] == [64]


def test_what_it_does_not_cover_is_refused():
    with pytest.raises(ValueError, match=r"observations: this score needs states"):
        prune_policy(make(), 0.5, scores="path")
    with pytest.raises(ValueError, match=r"observations must be finite, of shape \(n, \*\(4,\)\)"):
        prune_policy(make(), 0.5, scores="path", observations=np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"observations must be finite"):
        prune_policy(make(), 0.5, scores="path", observations=np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match=r"PathScore ranks the layers .* not mlp_extractor.value_net.0"):
        make().learn(64, callback=PruningCallback(0.5, scores="path", targets=("actor", "critic")))
    with pytest.raises(ValueError, match=r"PathScore ranks the layers .* not mlp_extractor.value_net.0"):
        prune_policy(make(), 0.5, scores="path", targets=("actor", "critic"), observations=states())
    dropping = make()
    dropping.policy.mlp_extractor.policy_net.append(th.nn.Dropout(0.5))
    dropping.policy.eval()
    with pytest.raises(ValueError, match=r"PathScore does not cover"):
        prune_policy(dropping, 0.5, scores="path", observations=states())
    with pytest.raises(ValueError, match=r"eps must be at least 0, got -1"):
        RadiusScore(-1)
    for algorithm, env, why in (
        (CrossQ, "InvertedPendulum-v5", r"BatchRenorm1d is in training mode"),
        (QRDQN, "CartPole-v1", r"RadiusScore does not cover"),
    ):
        with pytest.raises(ValueError, match=why):
            algorithm("MlpPolicy", env, seed=0).learn(64, callback=PruningCallback(0.5, scores="radius"))
    with pytest.raises(ValueError, match=r"memory"):
        RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=16).learn(
            64, callback=PruningCallback(0.5, scores="radius", layers=["lstm_actor*"])
        )
