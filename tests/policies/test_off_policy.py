"""The Lipschitz policies inside SAC, TD3, DDPG and DQN."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from sb3_prune_robust.policies import DEFAULT_ACTOR_LIPSCHITZ, LipschitzDQNPolicy, LipschitzSACPolicy, LipschitzTD3Policy
from sb3_prune_robust.pruning import PruningCallback, prune_policy, sparsity

OURS = {SAC: LipschitzSACPolicy, TD3: LipschitzTD3Policy, DDPG: LipschitzTD3Policy, DQN: LipschitzDQNPolicy}
ALGORITHMS = list(OURS)
WIDE = [80, 72]  # wide enough for norms that are estimated and proven; the other nets' are measured


def new(algo, policy=None, *, net_arch=(16, 16), seed=0, **policy_kwargs):
    env = "CartPole-v1" if algo is DQN else "Pendulum-v1"
    kwargs = dict(target_update_interval=50, train_freq=1) if algo is DQN else {}
    policy_kwargs |= dict(net_arch=list(net_arch))
    kwargs |= dict(seed=seed, learning_starts=20, batch_size=16, buffer_size=1000, learning_rate=3e-3, device="cpu")
    return algo(policy or OURS[algo], env, policy_kwargs=policy_kwargs, **kwargs)


def product(modules):
    """The exact product of norms, computed apart from the package."""
    weights = [m.weight for m in modules if isinstance(m, nn.Linear)]
    return math.prod(np.linalg.svd(w.detach().numpy().astype(np.float64), compute_uv=False)[0] for w in weights)


def bound(policy):
    """Of the network that acts."""
    if isinstance(policy, LipschitzDQNPolicy):
        return product(policy.q_net.q_net)
    actor = policy.actor
    return product([*actor.latent_pi, actor.mu] if hasattr(actor, "latent_pi") else actor.mu)


def actor_optimizer(policy):
    return policy.optimizer if isinstance(policy, LipschitzDQNPolicy) else policy.actor.optimizer


class Spy(BaseCallback):
    """Records what a function finds after every step of an optimiser."""

    def __init__(self, find, optimizer):
        super().__init__()
        self.find, self.optimizer, self.found = find, optimizer, []

    def _on_training_start(self):
        self.optimizer.register_step_post_hook(lambda *_: self.found.append(self.find()))

    def _on_step(self):
        return True


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_without_a_bound_training_is_bit_identical_to_mlp_policy(algo):
    plain = new(algo, "MlpPolicy", seed=3)
    before = {key: value.clone() for key, value in plain.policy.state_dict().items()}
    plain.learn(100)
    model = new(algo, seed=3, lipschitz=None).learn(100)
    theirs, mine = plain.policy.state_dict(), model.policy.state_dict()
    assert list(theirs) == list(mine)
    assert all(th.equal(theirs[key], mine[key]) for key in theirs)
    assert not any(th.equal(theirs[key], before[key]) for key in theirs if key.endswith("weight"))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_initialisation_and_parameter_order_equal_sb3s(algo):
    plain, model = new(algo, "MlpPolicy", seed=1), new(algo, seed=1, lipschitz=1e3)
    for (name, theirs), (our_name, mine) in zip(plain.policy.named_parameters(), model.policy.named_parameters(), strict=True):
        assert name == our_name and th.equal(theirs, mine)
    theirs, mine = plain.get_parameters(), model.get_parameters()
    assert list(theirs) == list(mine)


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize(("net_arch", "activation"), [((16, 16), nn.Tanh), ((16, 16), nn.SELU), (WIDE, nn.ReLU)])
def test_the_bound_holds_from_the_start_and_after_every_step(algo, net_arch, activation):
    model = new(algo, net_arch=net_arch, lipschitz=0.05, activation_fn=activation)
    constant = 1.7581**2 if activation is nn.SELU else 1.0
    assert bound(model.policy) * constant <= 0.05 * (1 + 1e-5)
    spy = Spy(lambda: bound(model.policy), actor_optimizer(model.policy))
    model.learn(150, callback=spy)
    found = np.array(spy.found) * constant
    assert len(found) >= 60 and found.max() <= 0.05 * (1 + 1e-2)
    assert np.sum(found > 0.05 * 0.99) >= 5  # it was at work, and none of it was wasted
    model.policy.state_dict()
    assert bound(model.policy) * constant <= 0.05 * (1 + 1e-5)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_bound_that_is_not_reached_changes_nothing(algo):
    free, bounded = new(algo, lipschitz=None).learn(100), new(algo, lipschitz=1e6).learn(100)
    theirs, mine = free.policy.state_dict(), bounded.policy.state_dict()
    assert all(th.equal(theirs[key], mine[key]) for key in theirs)


@pytest.mark.parametrize("algo", [TD3, DDPG])
@pytest.mark.parametrize("net_arch", [(16, 16), WIDE])
def test_critics_have_a_bound_if_it_is_asked_for(algo, net_arch):
    model = new(algo, net_arch=net_arch, lipschitz=None, critic_lipschitz=0.7)
    networks = model.policy.critic.q_networks
    spy = Spy(lambda: [product(network) for network in networks], model.policy.critic.optimizer)
    model.learn(100, callback=spy)
    assert len(networks) == (1 if algo is DDPG else 2)
    found = np.array(spy.found)
    assert found.max() <= 0.7 * (1 + 1e-2) and found[-1].min() >= 0.7 * 0.99
    assert bound(model.policy) > 0.7  # the actor has none
    assert new(TD3, lipschitz=0.7).learn(100).policy.critic_lipschitz is None


def test_the_bound_of_sac_is_on_the_mean_before_the_tanh_and_is_attained():
    policy = new(SAC, net_arch=(), lipschitz=0.7).policy
    policy.actor.mu.weight.data = th.tensor([[3.0, 0.0, 4.0]])
    policy.state_dict()
    states = th.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])  # 5 apart, along the weight
    means = policy.actor.get_action_dist_params(states)[0].detach().flatten()
    assert float(means[1] - means[0]) == pytest.approx(5 * 0.7, rel=1e-5)


def test_predict_plays_the_weights_as_they_are_and_saving_projects_them(tmp_path):
    model = new(SAC, lipschitz=2.0)
    model.policy.actor.mu.weight.data.fill_(5.0)
    reached = bound(model.policy)
    model.predict(np.zeros(3, np.float32))
    assert bound(model.policy) == reached > 2.1 and model.policy.projected() is model.policy
    model.save(tmp_path / "model.zip")
    assert 2.0 * (1 - 1e-5) <= bound(SAC.load(tmp_path / "model.zip").policy) <= 2.0 * (1 + 1e-5)
    assert bound(model.policy) <= 2.0 * (1 + 1e-5)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_weights_of_a_plain_policy_are_projected_when_they_are_loaded(algo):
    plain, model = new(algo, "MlpPolicy").learn(100), new(algo, lipschitz=0.5)
    model.set_parameters(plain.get_parameters(), exact_match=True)
    assert 0.5 * (1 - 1e-5) <= bound(model.policy) <= 0.5 * (1 + 1e-5)
    other = new(algo, lipschitz=None)
    other.set_parameters(plain.get_parameters(), exact_match=True)
    assert all(th.equal(value, plain.policy.state_dict()[key]) for key, value in other.policy.state_dict().items())


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_target_networks_begin_as_the_projected_networks(algo):
    policy = new(algo, lipschitz=0.1).policy
    pairs = [("q_net", "q_net_target")] if algo is DQN else [("critic", "critic_target")]
    pairs += [("actor", "actor_target")] if algo in (TD3, DDPG) else []
    for name, target in pairs:
        online, followers = (getattr(policy, which).state_dict() for which in (name, target))
        assert all(th.equal(followers[key], online[key]) for key in online)


def _states(optimizer):
    return [value for state in optimizer.state_dict()["state"].values() for value in state.values()]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_save_load_continue_keeps_bound_and_zeros(algo, tmp_path):
    model = new(algo, lipschitz=0.5).learn(60)
    prune_policy(model, 0.6, targets=("actor",))
    assert bound(model.policy) <= 0.5 * (1 + 1e-2)
    model.learn(60, reset_num_timesteps=False)
    model.save(tmp_path / "model.zip")
    env = gym.make("CartPole-v1" if algo is DQN else "Pendulum-v1")
    loaded = algo.load(tmp_path / "model.zip", env=env, device="cpu")
    assert type(loaded.policy) is OURS[algo] and loaded.policy.lipschitz == 0.5
    theirs = model.policy.state_dict()
    assert all(th.equal(value, theirs[key]) for key, value in loaded.policy.state_dict().items())
    mine, old = actor_optimizer(loaded.policy), actor_optimizer(model.policy)
    assert _states(old) and all(th.equal(a, b) for a, b in zip(_states(mine), _states(old), strict=True))
    spy = Spy(lambda: bound(loaded.policy), mine)
    zeros = {name: p == 0 for name, p in loaded.policy.named_parameters() if name.endswith("weight") and bool((p == 0).any())}
    loaded.learn(60, reset_num_timesteps=False, callback=spy)
    assert max(spy.found) <= 0.5 * (1 + 1e-2)
    assert zeros and sparsity(loaded)["actor"] == pytest.approx(0.6, abs=0.01)
    parameters = dict(loaded.policy.named_parameters())
    assert all(bool((parameters[name][where] == 0).all()) for name, where in zeros.items())


@pytest.mark.parametrize(("ours", "kwargs"), [(SAC, {}), (TD3, dict(critic_lipschitz=3.0)), (DQN, {})])
def test_a_policy_alone_is_saved_with_its_bounds(ours, kwargs, tmp_path):
    policy = new(ours, lipschitz=2.0, **kwargs).policy
    policy.save(str(tmp_path / "policy.pt"))
    loaded = OURS[ours].load(str(tmp_path / "policy.pt"))
    assert loaded.lipschitz == 2.0 and getattr(loaded, "critic_lipschitz", None) == kwargs.get("critic_lipschitz")
    assert bound(loaded) == bound(policy)


def test_pruning_while_training_keeps_the_bound():
    model = new(SAC, lipschitz=0.5)
    spy = Spy(lambda: bound(model.policy), model.policy.actor.optimizer)
    callback = PruningCallback(0.6, start=0.0, end=0.9, schedule="micro")
    model.learn(200, callback=[callback, spy])
    assert max(spy.found) <= 0.5 * (1 + 1e-2) and sparsity(model)["actor"] == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("algo", [SAC, DQN])
def test_an_optimiser_put_in_the_place_of_the_first_is_watched_too(algo):
    model = new(algo, lipschitz=0.5)
    owner = model.policy if algo is DQN else model.policy.actor
    owner.optimizer = th.optim.SGD(owner.parameters(), lr=0.1, momentum=0.9)
    spy = Spy(lambda: bound(model.policy), owner.optimizer)
    model.lr_schedule = lambda _: 0.1
    model.learn(60)  # the hooks are set in the first train()
    model.learn(60, reset_num_timesteps=False, callback=spy)
    assert len(spy.found) >= 50 and max(spy.found) <= 0.5 * (1 + 1e-2)


def test_defaults():
    assert new(SAC).policy.lipschitz == new(TD3).policy.lipschitz == DEFAULT_ACTOR_LIPSCHITZ
    assert new(DQN).policy.lipschitz is None


BOX, DISCRETE, IMAGE = spaces.Box(-1, 1, (3,)), spaces.Discrete(3), spaces.Box(0, 255, (3, 36, 36), np.uint8)


@pytest.mark.parametrize(
    ("ours", "observation_space", "action_space", "kwargs", "message"),
    [
        (LipschitzSACPolicy, BOX, DISCRETE, {}, r"LipschitzSACPolicy needs a Box action.*Discrete\(3\).*LipschitzDQNPolicy"),
        (LipschitzTD3Policy, BOX, DISCRETE, {}, r"LipschitzTD3Policy needs a Box action.*LipschitzDQNPolicy"),
        (LipschitzDQNPolicy, BOX, BOX, {}, r"LipschitzDQNPolicy needs a Discrete action.*LipschitzSACPolicy"),
        (LipschitzSACPolicy, spaces.Dict(a=BOX), BOX, {}, r"Box observation space, got Dict.*FlattenObservation"),
        (LipschitzDQNPolicy, DISCRETE, DISCRETE, {}, r"Box observation space, got Discrete"),
        (LipschitzTD3Policy, IMAGE, BOX, {}, r"normalize_images=False"),
        (
            LipschitzDQNPolicy,
            IMAGE,
            DISCRETE,
            dict(features_extractor_class=NatureCNN),
            r"features extractor NatureCNN is not",
        ),
        (LipschitzSACPolicy, BOX, BOX, dict(lipschitz=-1.0), r"^lipschitz must be a positive finite number.*-1\.0"),
        (LipschitzDQNPolicy, BOX, DISCRETE, dict(lipschitz=math.inf), r"^lipschitz must be"),
        (LipschitzTD3Policy, BOX, BOX, dict(critic_lipschitz=True), r"^critic_lipschitz must be .* got True"),
        (LipschitzSACPolicy, BOX, BOX, dict(use_sde=True), r"use_sde=True given to LipschitzSACPolicy"),
        (LipschitzSACPolicy, BOX, BOX, dict(activation_fn=nn.Softsign), r"no known Lipschitz constant.*Tanh"),
        (LipschitzDQNPolicy, BOX, DISCRETE, dict(activation_fn=nn.Softsign, lipschitz=None), r"no known Lipschitz constant"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(ours, observation_space, action_space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ours(observation_space, action_space, lambda _: 1e-3, **kwargs)


def test_use_sde_of_the_algorithm_or_by_place_is_refused_too():
    with pytest.raises(ValueError, match=r"use_sde=True given to LipschitzSACPolicy"):
        SAC(LipschitzSACPolicy, "Pendulum-v1", use_sde=True)
    with pytest.raises(ValueError, match=r"use_sde=True given to LipschitzSACPolicy"):
        LipschitzSACPolicy(BOX, BOX, lambda _: 1e-3, [8], nn.ReLU, True)


def test_observations_need_not_be_flat():
    space = spaces.Box(-1, 1, (2, 3), np.float32)
    policy = LipschitzTD3Policy(space, BOX, lambda _: 1e-3, lipschitz=0.001)
    assert policy.predict(space.sample())[0].shape == (3,) and bound(policy) <= 0.001 * (1 + 1e-5)
