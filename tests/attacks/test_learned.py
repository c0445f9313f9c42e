"""Learned attacks: fitting, files, checkpoints, and the environment in which the adversary learns."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize
from torch import nn

from sb3_prune_robust.attacks import (
    PAAD,
    SARL,
    AdversarialVecEnv,
    Budget,
    LearnedAttack,
    NotFittedError,
    RandomAttack,
)
from sb3_prune_robust.attacks import fitting as fitting_module
from sb3_prune_robust.attacks import learned as learned_module
from sb3_prune_robust.attacks.adversary_env import CLIP, AdversaryVecEnv, View
from sb3_prune_robust.attacks.fitting import Cost, FittedAttack, Meter, attacked_returns, read_arrays, write_arrays
from sb3_prune_robust.attacks.learning import GAMMA
from sb3_prune_robust.network import UnsupportedNetworkError

MakePolicy = Callable[..., ActorCriticPolicy]
CLASSES = [SARL, PAAD]
QUICK: dict[str, Any] = dict(algorithm_kwargs={"n_steps": 32, "batch_size": 64, "n_epochs": 2})
QUICK_SAC: dict[str, Any] = dict(
    algorithm="sac", algorithm_kwargs={"learning_starts": 40, "batch_size": 16, "policy_kwargs": {"net_arch": [16, 16]}}
)
QUICK_PUSH: dict[str, Any] = dict(search=0.6, **QUICK)
FEW, SOME = Budget(steps=600), Budget(steps=1200)


class Drift(gym.Env[Any, Any]):
    """Observes what drifts with the actions taken; pays for small observations; ends after ten steps, by its time limit."""

    def __init__(self, actions: spaces.Space[Any], size: int = 5, scale: float = 1.0, terminates: bool = False) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = actions
        self.scale, self.terminates = scale, terminates
        self.state, self.steps = np.zeros(size), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.steps = self.np_random.normal(size=len(self.state)), 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.state += 0.3 * float(np.mean(action)) + 0.1 * self.np_random.normal(size=len(self.state))
        self.steps += 1
        over = self.steps == 10
        reward = -float(np.square(self.state).mean())
        return self._observation(), reward, over and self.terminates, over and not self.terminates, {}

    def _observation(self) -> Any:
        return (self.scale * self.state).astype(np.float32)


def Counting(venv: VecEnv) -> Any:
    """The environments themselves, counting their steps: a wrapper would make them others to a checkpoint."""
    counted: Any = venv
    counted.steps, step_wait = 0, venv.step_wait

    def step() -> Any:
        counted.steps += venv.num_envs
        return step_wait()

    counted.step_wait = step
    return counted


def drift(policy: ActorCriticPolicy, n_envs: int = 4, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Drift(policy.action_space, policy.observation_space.shape[0], **kwargs)] * n_envs)


def batch(n: int = 30) -> Any:
    return np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)


@pytest.mark.parametrize("kind", CLASSES)
def test_before_fit_there_is_no_attack(policy: ActorCriticPolicy, kind: type[LearnedAttack], tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match=rf"{kind.__name__} was not fitted; call fit"):
        kind(0.1)(policy, batch())
    with pytest.raises(NotFittedError):
        kind(0.1).save(tmp_path / "attack.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind, settings", [(SARL, QUICK), (PAAD, QUICK), (SARL, QUICK_SAC), (PAAD, QUICK_PUSH)])
def test_a_seed_fixes_the_director(
    make_policy: MakePolicy, kind: type[LearnedAttack], settings: dict[str, Any], deterministic: bool
) -> None:
    """Whatever the global random numbers are, which go on as if nothing had been."""
    policy, found = make_policy("gaussian"), []
    budget = SOME if "search" in settings else FEW
    for seed, noise in ((1, 0), (1, 7), (2, 0)):
        set_random_seed(noise)
        attack = kind(0.3, seed=seed, deterministic=deterministic, **settings).fit(policy, drift(policy), budget)
        drawn = [float(th.rand(1)), np.random.random(), random.random()]  # noqa: NPY002  # SB3 uses the global ones
        set_random_seed(noise)
        assert drawn == [float(th.rand(1)), np.random.random(), random.random()]  # noqa: NPY002
        assert attack.cost is not None and 0 < attack.cost.steps and attack.cost.seconds > 0
        found.append(attack._arrays())
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name])
    assert any(not np.array_equal(array, found[2][name]) for name, array in found[0].items())


@pytest.mark.parametrize("kind, settings", [(SARL, QUICK), (SARL, QUICK_SAC), (PAAD, QUICK_SAC), (PAAD, QUICK_PUSH)])
def test_files(policy: ActorCriticPolicy, kind: type[LearnedAttack], settings: dict[str, Any], tmp_path: Path) -> None:
    path, eps, mask = tmp_path / "attack.npz", [0.3, 0.1, 0.2, 0.3, 0.0], [True, True, False, True, True]
    budget = SOME if "search" in settings else FEW
    attack = kind(eps, "l2", mask, 3, True, curriculum=2.0, **settings).fit(policy, drift(policy), budget)
    attack.save(path)
    with np.load(path, allow_pickle=False) as file:
        assert {"W0", "b0", "activations", "mean", "header"} <= set(file.files)
        assert all(file[name].dtype != object for name in file.files)
        assert "search" not in settings or file["push"].any()
    loaded = FittedAttack.load(path)
    assert type(loaded) is kind and loaded.cost == attack.cost
    assert (loaded._common(), loaded._settings()) == (attack._common(), attack._settings())
    np.testing.assert_array_equal(loaded(policy, batch()), attack(policy, batch()))
    assert not np.array_equal(loaded(policy, batch()), batch())
    other = PAAD if kind is SARL else SARL
    with pytest.raises(ValueError, match=f"holds a {kind.__name__}, not a {other.__name__}"):
        other.load(path)


def test_files_that_are_none(policy: ActorCriticPolicy, tmp_path: Path) -> None:
    path = tmp_path / "attack.npz"
    with pytest.raises(ValueError, match=r"attack.npz is missing"):
        SARL.load(path)
    SARL(0.1, seed=0, **QUICK).fit(policy, drift(policy), FEW).save(path)
    whole, (header, arrays) = path.read_bytes(), read_arrays(path)
    for cut in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="damaged"):
            SARL.load(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="not a file of a fitted attack"):
        SARL.load(path)
    np.savez(path, header=np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        SARL.load(path)
    without_weights = {name: array for name, array in arrays.items() if name != "W0"}
    for changed, message in (
        ((header, without_weights), "no adversary's network"),
        (({**header, "attack": "Other"}, arrays), "no attack that this version knows"),
        (({**header, "format": 99}, arrays), "no attack that this version knows"),
        (({**header, "settings": {"unknown": 1}}, arrays), "damaged"),
        (({name: header[name] for name in ("format", "attack")}, arrays), "damaged"),
        (({**header, "cost": {}}, arrays), "damaged"),
        ((header, {**arrays, "activations": np.array(["Linear", "Linear"])}), "no adversary's network|damaged"),
    ):
        write_arrays(path, *changed)
        with pytest.raises(ValueError, match=message):
            SARL.load(path)


def leaves_ball(true: Any, hat: Any, eps: float, norm: str) -> bool:
    """Without rounding: floats are fractions."""
    moves = [
        [Fraction(float(h)) - Fraction(float(s)) for h, s in zip(*rows, strict=True)] for rows in zip(hat, true, strict=True)
    ]
    if norm == "linf":
        return any(abs(move) > Fraction(eps) for row in moves for move in row)
    return any(sum(move**2 for move in row) > Fraction(eps) ** 2 for row in moves)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", CLASSES)
def test_ball_while_learning_and_after(
    policy: ActorCriticPolicy, kind: type[LearnedAttack], norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a curriculum the victim sees, while learning, perturbations of more than eps, falling to eps, and no more after."""
    sizes: list[float] = []
    raw = AdversaryVecEnv.step_async

    def watched(self: AdversaryVecEnv, actions: Any) -> None:
        hat = self.perturb(self.true, actions, self.scale)
        change = hat.astype(np.float64) - self.true
        sizes.append(np.abs(change).max() if norm == "linf" else np.linalg.norm(change, axis=1).max())
        assert hat.dtype == np.float32 and not leaves_ball(self.true, hat, 3 * 0.1, norm)
        raw(self, actions)

    monkeypatch.setattr(AdversaryVecEnv, "step_async", watched)
    attack = kind(0.1, norm, seed=0, curriculum=3.0, **QUICK).fit(policy, drift(policy), FEW)
    assert max(sizes[:10]) > 0.25 and max(sizes) <= 0.3
    assert 0.09 < max(sizes[-10:]) <= 0.1
    assert attack._director is not None
    attack._director.network.weights[-1][:] *= 1e3  # as one that learned for long
    obs = np.concatenate([batch(), 1e4 * batch(), 1e-6 * batch()])
    hat = attack(policy, obs)
    assert not leaves_ball(obs, hat, 0.1, norm)
    change = hat.astype(np.float64)[:30] - obs[:30]
    size = np.abs(change).max(axis=1) if norm == "linf" else np.linalg.norm(change, axis=1)
    assert size.mean() > 0.09


KILLED = """
import sys, torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from sb3_prune_robust.attacks import PAAD, Budget
th.set_num_threads(1)
model = PPO.load(sys.argv[1], device="cpu")
attack = PAAD(0.2, seed=0, algorithm_kwargs={"n_steps": 64, "batch_size": 128, "n_epochs": 4})
attack.fit(model, make_vec_env("CartPole-v1", n_envs=8), Budget(steps=12_000), checkpoint=sys.argv[2])
"""


def test_kill_and_continue(trained: PPO, tmp_path: Path) -> None:
    model, folder, budget = tmp_path / "model.zip", tmp_path / "checkpoint", Budget(steps=12_000)
    trained.save(model)
    command = [sys.executable, "-c", KILLED, str(model), str(folder)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(folder / "learner.npz", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    used = read_arrays(folder / "learner.npz")[0]["cost"]["steps"]
    assert 1200 <= used < 11_000
    env = Counting(make_vec_env("CartPole-v1", n_envs=8))
    attack = PAAD(0.2, seed=0, algorithm_kwargs={"n_steps": 64, "batch_size": 128, "n_epochs": 4})
    attack.fit(trained, env, budget, checkpoint=folder)
    assert attack.cost is not None and 0.9 * 12_000 < attack.cost.steps <= 1.05 * 12_000  # choosing plays to the end
    assert env.steps == attack.cost.steps - used  # what was done is not done again
    again = Counting(make_vec_env("CartPole-v1", n_envs=8))
    attack.fit(trained, again, budget, checkpoint=folder)
    assert again.steps <= 0.13 * 12_000  # choosing alone
    assert attacked_return(trained, attack) < 0.5 * attacked_return(trained, RandomAttack(0.2, seed=0))


def wait_for(path: Path, process: Any) -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, "the fit ended before it saved"
        time.sleep(0.02)
    raise AssertionError(f"no {path}")


def attacked_return(model: PPO, attack: Any) -> float:
    venv = make_vec_env("CartPole-v1", n_envs=8)
    venv.seed(100)
    return float(np.mean(evaluate_policy(model, AdversarialVecEnv(venv, model, attack), 8, warn=False)[0]))


@pytest.mark.parametrize("settings", [QUICK, QUICK_SAC])
def test_interrupted_fits_of_every_algorithm_continue(
    policy: ActorCriticPolicy, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Network, optimiser, replay buffer and statistics of returns come back."""
    with pytest.raises(Stop):
        SARL(0.1, seed=0, **settings).fit(policy, drift(policy), FEW, checkpoint=tmp_path, on_progress=stop_at(0.7))
    header, arrays = read_arrays(tmp_path / "learner.npz")
    assert 0.5 * 600 < header["cost"]["steps"] < 0.9 * 600 and arrays["returns"][2] > 100
    assert ("replay" in arrays) == ("algorithm" in settings)
    env, models = Counting(drift(policy)), list[Any]()
    attack = SARL(0.1, seed=0, **settings)
    with pytest.MonkeyPatch.context() as patch:
        watch_learn(patch, models)
        attack.fit(policy, env, FEW, checkpoint=tmp_path)
    model, timesteps, buffered = models[0]
    played = header["cost"]["steps"] - read_arrays(tmp_path / "view.npz")[0]["cost"]["steps"]
    assert timesteps == played and (buffered is None or buffered == timesteps)
    assert model.get_vec_normalize_env().ret_rms.count > arrays["returns"][2]
    assert attack.cost is not None and env.steps == attack.cost.steps - header["cost"]["steps"]
    assert not np.array_equal(attack(policy, batch()), batch())


def watch_learn(patch: pytest.MonkeyPatch, models: list[Any]) -> None:
    from stable_baselines3 import SAC

    for algorithm in (PPO, SAC):
        raw = algorithm.learn

        def watched(self: Any, *args: Any, raw: Any = raw, **kwargs: Any) -> Any:
            buffer = getattr(self, "replay_buffer", None)
            models.append((self, self.num_timesteps, None if buffer is None else buffer.size() * buffer.n_envs))
            return raw(self, *args, **kwargs)

        patch.setattr(algorithm, "learn", watched)


class Stop(Exception): ...


def stop_at(share: float) -> Callable[[float], None]:
    def stop(progress: float) -> None:
        if progress >= share:
            raise Stop

    return stop


class Halved(VecEnvWrapper):
    """Pays half."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, *rest = self.venv.step_wait()
        return obs, rewards / 2, *rest


def test_a_checkpoint_of_another_fit_is_refused(make_policy: MakePolicy, tmp_path: Path) -> None:
    policy, settings = make_policy(), {**QUICK, "curriculum": 2.0}
    SARL(0.1, seed=0, **settings).fit(policy, drift(policy), FEW, checkpoint=tmp_path)
    normalized = VecNormalize(drift(policy))
    others: list[tuple[LearnedAttack, Any, VecEnv, Budget]] = [
        (SARL(0.2, seed=0, **settings), policy, drift(policy), FEW),
        (SARL(0.1, seed=1, **settings), policy, drift(policy), FEW),
        (SARL(0.1, "l2", seed=0, **settings), policy, drift(policy), FEW),
        (SARL(0.1, seed=0, **QUICK), policy, drift(policy), FEW),
        (PAAD(0.1, seed=0, **settings), policy, drift(policy), FEW),
        (SARL(0.1, seed=0, **settings), make_policy(seed=1), drift(policy), FEW),
        (SARL(0.1, seed=0, **settings), policy, drift(policy, 3), FEW),
        (SARL(0.1, seed=0, **settings), policy, Halved(drift(policy)), FEW),
        (SARL(0.1, seed=0, **settings), policy, normalized, FEW),
    ]
    for attack, victim, env, budget in others:
        with pytest.raises(ValueError, match=r"checkpoint .*(learner|push|view).npz is of another fit"):
            attack.fit(victim, env, budget, checkpoint=tmp_path)
    SARL(0.1, seed=0, **settings).fit(policy, drift(policy), FEW, checkpoint=tmp_path)


def test_settings_survive_json(policy: ActorCriticPolicy, tmp_path: Path) -> None:
    """A tuple comes back as a list: still the same fit."""
    settings: dict[str, Any] = {"algorithm_kwargs": {**QUICK["algorithm_kwargs"], "policy_kwargs": {"net_arch": (8, 8)}}}
    first, second = (SARL(0.1, seed=0, **settings).fit(policy, drift(policy), FEW, checkpoint=tmp_path) for _ in range(2))
    np.testing.assert_array_equal(first._arrays()["W0"], second._arrays()["W0"])  # what was learned is not learned again


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("actions", ["gaussian", "categorical", "multi"])
@pytest.mark.parametrize("kind", CLASSES)
def test_every_kind_of_victim(make_policy: MakePolicy, kind: type[LearnedAttack], actions: str, deterministic: bool) -> None:
    policy = make_policy(actions)
    if actions == "gaussian":
        policy.action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    attack = kind(0.2, seed=0, deterministic=deterministic, **QUICK).fit(policy, drift(policy), Budget(steps=300))
    assert not np.array_equal(attack(policy, batch()), batch())
    assert all(th.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_candidates_meet_the_same_episodes(policy: ActorCriticPolicy) -> None:
    """The noise of a victim that samples is the same too; and every step is counted."""
    played, env = [], Counting(drift(policy))
    for noise in (0, 1):
        th.manual_seed(noise)
        meter = Meter(Budget(steps=1000))
        played.append(attacked_returns(RandomAttack(0.1, seed=0), policy, env, 8, deterministic=False, seed=5, meter=meter))
        assert meter.cost.steps == env.steps / (noise + 1) == 80
    np.testing.assert_array_equal(*played)


class Normed(ActorCriticPolicy):
    """No plain network: a LayerNorm stands between the layers."""

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        self.mlp_extractor.policy_net.append(nn.LayerNorm(self.mlp_extractor.latent_dim_pi))


@pytest.mark.parametrize("gsde", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
def test_victims_that_are_no_plain_network(kind: type[LearnedAttack], gsde: bool) -> None:
    policy: Any = "MlpPolicy" if gsde else Normed
    victim = PPO(policy, "Pendulum-v1", use_sde=gsde, n_steps=64, seed=0, device="cpu").policy
    env = DummyVecEnv([lambda: Drift(victim.action_space, 3)] * 4)
    attack = kind(0.2, seed=0, **QUICK).fit(victim, env, Budget(steps=200))
    obs = batch()[:, :3].copy()
    change = np.abs(attack(victim, obs) - obs)
    assert change.max() <= 0.2 and change.any(axis=1).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_actor_of_paad_moves_the_action_where_the_director_says(make_policy: MakePolicy, norm: str) -> None:
    """Nearly as far as anything can."""
    policy, obs = make_policy("gaussian", shape=(2,)), np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    directions = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)

    def along(points: Any) -> Any:
        with th.no_grad():
            mean = policy.get_distribution(th.as_tensor(points.reshape(-1, 2), dtype=th.float32)).distribution.mean
        return (mean.numpy().reshape(len(points), -1, 3) * directions[:, None]).sum(-1)

    angle = np.linspace(0, 2 * np.pi, 721)[:, None]
    unit = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    unit = unit / np.abs(unit).max(axis=1, keepdims=True) if norm == "linf" else unit
    best = (along(obs[:, None] + 0.1 * unit).max(axis=1) - along(obs)[:, 0]).mean()
    reached = []
    for steps in (1, 5):
        attack = PAAD(0.1, norm, steps=steps)
        ball = attack._ball(policy, obs)
        hat = ball.project(attack._move(policy, ball, directions))
        reached.append((along(hat) - along(obs)).mean() / best)
    assert 0.98 < min(reached) and max(reached) < 1.01


def test_normalisation_is_given_back_as_it_was(policy: ActorCriticPolicy) -> None:
    """Statistics and flags, after an error too; and eps is in units of the normalised observation."""
    env = VecNormalize(drift(policy, scale=100.0))
    env.obs_rms.mean, env.obs_rms.var, env.obs_rms.count = np.full(5, 2.0), np.full(5, 100.0**2), 1000.0
    mean, var, returns = env.obs_rms.mean.copy(), env.obs_rms.var.copy(), env.ret_rms.var
    attack = SARL(0.1, seed=0, **QUICK)
    seen = list[Any]()
    with pytest.MonkeyPatch.context() as patch:
        raw = attack._move
        patch.setattr(attack, "_move", lambda p, ball, a: (seen.append(ball.center), raw(p, ball, a))[1])
        attack.fit(policy, env, FEW)
    assert 0.5 < np.concatenate(seen).std() < 2.0  # what the victim receives: not 100
    with pytest.raises(Stop):
        attack.fit(policy, env, FEW, on_progress=stop_at(0.3))
    assert env.training and env.norm_reward and env.ret_rms.var == returns and env.obs_rms.count == 1000
    np.testing.assert_array_equal((env.obs_rms.mean, env.obs_rms.var), (mean, var))
    env.training = False
    attack.fit(policy, env, FEW)
    assert not env.training and env.norm_reward


def test_the_adversary_environment(make_policy: MakePolicy) -> None:
    """Observation true and clipped, reward minus the victim's and raw, the end of an episode as it was."""
    policy, seen = make_policy("gaussian"), list[Any]()

    def perturb(true: Any, actions: Any, scale: float) -> Any:
        assert scale == 1.0
        seen.append(true)
        return true + actions

    for terminates in (False, True):
        plain, below = drift(policy, 2, scale=30.0, terminates=terminates), drift(policy, 2, scale=30.0, terminates=terminates)
        env = AdversaryVecEnv(below, policy, spaces.Box(-1.0, 1.0, (5,)), perturb, True, 0)
        for one in (plain, env):
            one.seed(3)
        true, obs = plain.reset(), env.reset()
        np.testing.assert_array_equal(obs, np.clip(true, -CLIP, CLIP))
        for step in range(1, 21):
            move = np.random.default_rng(step).uniform(-1, 1, size=(2, 5)).astype(np.float32)
            shown = true + move
            true, reward, done, info = plain.step(policy.predict(shown, deterministic=True)[0])
            obs, cost, over, told = env.step(move)
            np.testing.assert_allclose(seen[-1] + move, shown, rtol=1e-5)
            np.testing.assert_allclose(obs, np.clip(true, -CLIP, CLIP), rtol=1e-5)
            np.testing.assert_allclose(cost, -reward, rtol=1e-5)
            np.testing.assert_array_equal(done, over)
            assert done.all() == (step % 10 == 0)
            for was, now in zip(info, told, strict=True):
                assert was.get("TimeLimit.truncated") == now.get("TimeLimit.truncated")
                assert ("terminal_observation" in now) == (step % 10 == 0)
                if "terminal_observation" in now:
                    expected = np.clip(was["terminal_observation"], -CLIP, CLIP)
                    np.testing.assert_allclose(now["terminal_observation"], expected, rtol=1e-5)
                    assert now["TimeLimit.truncated"] is not terminates
        assert (np.abs(true) > CLIP).any()  # so that clipping was tested


def test_views() -> None:
    obs = np.array([[[1.0, -7.0], [np.inf, 2.0]]], np.float64)
    seen = View.plain(4)(obs)
    np.testing.assert_array_equal(seen, np.array([[1.0, -CLIP, CLIP, 2.0]], np.float32))
    assert seen.dtype == np.float32
    rows = np.array([[0.0, 7.0], [100.0, 7.0]])
    np.testing.assert_allclose(View.measured(rows)(rows), [[-1, 0], [1, 0]])


def test_large_observations_without_normalisation_are_told_apart(make_policy: MakePolicy) -> None:
    """Raw observations far beyond the clip: the adversary must not see the same everywhere."""
    attack, policy = SARL(1.0, seed=0, deterministic=True), make_policy("gaussian")
    attack.fit(policy, drift(policy, 2, scale=1000.0), Budget(steps=3000))
    rows = drift(policy, 2, scale=1000.0)
    seen = [rows.reset(), *(rows.step(np.zeros((2, 3), np.float32))[0] for _ in range(8))]
    assert len(np.unique(attack._view(np.concatenate(seen)), axis=0)) > 9
    assert np.std(attack._view.spread) > 0


def test_environments_in_processes(trained: PPO) -> None:
    """They hand out infos as a tuple."""
    venv = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv)
    try:
        attack = PAAD(0.3, seed=0, search=0.3).fit(trained, venv, Budget(steps=3000))
    finally:
        venv.close()
    assert attack.cost is not None and attack.cost.steps >= 3000


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_budget_that_learns_nothing_is_refused(policy: ActorCriticPolicy, algorithm: str) -> None:
    settings = {"n_steps": 4096} if algorithm == "ppo" else {"learning_starts": 5000}
    attack = SARL(0.1, seed=0, algorithm=algorithm, algorithm_kwargs=settings)
    with pytest.raises(ValueError, match=r"budget .*ended before the first update"):
        attack.fit(policy, drift(policy, 2), Budget(steps=1000))
    with pytest.raises(NotFittedError):
        attack(policy, np.zeros((1, 5), np.float32))


def test_episodes_that_never_end_are_refused(policy: ActorCriticPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting_module, "LONGEST_EPISODE", 5)  # these last ten steps
    for attack in (PAAD(0.1, seed=0, search=0.3), SARL(0.1, seed=0)):
        with pytest.raises(ValueError, match=r"env: an episode under attack went on for more than 5 steps"):
            attack.fit(policy, drift(policy, 2), Budget(steps=1000))


def test_another_victim_is_refused(policy: ActorCriticPolicy, make_policy: MakePolicy) -> None:
    attack = SARL(0.1, seed=0).fit(policy, drift(policy, 2), Budget(steps=1000))
    with pytest.raises(ValueError, match=r"obs has 3 entries; this attack was fitted on a victim that has 5"):
        attack(make_policy(shape=(3,)), np.zeros((1, 3), np.float32))


def test_a_larger_budget_continues(policy: ActorCriticPolicy, tmp_path: Path) -> None:
    attack = SARL(0.1, seed=0)
    attack.fit(policy, drift(policy, 2), Budget(steps=1000), checkpoint=tmp_path)
    first = attack._arrays()["W0"]
    attack.fit(policy, drift(policy, 2), Budget(steps=3000), checkpoint=tmp_path)
    assert attack.cost is not None and attack.cost.steps < 4500 and not np.array_equal(first, attack._arrays()["W0"])


def test_the_adversary_is_paid_by_what_the_victim_loses(trained: PPO) -> None:
    """It learns: far below noise; and of the candidates the best is kept."""
    quick = {"n_steps": 64, "batch_size": 128, "n_epochs": 4, "learning_rate": 1e-3}
    noise = attacked_return(trained, RandomAttack(0.2, seed=0))
    for kind in CLASSES:
        attack = kind(0.2, seed=0, algorithm_kwargs=quick).fit(
            trained, make_vec_env("CartPole-v1", n_envs=8), Budget(steps=8000)
        )
        assert attacked_return(trained, attack) < 0.5 * noise


def test_the_best_candidate_is_kept(policy: ActorCriticPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = SARL(0.1, seed=0)
    attack._director = None
    candidates: Any = ["first", "second", "third"]
    played = {"first": 2.0, "second": 1.0, "third": 3.0}
    counts = list[str]()

    def returns(one: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(one._director)
        return np.array([played[one._director]])

    monkeypatch.setattr(learned_module, "attacked_returns", returns)
    attack._choose(candidates, policy, drift(policy), Meter(Budget(steps=100)), 0)
    assert attack._director == "second" and sorted(counts) == sorted(learned_module.ROUNDS * candidates)
    spent = Meter(Budget(steps=100))
    spent.resume(Cost(100, 0.0))
    attack._choose(candidates, policy, drift(policy), spent, 0)
    assert attack._director == "second" and sorted(counts[-3:]) == sorted(candidates)  # no budget left: a round is played yet


@pytest.mark.parametrize("kind", CLASSES)
def test_budget_and_progress(policy: ActorCriticPolicy, kind: type[LearnedAttack]) -> None:
    env, shown = Counting(drift(policy)), list[float]()
    attack = kind(0.1, seed=0, **QUICK).fit(policy, env, Budget(steps=2000), on_progress=shown.append)
    assert attack.cost is not None and attack.cost.steps == env.steps and 1800 < env.steps <= 2000
    assert shown == sorted(shown) and shown[0] < 0.15 and 0.8 < shown[-1] <= 1
    start = time.process_time()
    attack.fit(policy, env, Budget(seconds=0.5))
    assert attack.cost is not None and 0.4 < attack.cost.seconds <= time.process_time() - start < 1.0
    seeds = attack._fit_seeds(2)
    assert min(seeds) >= 2**30 and max(seeds) + 100 < 2**31  # no evaluation's episodes, and still a seed


def test_learning_rate_and_curriculum_follow_the_budget(policy: ActorCriticPolicy) -> None:
    models = list[Any]()
    with pytest.MonkeyPatch.context() as patch:
        watch_learn(patch, models)
        SARL(0.1, seed=0, **QUICK).fit(policy, drift(policy), FEW)
    rate = models[0][0].policy.optimizer.param_groups[0]["lr"]
    assert 0 < rate < 0.4 * 1e-3
    assert models[0][0].gamma == GAMMA


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(algorithm="dqn"), r"algorithm='dqn'.*'ppo'"),
        (dict(curriculum=0.5), "curriculum=0.5"),
        (dict(curriculum=np.inf), "curriculum=inf"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PAAD(0.1, **arguments)


def test_arguments_that_no_file_can_hold_are_refused() -> None:
    with pytest.raises(TypeError, match=r"algorithm_kwargs=.*JSON"):
        PAAD(0.1, algorithm_kwargs={"policy_kwargs": {"activation_fn": nn.ReLU}})


@pytest.mark.parametrize("arguments", [{}, {"steps": 0}, {"seconds": -1.0}, {"steps": np.inf}, {"seconds": np.nan}])
def test_wrong_budgets(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(**arguments)


def test_what_cannot_be_fitted_is_refused_before_learning(make_policy: MakePolicy, policy: ActorCriticPolicy) -> None:
    from sb3_contrib import RecurrentPPO

    attack, env = SARL(0.1, seed=0, **QUICK), Counting(drift(policy))
    with pytest.raises(TypeError, match="env must be a VecEnv"):
        attack.fit(policy, Drift(policy.action_space))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="already holds an AdversarialVecEnv"):
        attack.fit(policy, AdversarialVecEnv(env, policy, RandomAttack(0.1)), FEW)
    with pytest.raises(ValueError, match="observations"):
        attack.fit(make_policy(shape=(4,)), env, FEW)
    with pytest.raises(UnsupportedNetworkError, match="RecurrentActorCriticPolicy"):
        attack.fit(RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8), make_vec_env("CartPole-v1"), FEW)
    model = PPO("MlpPolicy", VecNormalize(drift(policy)), n_steps=16, device="cpu")
    with pytest.raises(ValueError, match="raw units"):
        attack.fit(model, env, FEW)
    with pytest.raises(UnsupportedNetworkError, match="gSDE"):
        SARL(0.1, algorithm_kwargs={"use_sde": True}).fit(policy, env, FEW)
    assert env.steps <= 600 / 20  # a look at the observations
    with pytest.raises(NotFittedError):
        attack(policy, batch())


def test_a_checkpoint_from_the_very_end_of_the_budget_still_has_a_director(policy: ActorCriticPolicy, tmp_path: Path) -> None:
    """Saved between two updates, when the clock had run out and no candidate was kept yet."""
    with pytest.raises(Stop):
        SARL(0.1, seed=0, **QUICK).fit(policy, drift(policy), FEW, checkpoint=tmp_path, on_progress=stop_at(0.5))
    header, arrays = read_arrays(tmp_path / "learner.npz")
    assert header["kept"] == []
    write_arrays(tmp_path / "learner.npz", {**header, "cost": {"steps": 600, "seconds": 1.0}}, arrays)
    attack = SARL(0.1, seed=0, **QUICK).fit(policy, drift(policy), FEW, checkpoint=tmp_path)
    assert not np.array_equal(attack(policy, batch()), batch())


def test_a_push_is_searched_once(policy: ActorCriticPolicy, tmp_path: Path) -> None:
    """The search comes first, is a candidate, and is not repeated when the fit is continued."""
    budget = Budget(steps=5000)
    with pytest.raises(Stop):
        PAAD(0.1, seed=0, **QUICK_PUSH).fit(policy, drift(policy), budget, checkpoint=tmp_path, on_progress=stop_at(0.82))
    header, arrays = read_arrays(tmp_path / "push.npz")
    used = header["cost"]["steps"]
    assert 0.6 * 5000 <= used < 0.82 * 5000 and arrays["push"].shape == (2, 3)
    env, attack = Counting(drift(policy)), PAAD(0.1, seed=0, **QUICK_PUSH)
    attack.fit(policy, env, budget, checkpoint=tmp_path)
    assert attack.cost is not None and env.steps <= attack.cost.steps - used
    np.testing.assert_array_equal(attack._arrays()["push"], arrays["push"])
    still = PAAD(0.1, seed=0, **QUICK_PUSH)
    still._restore({name: array for name, array in attack._arrays().items() if name != "push"})
    still.cost = attack.cost
    assert not np.array_equal(still(policy, batch()), attack(policy, batch()))


def test_a_budget_that_the_search_uses_up(policy: ActorCriticPolicy) -> None:
    """A generation of whole episodes costs more than all of it: then the push is the attack, and the fit ends."""
    env = Counting(drift(policy))
    attack = PAAD(0.1, seed=0, **QUICK_PUSH).fit(policy, env, Budget(steps=100))
    assert env.steps < 1000
    assert not np.array_equal(attack(policy, batch()), batch())


@pytest.mark.parametrize("arguments", [{"search": -0.1}, {"search": 0.95}, {"search": np.nan}, {"steps": 0}])
def test_wrong_arguments_of_paad(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PAAD(0.1, **arguments)
