"""``shrink``: which units go, same outputs, plain SB3 models that save, load and train on."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_prune_robust import LipschitzCategoricalPolicy, LipschitzGaussianPolicy
from sb3_prune_robust.defences import ATLAPPO, SAPPO, WocaRPPO
from sb3_prune_robust.deployment import shrink
from sb3_prune_robust.deployment.shrink import remove_dead
from sb3_prune_robust.network import RELU, TANH, Network, UnsupportedNetworkError

BOX = spaces.Box(-1.0, 1.0, (4,), dtype=np.float32)
TORQUES = spaces.Box(-2.0, 2.0, (2,), dtype=np.float32)
BUTTONS = spaces.Discrete(3)
IMAGES = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
OFF_POLICY: dict[str, Any] = dict(buffer_size=500, learning_starts=20, batch_size=16)
SHORT: dict[str, Any] = dict(n_steps=64)


class Spaces(gym.Env[Any, Any]):
    """Any spaces, random observations, no reward."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space, self.steps = observations, actions, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), False, self.steps == 10, {}

    def action_masks(self) -> np.ndarray[Any, Any]:
        return np.ones(3, dtype=bool)


def build(
    algorithm: Any, policy: Any, actions: spaces.Space[Any], observations: spaces.Space[Any] = BOX, **kwargs: Any
) -> Any:
    model = algorithm(
        policy, Spaces(observations, actions), seed=0, device="cpu", **copy.deepcopy(kwargs)
    )  # SB3 writes in them
    with th.no_grad():
        for name, module in model.policy.named_modules():
            if isinstance(module, nn.Linear) and "_target" not in name:
                nn.init.normal_(module.weight, std=2.0 / module.in_features**0.5)
                nn.init.normal_(module.bias, std=0.3)
    return model


def kill(policy: Any, layers: list[str], constant: int = 7, unread: int = 5) -> None:
    """In each hidden layer, make units 0 to ``constant`` constant, and let nothing read the last ``unread``."""
    named = dict(policy.named_modules())
    with th.no_grad():
        for name in layers:
            named[name].weight[:constant] = 0.0
            chain, _, place = name.rpartition(".")
            readers = [f"{chain}.{int(place) + 2}"]
            if readers[0] not in named:
                readers = {"latent_pi": ["actor.mu", "actor.log_std"], "policy_net": ["action_net"]}.get(
                    chain.split(".")[-1], ["value_net"]
                )
            for reader in readers:
                named[reader].weight[:, -unread:] = 0.0


ON_POLICY = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "mlp_extractor.value_net.0"]
# algorithm, policy, actions, keyword arguments, layers to kill units in, net_arch afterwards; each layer loses 7 + 5 units
SMALL = {"policy_kwargs": dict(net_arch=[32, 24])}
ON = dict(pi=[20, 12], vf=[20, 24])
OFF = dict(pi=[20, 12], qf=[32, 24])
CASES: list[tuple[Any, Any, Any, dict[str, Any], list[str], Any]] = [
    (PPO, "MlpPolicy", TORQUES, SHORT | SMALL, ON_POLICY, ON),
    (PPO, "MlpPolicy", spaces.MultiDiscrete([2, 3]), SHORT | SMALL, ON_POLICY, ON),
    (PPO, LipschitzGaussianPolicy, TORQUES, SHORT | {"policy_kwargs": dict(net_arch=[32, 24], lipschitz=3.0)}, ON_POLICY, ON),
    (PPO, LipschitzCategoricalPolicy, BUTTONS, SHORT | SMALL, ON_POLICY, ON),
    (A2C, "MlpPolicy", BUTTONS, SMALL, ON_POLICY, ON),
    (TRPO, "MlpPolicy", TORQUES, SHORT | SMALL, ON_POLICY, ON),
    (MaskablePPO, "MlpPolicy", BUTTONS, SHORT | SMALL, ON_POLICY, ON),
    (SAC, "MlpPolicy", TORQUES, OFF_POLICY | SMALL, ["actor.latent_pi.0", "actor.latent_pi.2"], OFF),
    (TQC, "MlpPolicy", TORQUES, OFF_POLICY | SMALL, ["actor.latent_pi.0", "actor.latent_pi.2"], OFF),
    (TD3, "MlpPolicy", TORQUES, OFF_POLICY | SMALL, ["actor.mu.0", "actor.mu.2"], OFF),
    (DDPG, "MlpPolicy", TORQUES, OFF_POLICY | SMALL, ["actor.mu.0", "actor.mu.2"], OFF),
    (DQN, "MlpPolicy", BUTTONS, OFF_POLICY | SMALL, ["q_net.q_net.0", "q_net.q_net.2"], [20, 12]),
    (
        QRDQN,
        "MlpPolicy",
        BUTTONS,
        OFF_POLICY | SMALL,
        ["quantile_net.quantile_net.0", "quantile_net.quantile_net.2"],
        [20, 12],
    ),
]
NAMES = [f"{c[0].__name__}-{getattr(c[1], '__name__', c[1])}-{type(c[2]).__name__}" for c in CASES]


def outputs(policy: Any, observations: Any) -> list[np.ndarray[Any, Any]]:
    """All that the policy computes from an observation: means and spreads, logits, values, Q values, critics' values."""
    policy.set_training_mode(False)
    found: list[Any] = []
    with th.no_grad():
        obs, _ = policy.obs_to_tensor(observations)
        if hasattr(policy, "mlp_extractor"):
            distribution = policy.get_distribution(obs).distribution
            parts = distribution if isinstance(distribution, list) else [distribution]
            found = [p for d in parts for p in ((d.mean, d.stddev) if hasattr(d, "loc") else (d.logits,))]
            found.append(policy.predict_values(obs))
        elif hasattr(policy, "critic"):
            actor = policy.actor
            found = list(actor.get_action_dist_params(obs)[:2]) if hasattr(actor, "latent_pi") else [actor(obs)]
            values = policy.critic(obs, th.zeros(len(observations), 2))
            found += list(values)
        else:
            found = [getattr(policy, "q_net", None) or policy.quantile_net]
            found = [found[0](obs)]
    return [tensor.numpy() for tensor in found]


def observe(n: int = 200) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).uniform(-1, 1, size=(n, 4)).astype(np.float32)


def assert_same(first: Any, second: Any, tolerance: float = 1e-6) -> None:
    pairs = list(zip(outputs(first, observe()), outputs(second, observe()), strict=True))
    assert pairs and all(np.abs(a - b).max() <= tolerance * max(1.0, np.abs(a).max()) for a, b in pairs)
    mine, theirs = (policy.predict(observe(), deterministic=True)[0] for policy in (first, second))
    assert np.abs(mine - theirs).max() <= tolerance * 10 and len(np.unique(mine, axis=0)) > 1  # reacts to what it sees


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_smaller_plain_model_with_the_same_outputs(case: Any, tmp_path: Path) -> None:
    algorithm, policy, actions, kwargs, layers, net_arch = case
    model = build(algorithm, policy, actions, **kwargs)
    kill(model.policy, layers)
    model.policy.set_training_mode(False)  # our policies project here; after this the weights are what is played
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    np.random.seed(5)  # noqa: NPY002 (the global generator, which loading a model with a seed would set)
    numbers = th.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    small = shrink(model)
    assert th.equal(th.get_rng_state(), numbers[0]) and (np.random.get_state()[1] == numbers[1]).all()  # noqa: NPY002
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert type(small) is algorithm and type(small.policy).__module__.startswith(("stable_baselines3.", "sb3_contrib."))
    assert small.policy.net_arch == net_arch and small.policy_kwargs["net_arch"] == net_arch
    assert small.seed == model.seed == 0 and small.learning_rate == model.learning_rate
    assert_same(model.policy, small.policy)
    small.save(tmp_path / "small")
    loaded = algorithm.load(tmp_path / "small", env=Spaces(BOX, actions), device="cpu")
    assert type(loaded.policy) is type(small.policy)
    assert_same(small.policy, loaded.policy, tolerance=0.0)
    loaded.learn(64)  # trains on, optimisers and all
    assert all(bool(th.isfinite(p).all()) for p in loaded.policy.parameters())


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[7], CASES[9], CASES[11]], ids=lambda c: c[0].__name__)
def test_policy_alone(case: Any) -> None:
    algorithm, policy, actions, kwargs, layers, net_arch = case
    model = build(algorithm, policy, actions, **kwargs)
    kill(model.policy, layers)
    small = shrink(model.policy)
    assert small.net_arch == net_arch and not hasattr(small, "lipschitz") and not small.training
    assert_same(model.policy, small)


@pytest.mark.parametrize("algorithm", [PPO, SAPPO, WocaRPPO, ATLAPPO])
def test_loads_where_this_package_is_not_installed(algorithm: Any, tmp_path: Path) -> None:
    kwargs = dict(net_arch=[32, 24], lipschitz=3.0)
    model = algorithm(LipschitzGaussianPolicy, "Pendulum-v1", n_steps=64, device="cpu", policy_kwargs=kwargs)
    kill(model.policy, ON_POLICY)
    small = shrink(model)
    assert type(small) is PPO
    small.save(tmp_path / "small")
    seen = [0.5, -0.5, 1.0]
    code = f"""
import sys, numpy, stable_baselines3
sys.modules["sb3_prune_robust"] = None
model = stable_baselines3.PPO.load({str(tmp_path / "small")!r}, device="cpu")
print(type(model.policy).__module__, model.predict(numpy.float32({seen}), deterministic=True)[0][0])"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    module, action = run.stdout.split()
    assert module == "stable_baselines3.common.policies"
    assert float(action) == pytest.approx(model.predict(np.float32(seen), deterministic=True)[0][0], abs=1e-6)


def test_optimiser_starts_afresh_and_the_critic_keeps_its_own() -> None:
    model = build(SAC, "MlpPolicy", TORQUES, **OFF_POLICY, **SMALL)
    model.learn(60)
    kill(model.policy, ["actor.latent_pi.0"])
    small = shrink(model)
    assert model.actor.optimizer.state and not small.actor.optimizer.state
    assert len(small.critic.optimizer.state) == len(model.critic.optimizer.state) > 0
    assert small.actor.optimizer.param_groups[0]["lr"] == 3e-4 and small.num_timesteps == model.num_timesteps == 60


@pytest.mark.parametrize("case", [CASES[9], CASES[11], CASES[12]], ids=lambda c: c[0].__name__)
def test_target_network_starts_as_a_copy(case: Any) -> None:
    """The target's own weights lag behind: its units need not be dead where the network's are."""
    algorithm, policy, actions, kwargs, layers, _ = case
    model = build(algorithm, policy, actions, **kwargs)
    kill(model.policy, layers)
    state = shrink(model).policy.state_dict()
    followers = [name for name in state if name.split(".")[0] in ("actor_target", "q_net_target", "quantile_net_target")]
    assert len(followers) == 6 and all(th.equal(state[name], state[name.replace("_target", "")]) for name in followers)


def test_dict_of_vectors_is_covered() -> None:
    observations = spaces.Dict(position=BOX, speed=spaces.Box(-1.0, 1.0, (2,), dtype=np.float32))
    model = build(PPO, "MultiInputPolicy", TORQUES, observations, **SHORT, **SMALL)
    kill(model.policy, ON_POLICY)
    small, rng = shrink(model), np.random.default_rng(1)
    seen = {"position": observe(), "speed": rng.uniform(-1, 1, size=(200, 2)).astype(np.float32)}
    assert small.policy.net_arch == ON
    difference = model.predict(seen, deterministic=True)[0] - small.predict(seen, deterministic=True)[0]
    assert np.abs(difference).max() <= 1e-6


# Removing units ---------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    """Unit 0 is constant at tanh(1), unit 1 is read by nothing, unit 2 lives."""
    weights = [np.array([[0.0], [3.0], [2.0]]), np.array([[5.0, 0.0, 7.0]])]
    biases = [np.array([1.0, 1.0, 0.5]), np.array([0.25])]
    (first, second), (shift, out) = remove_dead(weights, biases, [TANH])
    assert first.tolist() == [[2.0]] and second.tolist() == [[7.0]] and shift.tolist() == [0.5]
    assert out == pytest.approx([0.25 + 5.0 * np.tanh(1.0)], abs=1e-12)


def test_death_spreads_forward_and_backward() -> None:
    """Layer 1's unit 0 is constant and all that layer 2's unit 0 reads; layer 2's unit 2 is read by nothing and all that reads
    layer 1's unit 2."""
    weights = [
        np.array([[0.0], [1.0], [2.0]]),
        np.array([[4.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]),
        np.array([[2.0, 3.0, 0.0]]),
    ]
    biases = [np.array([0.5, 0.0, 0.0]), np.array([-1.0, 0.0, 0.0]), np.array([0.0])]
    new, shifts = remove_dead(weights, biases, [RELU, RELU])
    assert [w.tolist() for w in new] == [[[1.0]], [[1.0]], [[3.0]]]
    assert [b.tolist() for b in shifts] == [[0.0], [0.0], [2.0 * (4.0 * 0.5 - 1.0)]]


def test_a_layer_keeps_a_unit_and_its_constant_output() -> None:
    weights = [np.zeros((3, 2)), np.ones((3, 3)), np.ones((1, 3))]
    biases = [np.full(3, 0.1), np.zeros(3), np.zeros(1)]
    new, shifts = remove_dead(weights, biases, [TANH, TANH])
    assert [w.shape for w in new] == [(1, 2), (1, 1), (1, 1)] and not any(w.any() for w in new)
    assert shifts[-1] == pytest.approx([3 * np.tanh(3 * np.tanh(0.1))], abs=1e-12)


def test_what_only_an_unread_layer_reads_goes_too() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(3, 2)), rng.normal(size=(3, 3)), np.zeros((1, 3))]
    new, shifts = remove_dead(weights, [np.ones(3), np.ones(3), np.ones(1)], [TANH, TANH])
    assert [w.shape for w in new] == [(1, 2), (1, 1), (1, 1)] and shifts[-1].tolist() == [1.0]


@st.composite
def sparse_networks(draw: st.DrawFn) -> Network:
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    keep = draw(st.floats(0.0, 1.0))
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    weights = tuple(rng.normal(size=shape) * (rng.uniform(size=shape) < keep) for shape in shapes)
    biases = tuple(rng.normal(size=shape[0]) for shape in shapes)
    activations = tuple(RELU if draw(st.booleans()) else TANH for _ in shapes[1:])
    return Network(weights, biases, activations)


@given(network=sparse_networks())
@settings(max_examples=200, deadline=None)
def test_same_function_and_nothing_left_to_remove(network: Network) -> None:
    weights, biases = remove_dead(network.weights, network.biases, network.activations)
    small = Network(tuple(weights), tuple(biases), network.activations)
    inputs = np.random.default_rng(0).normal(size=(20, network.n_inputs))
    assert np.allclose(network(inputs), small(inputs), atol=1e-9)
    for layer in range(len(weights) - 1):
        if len(biases[layer]) > 1:
            assert weights[layer].any(axis=1).all() and weights[layer + 1].any(axis=0).all()


def test_a_dense_network_stays_as_it_is() -> None:
    model = build(PPO, "MlpPolicy", TORQUES, **SHORT, **SMALL)
    small = shrink(model)
    assert small.policy.net_arch == dict(pi=[32, 24], vf=[32, 24])
    state = small.policy.state_dict()
    assert all(th.equal(value, state[name]) for name, value in model.policy.state_dict().items())


def test_no_hidden_layers() -> None:
    model = build(PPO, "MlpPolicy", TORQUES, **SHORT, policy_kwargs=dict(net_arch=[]))
    small = shrink(model)
    assert small.policy.net_arch == dict(pi=[], vf=[])
    assert_same(model.policy, small.policy, tolerance=0.0)


# What is not covered ----------------------------------------------------------------------------------------------------


class Doubled(ActorCriticPolicy):
    """A user's own policy."""


REFUSED: list[tuple[str, Any, Any, Any, Any, dict[str, Any]]] = [
    (r"MlpLstmPolicy|RecurrentActorCriticPolicy .*LSTM feed back", RecurrentPPO, "MlpLstmPolicy", BOX, BUTTONS, SHORT),
    (r"ActorCriticPolicy cannot be shrunk: gSDE", PPO, "MlpPolicy", BOX, TORQUES, SHORT | dict(use_sde=True)),
    (r"SACPolicy cannot be shrunk: gSDE", SAC, "MlpPolicy", BOX, TORQUES, OFF_POLICY | dict(use_sde=True)),
    (r"CrossQPolicy cannot be shrunk: batch renorm", CrossQ, "MlpPolicy", BOX, TORQUES, OFF_POLICY),
    (r"ActorCriticCnnPolicy cannot be shrunk: its features extractor", PPO, "CnnPolicy", IMAGES, BUTTONS, SHORT),
    (r"CnnPolicy cannot be shrunk: its features extractor", DQN, "CnnPolicy", IMAGES, BUTTONS, OFF_POLICY),
    (r"ARSPolicy cannot be shrunk: ARS", ARS, "MlpPolicy", BOX, TORQUES, {}),
    (r"Doubled cannot be shrunk: it is neither SB3's nor ours", PPO, Doubled, BOX, TORQUES, SHORT),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c[1].__name__)
def test_what_is_not_covered_says_why(case: Any) -> None:
    message, algorithm, policy, observations, actions, kwargs = case
    model = algorithm(policy, Spaces(observations, actions), device="cpu", **kwargs)
    with pytest.raises(UnsupportedNetworkError, match=message):
        shrink(model)


def test_not_a_model() -> None:
    with pytest.raises(TypeError, match=r"model must be an SB3 model or policy, got Linear"):
        shrink(nn.Linear(2, 2))
