"""
Dict observations: a policy that sees a picture and a vector, pruned with its convolutions, attacked in one or the other.

    python examples/camera_and_state.py [timesteps]
"""

import sys

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_prune_robust import PruningCallback, sparsity
from sb3_prune_robust.attacks import MAD
from sb3_prune_robust.evaluation import rollout


class Follow(gym.Env):
    """A bright column wanders over the picture; the vector says where it was. The reward is 1 for pointing at its side."""

    observation_space = spaces.Dict(
        {"camera": spaces.Box(0, 255, (1, 36, 36), np.uint8), "state": spaces.Box(-1.0, 1.0, (2,), np.float32)}
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(36)), 0
        return self._seen(self.place), {}

    def step(self, action):
        before, self.steps = self.place, self.steps + 1
        reward = float(action == (self.place >= 18))
        self.place = int(np.clip(self.place + self.np_random.integers(-6, 7), 0, 35))
        return self._seen(before), reward, False, self.steps >= 50, {}

    def _seen(self, before):
        camera = np.full((1, 36, 36), 100, np.uint8)
        camera[:, :, self.place] = 160
        return {"camera": camera, "state": np.array([before / 18 - 1, 0], np.float32)}


def main(timesteps: int = 16_000) -> None:
    th.set_num_threads(1)
    venv = make_vec_env(Follow, n_envs=4, seed=0)
    model = PPO("MultiInputPolicy", venv, n_steps=128, batch_size=128, n_epochs=4, learning_rate=1e-3, seed=0, device="cpu")
    model.learn(timesteps, callback=PruningCallback(final_sparsity=0.8))
    convolution = sparsity(model)["layers"]["features_extractor.extractors.camera.cnn.2"]
    print(f"zeros: actor {sparsity(model)['actor']:.0%}, its second convolution {convolution:.0%}")
    print(f"clean {rollout(model, venv, 8, deterministic=True).returns.mean():.1f} of 50")
    for eps in ({"camera": 20}, {"state": 0.5}, {"camera": 20, "state": 0.5}):  # pixels are 0 to 255
        attack = MAD(eps, seed=0, deterministic=True, steps=5, restarts=2)
        print(f"attacked in {eps}: {rollout(model, venv, 8, attack=attack, deterministic=True).returns.mean():.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
