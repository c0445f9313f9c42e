"""The Lipschitz policies inside SB3's algorithms."""

import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_prune_robust.certificates import certify
from sb3_prune_robust.network import action_network
from sb3_prune_robust.policies import DEFAULT_LIPSCHITZ, LipschitzCategoricalPolicy, LipschitzGaussianPolicy, copy_policy
from sb3_prune_robust.pruning import PruningCallback, prune_policy, sparsity

SMALL = dict(n_steps=64, batch_size=32, n_epochs=2)


def bound(policy):
    """The exact product, computed apart from the package."""
    weights = [m.weight for m in [*policy.mlp_extractor.policy_net, policy.action_net] if isinstance(m, nn.Linear)]
    return math.prod(np.linalg.svd(w.detach().numpy().astype(np.float64), compute_uv=False)[0] for w in weights)


class Spy(BaseCallback):
    """Records the network's bound after every optimiser step, and at every moment a rollout begins."""

    def __init__(self):
        super().__init__()
        self.after_steps, self.at_rollouts = [], []

    def _on_training_start(self):
        self.model.policy.optimizer.register_step_post_hook(lambda *_: self.after_steps.append(bound(self.model.policy)))

    def _on_rollout_start(self):
        self.at_rollouts.append(bound(self.model.policy))

    def _on_step(self):
        return True


@pytest.mark.parametrize(
    ("env", "ours"), [("Pendulum-v1", LipschitzGaussianPolicy), ("CartPole-v1", LipschitzCategoricalPolicy)]
)
@pytest.mark.parametrize("algo", [PPO, A2C, TRPO])
def test_without_a_bound_training_is_bit_identical_to_mlp_policy(algo, env, ours):
    kwargs = dict(n_steps=64) if algo is A2C else dict(n_steps=64, batch_size=32)
    plain = algo("MlpPolicy", env, seed=3, **kwargs).learn(256)
    model = algo(ours, env, seed=3, policy_kwargs=dict(lipschitz=None), **kwargs).learn(256)
    theirs, mine = plain.policy.state_dict(), model.policy.state_dict()
    assert list(theirs) == list(mine)
    assert all(th.equal(theirs[key], mine[key]) for key in theirs)
    assert not th.equal(theirs["action_net.weight"], algo("MlpPolicy", env, seed=3, **kwargs).policy.action_net.weight)


@pytest.mark.parametrize("lipschitz", [None, 10.0])
def test_initialisation_and_parameter_order_equal_sb3s(lipschitz):
    plain = PPO("MlpPolicy", "Pendulum-v1", seed=1).policy
    policy = PPO(LipschitzGaussianPolicy, "Pendulum-v1", seed=1, policy_kwargs=dict(lipschitz=lipschitz)).policy
    for (name, theirs), (our_name, mine) in zip(plain.named_parameters(), policy.named_parameters(), strict=True):
        assert name == our_name and th.equal(theirs, mine)
    groups = [p.optimizer.param_groups[0]["params"] for p in (plain, policy)]
    assert [p.shape for p in groups[0]] == [p.shape for p in groups[1]]


@pytest.mark.parametrize("algo", [PPO, A2C, TRPO])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.SELU])
def test_the_bound_holds_after_every_step_and_exactly_in_every_rollout(algo, activation):
    spy = Spy()
    kwargs = dict(learning_rate=1e-2, policy_kwargs=dict(lipschitz=1.5, activation_fn=activation))
    kwargs |= dict(n_steps=16) if algo is A2C else dict(n_steps=64, batch_size=32)
    model = algo(LipschitzGaussianPolicy, "InvertedPendulum-v5", seed=0, **kwargs).learn(640, callback=spy)
    constant = 1.7581**2 if activation is nn.SELU else 1.0
    assert len(spy.after_steps) >= 40 and max(spy.after_steps) * constant > 1.4  # the bound was at work
    assert max(spy.after_steps) * constant <= 1.5 * (1 + 1e-2)
    assert max(spy.at_rollouts) * constant <= 1.5 * (1 + 1e-5)
    model.predict(model.observation_space.sample())
    assert bound(model.policy) * constant <= 1.5 * (1 + 1e-5)


def test_predict_and_save_see_weights_that_were_changed_by_hand(tmp_path):
    model = PPO(LipschitzGaussianPolicy, "Pendulum-v1", policy_kwargs=dict(lipschitz=2.0), **SMALL)
    model.policy.action_net.weight.data.fill_(5.0)
    model.save(tmp_path / "model.zip")
    assert bound(PPO.load(tmp_path / "model.zip").policy) <= 2.0 * (1 + 1e-5)
    model.policy.action_net.weight.data.fill_(7.0)
    model.predict(np.zeros(3, np.float32))
    assert 2.0 * (1 - 1e-5) <= bound(model.policy) <= 2.0 * (1 + 1e-5)


def test_the_network_keeps_its_bound_against_finite_differences():
    model = PPO(LipschitzGaussianPolicy, "Pendulum-v1", seed=0, learning_rate=0.05, policy_kwargs=dict(lipschitz=3.0), **SMALL)
    network = action_network(model.learn(512).policy).astype(np.float64)
    rng = np.random.default_rng(0)
    states = rng.normal(size=(1000, 3))
    others = states + 1e-3 * rng.normal(size=(1000, 3))
    slopes = np.linalg.norm(network(states) - network(others), axis=1) / np.linalg.norm(states - others, axis=1)
    assert slopes.max() <= 3.0 * (1 + 1e-5)


def pruned_model(ours=LipschitzGaussianPolicy, **kwargs):
    model = PPO(ours, "Pendulum-v1", seed=0, **SMALL, **kwargs)
    return model.learn(256, callback=PruningCallback(0.6, start=0.0, end=0.5, targets=("actor", "critic")))


@pytest.mark.parametrize("algo", ["ours", "plain"])
def test_save_load_continue_stays_sparse_without_a_callback(algo, tmp_path):
    model = pruned_model(policy_kwargs=dict(lipschitz=5.0))
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", env=gym.make("Pendulum-v1"))
    zeros = {name: p == 0 for name, p in loaded.policy.named_parameters() if name.endswith("net.0.weight") or "net.2" in name}
    if algo == "ours":
        loaded.learn(256, reset_num_timesteps=False)
    else:
        loaded.set_parameters(model.get_parameters())
        loaded.learn(256)
    assert sparsity(loaded)["actor"] == pytest.approx(0.6, abs=1e-3)
    parameters = dict(loaded.policy.named_parameters())
    assert all(bool((parameters[name][where] == 0).all()) for name, where in zeros.items())


def test_files_are_plain_sb3_files_both_ways(tmp_path):
    model = pruned_model(policy_kwargs=dict(lipschitz=5.0))
    plain = PPO("MlpPolicy", "Pendulum-v1", **SMALL)
    plain.set_parameters(model.get_parameters(), exact_match=True)
    observations = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    assert np.array_equal(
        plain.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )
    unbounded = PPO(LipschitzGaussianPolicy, "Pendulum-v1", policy_kwargs=dict(lipschitz=None), **SMALL)
    unbounded.set_parameters(plain.get_parameters(), exact_match=True)
    assert sparsity(unbounded)["actor"] == sparsity(model)["actor"] > 0.5
    model.policy.save(str(tmp_path / "policy.pt"))
    assert LipschitzGaussianPolicy.load(str(tmp_path / "policy.pt")).lipschitz == 5.0


@pytest.mark.parametrize("copier", [copy_policy, copy.deepcopy])
def test_copies_keep_zeros_and_bound_and_are_independent(copier):
    model = pruned_model(policy_kwargs=dict(lipschitz=5.0))
    state = th.get_rng_state()
    clone = copier(model.policy)
    assert th.equal(state, th.get_rng_state())
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    assert all(th.equal(value, before[key]) for key, value in clone.state_dict().items())
    for _ in range(10):
        clone.optimizer.zero_grad()
        (1e3 * clone.get_distribution(th.randn(8, 3)).distribution.mean ** 2).sum().neg().backward()
        for group in clone.optimizer.param_groups:
            group["lr"] = 0.1
        clone.optimizer.step()
    assert sparsity(clone) == sparsity(model) and bound(clone) <= 5.0 * (1 + 1e-2)
    assert all(th.equal(value, before[key]) for key, value in model.policy.state_dict().items())
    assert not th.equal(clone.state_dict()["action_net.weight"], before["action_net.weight"])


def test_copy_of_a_policy_that_is_not_ours():
    policy = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[8], share_features_extractor=False), **SMALL).policy
    clone = copy_policy(policy)
    prune_policy(clone, 0.5)
    assert type(clone) is ActorCriticPolicy and sparsity(clone)["actor"] == 0.5 and sparsity(policy)["actor"] == 0.0


def test_default_bound_is_used():
    assert PPO(LipschitzGaussianPolicy, "Pendulum-v1").policy.lipschitz == DEFAULT_LIPSCHITZ


BOX, DISCRETE = spaces.Box(-1, 1, (3,)), spaces.Discrete(3)


@pytest.mark.parametrize(
    ("ours", "observation_space", "action_space", "kwargs", "message"),
    [
        (
            LipschitzGaussianPolicy,
            BOX,
            DISCRETE,
            {},
            "LipschitzGaussianPolicy needs a Box.*Discrete.*LipschitzCategoricalPolicy",
        ),
        (
            LipschitzCategoricalPolicy,
            BOX,
            BOX,
            {},
            "CategoricalPolicy needs a Discrete or MultiDiscrete.*LipschitzGaussianPolicy",
        ),
        (LipschitzCategoricalPolicy, BOX, spaces.MultiBinary(3), {}, "MultiBinary"),
        (LipschitzGaussianPolicy, spaces.Dict(a=BOX), BOX, {}, "Box observation space, got Dict.*FlattenObservation"),
        (LipschitzGaussianPolicy, DISCRETE, BOX, {}, "got Discrete"),
        (LipschitzGaussianPolicy, spaces.Box(0, 255, (36, 36, 3), np.uint8), BOX, {}, "normalize_images=False"),
        (LipschitzGaussianPolicy, BOX, BOX, dict(lipschitz=0.0), "lipschitz must be a positive finite number.*0.0"),
        (LipschitzGaussianPolicy, BOX, BOX, dict(lipschitz=math.nan), "lipschitz"),
        (LipschitzGaussianPolicy, BOX, BOX, dict(lipschitz="10"), "lipschitz"),
        (LipschitzGaussianPolicy, BOX, BOX, dict(use_sde=True), "use_sde"),
        (LipschitzGaussianPolicy, BOX, BOX, dict(activation_fn=nn.Softsign), "no known Lipschitz constant.*Tanh"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(ours, observation_space, action_space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ours(observation_space, action_space, lambda _: 1e-3, **kwargs)


def test_observations_need_not_be_flat_and_actions_may_be_multidiscrete():
    space = spaces.Box(-1, 1, (2, 3), np.float32)
    policy = LipschitzCategoricalPolicy(space, spaces.MultiDiscrete([2, 3]), lambda _: 1e-3, lipschitz=0.001)
    assert policy.predict(space.sample())[0].shape == (2,)
    assert bound(policy) <= 0.001 * (1 + 1e-5)
    assert action_network(policy).nvec == (2, 3)


def test_what_is_certified_straight_after_training_is_the_policy_that_plays():
    """learn() ends with train(): the weights are then within a percent of the bound, and no certificate may say so."""
    model = PPO(LipschitzGaussianPolicy, "InvertedPendulum-v5", seed=0, policy_kwargs=dict(lipschitz=0.05), **SMALL)
    model.learn(512)
    model.policy.state_dict()  # exact
    model.policy.set_training_mode(True)
    model.policy.action_net.weight.data.mul_(1.005 * 0.05 / bound(model.policy))
    before = {key: value.clone() for key, value in nn.Module.state_dict(model.policy).items()}
    assert model.policy.training and bound(model.policy) > 0.05 * (1 + 1e-5)
    radius = certify(model.policy, np.zeros((1, 4), np.float32), eps=1.0, norm="l2", method="spectral").radius
    assert 0.05 * (1 - 1e-4) <= radius.max() <= 0.05 * (1 + 1e-4)  # one output: the product itself
    assert all(th.equal(value, before[key]) for key, value in nn.Module.state_dict(model.policy).items())


@pytest.mark.parametrize("policy", ["MlpPolicy", LipschitzGaussianPolicy])
def test_loading_other_weights_into_a_live_policy_brings_their_masks(policy):
    model = PPO(policy, "Pendulum-v1", seed=0, **SMALL)
    dense = copy.deepcopy(model.get_parameters())
    model.learn(128, callback=PruningCallback(0.5, schedule="one_shot", start=0.0))
    model.set_parameters(dense)
    model.learn(64)
    assert sparsity(model)["actor"] == 0.0
    prune_policy(model, 0.25)
    assert sparsity(model)["actor"] == 0.25


def test_a_plain_deepcopy_of_a_pruned_policy_is_armed_again_by_the_callback():
    model = PPO("MlpPolicy", "Pendulum-v1", seed=0, **SMALL)
    prune_policy(model, 0.5)
    clone = copy.deepcopy(model.policy)
    assert clone._weight_masks is None
    other = PPO("MlpPolicy", "Pendulum-v1", seed=0, **SMALL)
    other.policy = clone
    other.learn(128, callback=PruningCallback(0.5, schedule="one_shot", start=0.0))
    assert sparsity(other)["actor"] == 0.5


def test_an_optimiser_put_in_the_place_of_the_first_is_watched_too():
    model = PPO(LipschitzGaussianPolicy, "Pendulum-v1", seed=0, policy_kwargs=dict(lipschitz=0.5), **SMALL)
    prune_policy(model, 0.5)
    model.policy.optimizer = th.optim.SGD(model.policy.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    spy = Spy()
    model.learning_rate, model.lr_schedule = 0.1, lambda _: 0.1
    model.learn(256, callback=spy)
    assert max(spy.after_steps) <= 0.5 * (1 + 1e-2) and sparsity(model)["actor"] == 0.5
