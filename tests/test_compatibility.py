"""
What works with what: every cell of ``docs/compatibility.md`` is tried here.

``python tests/test_compatibility.py`` writes the page anew from what happened.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_prune_robust import PruningCallback, certify, certify_return, sparsity
from sb3_prune_robust.attacks import PAAD, SARL, Budget, RobustSarsa, Snooping, make_attack
from sb3_prune_robust.cli import main
from sb3_prune_robust.evaluation import rollout
from sb3_prune_robust.pruning import prune_policy

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
BUFFER = {"buffer_size": 200, "learning_starts": 10, "batch_size": 16}
ROLLOUT = {"n_steps": 16, "batch_size": 16}
OURS = "sb3_prune_robust.policies.Lipschitz"


class Sights(gym.Env[Any, int]):
    """Images, a vector, or both."""

    action_space = spaces.Discrete(2)

    def __init__(self, keys: str) -> None:
        parts: dict[str, spaces.Space[Any]] = {
            "image": spaces.Box(0, 255, (1, 36, 36), np.uint8),
            "vector": spaces.Box(-1.0, 1.0, (3,), np.float32),
        }
        self.observation_space = spaces.Dict(parts) if keys == "both" else parts[keys]
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), float(action), False, self.steps >= 8, {}


def images() -> gym.Env[Any, Any]:
    return Sights("image")


def images_and_vectors() -> gym.Env[Any, Any]:
    return Sights("both")


def registered(name: str) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: gym.make(name, max_episode_steps=40)


class Masked(gym.Wrapper[Any, Any, Any, Any]):
    """All choices are allowed."""

    def action_masks(self) -> Any:
        return np.ones(2, bool)


def masked() -> gym.Env[Any, Any]:
    return Masked(CARTPOLE())


PENDULUM, CARTPOLE = registered("Pendulum-v1"), registered("CartPole-v1")
# algorithm, policy, environment, the algorithm's settings, the policy's
VICTIMS: dict[str, tuple[Any, str, Any, dict[str, Any], dict[str, Any]]] = {
    "PPO, MlpPolicy": (PPO, "MlpPolicy", PENDULUM, ROLLOUT, {}),
    "PPO, LipschitzGaussianPolicy": (PPO, f"{OURS}GaussianPolicy", PENDULUM, ROLLOUT, {}),
    "PPO, MlpPolicy with gSDE": (PPO, "MlpPolicy", PENDULUM, {**ROLLOUT, "use_sde": True}, {}),
    "PPO, CnnPolicy": (PPO, "CnnPolicy", images, ROLLOUT, {}),
    "PPO, MultiInputPolicy": (PPO, "MultiInputPolicy", images_and_vectors, ROLLOUT, {}),
    "A2C, MlpPolicy": (A2C, "MlpPolicy", CARTPOLE, {}, {}),
    "A2C, LipschitzCategoricalPolicy": (A2C, f"{OURS}CategoricalPolicy", CARTPOLE, {}, {}),
    "TRPO, MlpPolicy": (TRPO, "MlpPolicy", CARTPOLE, ROLLOUT, {}),
    "MaskablePPO, MlpPolicy": (MaskablePPO, "MlpPolicy", masked, ROLLOUT, {}),
    "MaskablePPO, LipschitzMaskableCategoricalPolicy": (
        MaskablePPO,
        f"{OURS}MaskableCategoricalPolicy",
        masked,
        ROLLOUT,
        {},
    ),
    "RecurrentPPO, MlpLstmPolicy": (RecurrentPPO, "MlpLstmPolicy", CARTPOLE, ROLLOUT, {"lstm_hidden_size": 8}),
    "SAC, MlpPolicy": (SAC, "MlpPolicy", PENDULUM, BUFFER, {}),
    "SAC, LipschitzSACPolicy": (SAC, f"{OURS}SACPolicy", PENDULUM, BUFFER, {}),
    "TD3, MlpPolicy": (TD3, "MlpPolicy", PENDULUM, BUFFER, {}),
    "TD3, LipschitzTD3Policy": (TD3, f"{OURS}TD3Policy", PENDULUM, BUFFER, {}),
    "DDPG, MlpPolicy": (DDPG, "MlpPolicy", PENDULUM, BUFFER, {}),
    "DDPG, LipschitzTD3Policy": (DDPG, f"{OURS}TD3Policy", PENDULUM, BUFFER, {}),
    "TQC, MlpPolicy": (TQC, "MlpPolicy", PENDULUM, BUFFER, {}),
    "CrossQ, MlpPolicy": (CrossQ, "MlpPolicy", PENDULUM, BUFFER, {}),
    "DQN, MlpPolicy": (DQN, "MlpPolicy", CARTPOLE, BUFFER, {}),
    "DQN, LipschitzDQNPolicy": (DQN, f"{OURS}DQNPolicy", CARTPOLE, BUFFER, {}),
    "DQN, CnnPolicy": (DQN, "CnnPolicy", images, BUFFER, {}),
    "QRDQN, MlpPolicy": (QRDQN, "MlpPolicy", CARTPOLE, BUFFER, {}),
    "ARS, MlpPolicy": (ARS, "MlpPolicy", PENDULUM, {"n_delta": 2, "n_top": 1}, {}),
}
VICTIM_ENVS = list(dict.fromkeys(one[2] for one in VICTIMS.values()))
SMALL = {"algorithm_kwargs": {"n_steps": 32, "batch_size": 64, "n_epochs": 1}}


class Victim:
    """A model of one row, trained a little, with environments to play."""

    def __init__(self, name: str) -> None:
        self.algorithm, policy, self.env, self.settings, kwargs = VICTIMS[name]
        module, _, of_policy = policy.rpartition(".")
        self.policy = getattr(__import__(module, fromlist=[of_policy]), of_policy) if module else policy
        small = {} if "CnnPolicy" in policy else {"net_arch": [12, 12]}
        self.kwargs = {**kwargs, **small}
        self.model = self.make()
        self.model.learn(24 if self.algorithm is not ARS else 60)
        with th.no_grad():
            for parameter in self.model.policy.parameters():
                if parameter.ndim >= 2 and not parameter.any():  # ARS begins with zeros
                    parameter.normal_(generator=th.Generator().manual_seed(0))
        self.model.policy.set_training_mode(False)

    def make(self) -> Any:
        return self.algorithm(
            self.policy, self.envs(1), policy_kwargs=dict(self.kwargs), seed=0, device="cpu", **self.settings
        )

    def envs(self, n: int = 2) -> Any:
        return DummyVecEnv([self.env] * n)

    @property
    def eps(self) -> Any:
        space = self.model.observation_space
        return {"vector": 0.2} if isinstance(space, spaces.Dict) else 2.0 if len(space.shape) == 3 else 0.2


def prune_while_learning(victim: Victim) -> None:
    model = victim.make()
    model.learn(64, callback=PruningCallback(0.5, start=0.2, end=0.6))
    assert sparsity(model)["actor"] == pytest.approx(0.5, abs=0.01)


def prune_afterwards(victim: Victim) -> None:
    model = victim.make()
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_(generator=th.Generator().manual_seed(0))
    prune_policy(model, 0.5)
    assert sparsity(model)["actor"] == pytest.approx(0.5, abs=0.01)


def attacked_by(name: str) -> Callable[[Victim], None]:
    def run(victim: Victim) -> None:
        attack = make_attack(name, victim.eps, seed=0, deterministic=True)
        assert rollout(victim.model, victim.envs(), 2, attack=attack, deterministic=True).perturbed > 0.5

    return run


def fitted(kind: Any, **settings: Any) -> Callable[[Victim], None]:
    def run(victim: Victim) -> None:
        attack = kind(victim.eps, seed=0, deterministic=True, **settings)
        attack.fit(victim.model, victim.envs(4), Budget(steps=400))
        assert rollout(victim.model, victim.envs(), 2, attack=attack, deterministic=True).perturbed > 0.5

    return run


def certified(victim: Victim) -> None:
    observations = victim.envs().reset()
    certificate = certify(victim.model, observations, eps=victim.eps)
    assert (certificate.radius > 0).any() and np.isfinite(certificate.radius).all()


def certified_return(victim: Victim) -> None:
    result = certify_return(victim.model, victim.envs(), eps=0.001, n_episodes=6, n_calibration=2, clip_rewards=(-20, 2))
    assert np.isfinite(result.lower)


def audited(victim: Victim) -> None:
    with tempfile.TemporaryDirectory() as folder:
        victim.model.save(f"{folder}/model.zip")
        eps = 0.2 if isinstance(victim.eps, dict) else victim.eps
        env = f"Compatible-{VICTIM_ENVS.index(victim.env)}-v0"
        if env not in gym.registry:
            gym.register(env, victim.env)
        arguments = [f"{folder}/model.zip", "--env", env, "--eps", str(eps), "--episodes", "2", "--sparsities", "0.5"]
        code = main(["audit", *arguments, "--attacks", "random,mad", "--gamma", "0.9", "--out", f"{folder}/report"])
        assert not code


COLUMNS: dict[str, Callable[[Victim], None]] = {
    "PruningCallback": prune_while_learning,
    "prune_policy": prune_afterwards,
    "random": attacked_by("random"),
    "FGSM, PGD, MAD": attacked_by("mad"),
    "critic": attacked_by("critic"),
    "Robust Sarsa": fitted(RobustSarsa, grid=[(0.1, 0.3)], rounds=1, ratios=[0.0], transitions=200, updates=10),
    "snooping": fitted(Snooping),
    "SA-RL": fitted(SARL, **SMALL),
    "PA-AD": fitted(PAAD, **SMALL),
    "certify": certified,
    "certify_return": certified_return,
}
COLUMNS["audit"] = audited
HEADER = """# What works with what

Each cell was tried on a small model of its row, by `tests/test_compatibility.py`, which also holds this page
(`python tests/test_compatibility.py` writes it anew). Learned attacks (Robust Sarsa, snooping, SA-RL, PA-AD) were fitted with
a budget of a few hundred steps: that they run is what is tried here, not how strong they are. `PruningCallback` is training
with it, 64 steps; `certify` and `certify_return` are the certificates of [method.md](method.md); `audit` is the command.

For policies without noise (TD3, DDPG, DQN, QRDQN, ARS) and for the mode of SAC, TQC and CrossQ, `certify` bounds how far the
action itself can move, or tells at which states the choice provably cannot change. RecurrentPPO's memory is kept by `rollout`,
`worst_case` and `audit`, which is where it was attacked; the LSTM's own weights are pruned when they are named (`layers=`).
"""


@contextmanager
def quiet() -> Iterator[None]:
    """The command line says its errors on stderr and returns 2: here they are raised."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        except AssertionError:
            error = said.getvalue().strip().splitlines()
            if error and ": error: " in error[-1]:
                raise ValueError(error[-1].split(": error: ")[1].replace(" (--help explains)", "")) from None
            raise


def tried(name: str) -> dict[str, str]:
    """By column ``"yes"``, or the error's own words."""
    victim, found = Victim(name), {}
    for column, run in COLUMNS.items():
        try:
            with quiet():
                run(victim)
            found[column] = "yes"
        except (ValueError, TypeError) as error:
            words = re.sub(r"/\S+/model.zip", "model.zip", " ".join(str(error).split()))
            found[column] = words.replace("|", "/").replace("<", "&lt;")
    return found


def row(name: str, found: dict[str, str], reasons: list[str]) -> str:
    cells = []
    for words in found.values():
        if words != "yes" and words not in reasons:
            reasons.append(words)
        cells.append("yes" if words == "yes" else f"no ({reasons.index(words) + 1})")
    return f"| {name} | {' | '.join(cells)} |"


def write_page() -> None:
    reasons: list[str] = []
    rows = [row(name, tried(name), reasons) for name in VICTIMS]
    lines = [f"| algorithm, policy | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|", *rows]
    notes = [f"{i}. {words}" for i, words in enumerate(reasons, start=1)]
    PAGE.write_text("\n".join([HEADER, *lines, "", "## Why not: the error's own words", "", *notes, ""]))


def page() -> tuple[dict[str, list[str]], list[str]]:
    """Cells by row, and the reasons, as the page has them."""
    lines = PAGE.read_text().splitlines()
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    reasons = [line.partition(". ")[2] for line in lines if line[:1].isdecimal()]
    return {first: rest for first, *rest in cells[1:]}, reasons


@pytest.mark.parametrize("name", list(VICTIMS))
def test_the_page_says_what_happens(name: str) -> None:
    cells, reasons = page()
    said = [cell if cell == "yes" else reasons[int(cell[4:-1]) - 1] for cell in cells[name]]
    assert dict(zip(COLUMNS, said, strict=True)) == tried(name)


def test_the_page_has_every_row() -> None:
    assert PAGE.read_text().startswith(HEADER) and list(page()[0]) == list(VICTIMS)


if __name__ == "__main__":
    th.set_num_threads(1)
    write_page()
