"""How an adversary learns: an SB3 algorithm on the adversary's environment, within a budget, saved as it goes."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from sb3_contrib import TQC, TRPO
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_prune_robust.attacks.adversary_env import AdversaryVecEnv
from sb3_prune_robust.attacks.director import Array, Director
from sb3_prune_robust.attacks.fitting import Budget, Fit
from sb3_prune_robust.attacks.search import curriculum_scale

#: SB3 algorithms that can learn an adversary, by name.
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "a2c": A2C, "trpo": TRPO, "sac": SAC, "td3": TD3, "tqc": TQC}
GAMMA = 0.99
LEARNING_RATES = {"ppo": 1e-3}  # high: what keeps it in check is the stop at a KL divergence
LEARNING_SHARE = 0.92  # of the budget; what is left chooses among the last directors
CANDIDATES = (0.8, 0.9)  # at these shares of learning, and at its end, a director is kept as a candidate
SAVE_EVERY = 0.1  # of the budget
_FOREVER = 10**12  # steps; the meter ends learning


def is_off_policy(algorithm: str) -> bool:
    """Whether an algorithm of :data:`ALGORITHMS` squashes its actions and keeps a replay buffer."""
    return issubclass(ALGORITHMS[algorithm], OffPolicyAlgorithm)


def defaults(algorithm: str, n_envs: int, budget: Budget) -> dict[str, Any]:
    """
    Arguments of an algorithm for learning an adversary, the same for every victim.

    :param algorithm: a key of :data:`ALGORITHMS`
    :param n_envs: number of environments
    :param budget: where it is in few steps, rollouts are shorter, so that something is learned
    """
    if is_off_policy(algorithm):
        start = 2000 if budget.steps is None else min(2000, budget.steps // 5)
        return dict(buffer_size=300_000, learning_starts=start, train_freq=1, gradient_steps=1, gamma=GAMMA)
    if algorithm == "a2c":
        return dict(gamma=GAMMA)
    size = 4096 if budget.steps is None else min(4096, budget.steps // 5)  # steps of all environments in a rollout
    steps = 8 * max(1, size // (8 * n_envs))
    common = dict(n_steps=steps, batch_size=steps * n_envs // 8, gamma=GAMMA)
    if algorithm == "trpo":
        return common
    network = dict(activation_fn=nn.Tanh, net_arch=[64, 64])
    return dict(n_epochs=10, target_kl=0.033, policy_kwargs=network, **common)


@dataclass
class Learner:
    """
    Learning an adversary.

    :param algorithm: a key of :data:`ALGORITHMS`
    :param settings: arguments of the algorithm over :func:`defaults`
    :param env: the adversary's environment
    :param fit: its budget and its checkpoints
    :param curriculum: the multiple of ``eps`` that the adversary has at the start
    :param seed: of the algorithm
    :param start: share of the budget that was used before
    """

    algorithm: str
    settings: Mapping[str, Any]
    env: AdversaryVecEnv
    fit: Fit
    curriculum: float
    seed: int
    start: float = 0.0

    def __post_init__(self) -> None:
        self.kept: dict[float, Director] = {}
        self.normalized = VecNormalize(self.env, norm_obs=False, gamma=self.settings.get("gamma", GAMMA))

    @property
    def progress(self) -> float:
        """Share of learning that is done."""
        left = LEARNING_SHARE - self.start  # none, where what came before used it all
        return min(1.0, max(0.0, self.fit.meter.progress - self.start) / left) if left > 0 else 1.0

    def run(self) -> list[Director]:
        """
        Learn until the budget's share is used.

        :return: the candidates: the director at each of :data:`CANDIDATES` and at the end; none if the budget did not reach as
            far as a first update, which would have learned nothing
        """
        with own_random_numbers():
            model = self._load() or self._new()
            Director.read(model.policy)  # what cannot be read is refused now, not after learning
            if 1.0 not in self.kept or self.progress < 1:  # below 1: continued with a larger budget
                self.kept.pop(1.0, None)
                model.learn(_FOREVER, callback=_Watch(self), reset_num_timesteps=False)
                if not model._n_updates:
                    return []
                self.kept[1.0] = Director.read(model.policy)
                self.save(model)
        return list(self.kept.values())

    def _new(self) -> BaseAlgorithm:
        usual = defaults(self.algorithm, self.env.num_envs, self.fit.meter.budget)
        settings = {**usual, **self.settings, "learning_rate": self._learning_rate()}
        return ALGORITHMS[self.algorithm]("MlpPolicy", self.normalized, seed=self.seed, device="cpu", **settings)

    def _learning_rate(self) -> Any:
        rate = self.settings.get("learning_rate", LEARNING_RATES.get(self.algorithm, 3e-4))
        return rate if is_off_policy(self.algorithm) or callable(rate) else _Decay(rate, self)

    def save(self, model: BaseAlgorithm) -> None:
        """Write the checkpoint, if there is a folder for it."""
        if self.fit.folder is None:
            return
        buffers = {"model": _saved(lambda file: model.save(file, exclude=["learning_rate", "lr_schedule"]))}
        if isinstance(model, OffPolicyAlgorithm):
            buffers["replay"] = _saved(model.save_replay_buffer)
        rms = self.normalized.ret_rms
        arrays = {**buffers, "returns": np.array([rms.mean, rms.var, rms.count], np.float64)}
        for share, director in self.kept.items():
            arrays |= {f"{share}/{name}": array for name, array in director.arrays().items()}
        self.fit.save("learner", {"kept": list(self.kept)}, arrays)

    def _load(self) -> BaseAlgorithm | None:
        found = self.fit.load("learner")
        if found is None:
            return None
        header, arrays = found
        rms = self.normalized.ret_rms
        rms.mean, rms.var, rms.count = arrays["returns"]
        for share in header["kept"]:
            prefix = f"{share}/"
            self.kept[share] = Director.of({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
        model = ALGORITHMS[self.algorithm].load(_opened(arrays["model"]), env=self.normalized, device="cpu")
        if isinstance(model, OffPolicyAlgorithm):
            model.load_replay_buffer(_opened(arrays["replay"]))
        model.learning_rate = self._learning_rate()
        model._setup_lr_schedule()
        return model


@contextmanager
def own_random_numbers(seed: int | None = None) -> Iterator[None]:
    """
    SB3 seeds the global random numbers of torch, numpy and Python, and draws from them; afterwards they go on as before.

    :param seed: with which they begin; ``None``: as they are
    """
    numpys, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002  # SB3 uses the global ones
    try:
        with th.random.fork_rng(devices=[]):
            if seed is not None:
                set_random_seed(seed)
            yield
    finally:
        np.random.set_state(numpys)  # noqa: NPY002
        random.setstate(pythons)


class _Decay:
    """A learning rate that falls to 0 with the budget: SB3's own progress knows steps only."""

    def __init__(self, rate: float, learner: Learner) -> None:
        self.rate, self.learner = rate, learner

    def __call__(self, progress_remaining: float) -> float:
        return self.rate * (1.0 - self.learner.progress)


class _Watch(BaseCallback):
    """Counts steps, lowers the curriculum, keeps candidates, saves, and ends learning."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        self.saved = learner.fit.meter.progress

    def _on_step(self) -> bool:
        learner = self.learner
        learner.fit.meter.add(self.training_env.num_envs)
        done = learner.progress
        learner.env.scale = curriculum_scale(learner.curriculum, done)
        for share in CANDIDATES:
            if share <= done < 1.0 and share not in learner.kept:
                learner.kept[share] = Director.read(self.model.policy)
        return done < 1.0

    def _on_rollout_start(self) -> None:
        used = self.learner.fit.meter.progress
        self.learner.fit.on_progress(used)
        if used >= self.saved + SAVE_EVERY:
            self.saved = used
            self.learner.save(self.model)


def _saved(save: Callable[[io.BytesIO], None]) -> Array:
    file = io.BytesIO()
    save(file)
    return np.frombuffer(file.getvalue(), np.uint8)


def _opened(array: Array) -> io.BytesIO:
    return io.BytesIO(array.tobytes())
