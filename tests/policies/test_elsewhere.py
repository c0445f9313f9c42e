"""Models trained with our policies on a machine where this package is not installed: SB3 alone loads them."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO, SAC, TD3

from sb3_prune_robust import PruningCallback, sparsity
from sb3_prune_robust.policies import (
    LipschitzDQNPolicy,
    LipschitzGaussianPolicy,
    LipschitzMaskableCategoricalPolicy,
    LipschitzSACPolicy,
    LipschitzTD3Policy,
)

# What Python does where the package is missing, in a process in which it is not.
ELSEWHERE = """
import json, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sb3_prune_robust":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
assert "sb3_prune_robust" not in sys.modules

import numpy as np
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy

folder, found = sys.argv[1], {}
for algo, policy_class in {
    PPO: ActorCriticPolicy, SAC: SACPolicy, TD3: TD3Policy, DQN: DQNPolicy, MaskablePPO: MaskableActorCriticPolicy
}.items():
    name, plain = algo.__name__, dict(net_arch=[16, 16])
    try:
        algo.load(f"{folder}/{name}.zip", device="cpu")
        found[name] = "loaded"
    except ModuleNotFoundError as error:
        found[name] = str(error)
    custom_objects = dict(policy_class=policy_class, policy_kwargs=plain)
    model = algo.load(f"{folder}/{name}.zip", device="cpu", custom_objects=custom_objects)
    assert type(model.policy) is policy_class
    observations = np.load(f"{folder}/{name}.npy")
    np.save(f"{folder}/{name}_actions.npy", model.predict(observations, deterministic=True)[0])
for algo in (PPO, SAC):  # pruned here, with SB3's own policy
    model = algo.load(f"{folder}/plain_{algo.__name__}.zip", device="cpu")
    np.save(f"{folder}/plain_{algo.__name__}_actions.npy", model.predict(np.load(f"{folder}/SAC.npy"), deterministic=True)[0])
default = SAC.load(f"{folder}/default.zip", device="cpu", custom_objects=dict(policy_class=SACPolicy))
assert type(default.policy) is SACPolicy
print(json.dumps(found))
"""


class Masked(gym.Wrapper):
    """CartPole with both actions valid."""

    def action_masks(self):
        return np.array([True, True])


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The models, what they do here, and what a machine without the package says of them."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def small():  # a new dict each time, as SB3 writes into policy_kwargs
        return dict(policy_kwargs=dict(net_arch=[16, 16], lipschitz=0.5), seed=0, device="cpu")

    models = {
        "PPO": PPO(LipschitzGaussianPolicy, "Pendulum-v1", n_steps=32, batch_size=16, **small()),
        "SAC": SAC(LipschitzSACPolicy, "Pendulum-v1", learning_starts=10, **small()),
        "TD3": TD3(LipschitzTD3Policy, "Pendulum-v1", learning_starts=10, **small()),
        "DQN": DQN(LipschitzDQNPolicy, "CartPole-v1", learning_starts=10, **small()),
        "MaskablePPO": MaskablePPO(
            LipschitzMaskableCategoricalPolicy, Masked(gym.make("CartPole-v1")), n_steps=32, batch_size=16, **small()
        ),
    }
    actions = {}
    SAC(LipschitzSACPolicy, "Pendulum-v1").save(folder / "default.zip")
    for name, model in models.items():
        model.learn(32).save(folder / f"{name}.zip")
        shape = (64, *model.observation_space.shape)
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(scale=20.0, size=shape).astype(np.float32))
        actions[name] = model.predict(np.load(folder / f"{name}.npy"), deterministic=True)[0]
    pruned = {}
    for algo, settings in ((PPO, dict(n_steps=32, batch_size=16)), (SAC, dict(learning_starts=10))):
        model = algo("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16, 16]), seed=0, device="cpu", **settings)
        model.learn(64, callback=PruningCallback(0.7)).save(folder / f"plain_{algo.__name__}.zip")
        actions[f"plain_{algo.__name__}"] = model.predict(np.load(folder / "SAC.npy"), deterministic=True)[0]
        pruned[algo.__name__] = sparsity(model)["actor"]
    assert min(pruned.values()) > 0.69
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    return actions, {name: np.load(folder / f"{name}_actions.npy") for name in actions}, said


@pytest.mark.parametrize("name", ["plain_PPO", "plain_SAC"])
def test_pruned_policies_of_sb3_load_as_they_are_and_play_the_same(elsewhere, name):
    here, there, _ = elsewhere
    assert len(np.unique(here[name])) > 1 and np.array_equal(here[name], there[name])


@pytest.mark.parametrize("name", ["PPO", "SAC", "TD3", "DQN", "MaskablePPO"])
def test_with_custom_objects_it_loads_and_plays_the_same(elsewhere, name):
    here, there, _ = elsewhere
    assert len(np.unique(here[name])) > 1 and np.array_equal(here[name], there[name])


@pytest.mark.parametrize("name", ["PPO", "SAC", "TD3", "DQN", "MaskablePPO"])
def test_without_them_pythons_own_message_names_the_missing_module(elsewhere, name):
    assert elsewhere[2][name] == "No module named 'sb3_prune_robust'"
