"""A training killed in the midst goes on from its last checkpoint with the masks it had."""

import os
import signal
import subprocess
import sys
import time
import zipfile

import gymnasium as gym
import pytest
from stable_baselines3 import PPO, SAC

from sb3_prune_robust.anatomy import anatomy
from sb3_prune_robust.pruning import PruningCallback, sparsity

# One process imports torch, its child learns with SAC and itself with PPO, for ever.
TRAINING = """
import os, sys
import torch as th
th.set_num_threads(1)
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import CheckpointCallback
from sb3_prune_robust.pruning import PruningCallback

name, algorithm, arguments = ("sac", SAC, dict(learning_starts=10, batch_size=8, buffer_size=300))
if os.fork():
    name, algorithm, arguments = ("ppo", PPO, dict(n_steps=16, batch_size=16, n_epochs=2))
model = algorithm("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(net_arch=[16, 16]), **arguments)
pruning = PruningCallback(0.9, "linear", start=0.0, end=0.002, targets=("actor", "critic"))
model.learn(1_000_000, callback=[pruning, CheckpointCallback(40, sys.argv[1], name)])
"""


def is_whole(path):
    """A half written one may end with a whole zip file, that of torch within SB3's; and it grows while it is read."""
    try:
        with zipfile.ZipFile(path) as file:
            return "data" in file.namelist()
    except zipfile.BadZipFile:
        return False


def checkpoints(folder, name):
    """From the first to the last that is whole."""
    found = sorted(folder.glob(f"{name}_*.zip"), key=lambda path: int(path.stem.split("_")[1]))
    return [path for path in found if is_whole(path)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    process = subprocess.Popen([sys.executable, "-c", TRAINING, str(folder)], start_new_session=True, env=environment)
    try:
        deadline = time.monotonic() + 60
        while min(len(checkpoints(folder, name)) for name in ("ppo", "sac")) < 3:
            assert time.monotonic() < deadline and process.poll() is None, "no three checkpoints"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    return folder


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_masks_are_as_they_were(algorithm, killed):
    model = algorithm.load(checkpoints(killed, algorithm.__name__.lower())[-1], env=gym.make("Pendulum-v1"))
    parts, before = anatomy(model.policy), sparsity(model)
    zeros = {name: weight == 0 for name, weight in parts.weights.items()}
    assert 0.0 < before["actor"] < 0.91 and model.num_timesteps > 0
    for final in (before["actor"], 0.95):
        pruning = PruningCallback(final, "one_shot", start=0.0, targets=("actor", "critic"))
        model.learn(40, callback=pruning, reset_num_timesteps=False)
        assert sparsity(model)["actor"] == pytest.approx(final, abs=1e-3)
        for name, weight in parts.weights.items():
            assert all(bool((one[zeros[name]] == 0).all()) for one in (weight, *parts.followers.get(name, ())))
    assert bool(parts.followers) == (algorithm is SAC)
