"""Snooping: what it knows of the victim is what an eavesdropper sees, and that is enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_prune_robust.attacks import MAD, AdversarialVecEnv, Attack, Budget, NotFittedError, RandomAttack
from sb3_prune_robust.attacks.fitting import read_arrays
from sb3_prune_robust.attacks.snooping import Snooping, _Cloning

MakePolicy = Callable[..., ActorCriticPolicy]
MEAN = np.array([0.3, -0.3, 0.2, -0.5])
SMALL: dict[str, Any] = dict(pairs=4000, epochs=40)


class Noise(gym.Env[Any, Any]):
    """Observes normal numbers, the last one always 3, whatever the action."""

    def __init__(self, actions: spaces.Space[Any]) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float32)
        self.action_space = actions

    def _observation(self) -> Any:
        return np.append(self.np_random.normal(MEAN), 3.0).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return self._observation(), 0.0, bool(self.np_random.random() < 0.1), False, {}


class Hidden(BasePolicy):
    """Answers, and shows nothing else."""

    def __init__(self, victim: ActorCriticPolicy) -> None:
        super().__init__(victim.observation_space, victim.action_space)
        self._answer: Any = [victim.predict]  # in a list: no submodule, so no parameters

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return self._answer[0](observation, *args, **kwargs)

    def _predict(self, observation: Any, deterministic: bool = False) -> Any:
        raise AssertionError("the eavesdropper looked inside")


def noise_env(policy: ActorCriticPolicy, n_envs: int = 4) -> DummyVecEnv:
    return DummyVecEnv([lambda: Noise(policy.action_space)] * n_envs)


def batch(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return np.append(rng.normal(MEAN, size=(200, 4)), np.full((200, 1), 3.0), axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def cartpole(trained: PPO) -> dict[bool, Snooping]:
    envs = make_vec_env("CartPole-v1", n_envs=8)
    return {d: Snooping(0.2, seed=0, deterministic=d, **SMALL).fit(trained, envs) for d in (True, False)}


@pytest.mark.parametrize("deterministic", [True, False])
def test_it_lowers_the_return_more_than_noise_does(trained: PPO, cartpole: dict[bool, Snooping], deterministic: bool) -> None:
    def mean_return(attack: Attack) -> float:
        venv = make_vec_env("CartPole-v1", n_envs=8)
        venv.seed(100)
        attacked = AdversarialVecEnv(venv, trained.policy, attack)
        return float(np.mean(evaluate_policy(trained, attacked, 16, deterministic=deterministic, warn=False)[0]))

    assert cartpole[deterministic].fidelity > 0.85
    assert mean_return(cartpole[deterministic]) < 0.3 * mean_return(RandomAttack(0.2, seed=0))


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("actions", ["gaussian", "categorical", "multi"])
def test_the_copy_agrees_with_the_victim(make_policy: MakePolicy, actions: str, deterministic: bool) -> None:
    """On observations it has not seen; and what moves the copy moves the victim nearly as much as the white box does."""
    policy, obs = make_policy(actions), batch()
    if actions == "gaussian":
        policy.action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        policy.log_std.data.fill_(-2.0)
    settings: dict[str, Any] = dict(seed=0, deterministic=deterministic)
    attack = Snooping(0.3, **settings, epochs=60).fit(policy, noise_env(policy), Budget(8000))
    assert attack._copy is not None
    truth, guess = (p.predict(obs, deterministic=True)[0].reshape(200, -1) for p in (policy, attack._copy))
    if actions == "gaussian":
        assert 1 - np.square(guess - truth).sum() / np.square(truth - truth.mean(0)).sum() > 0.9 and attack.fidelity > 0.9
        spread = np.exp(attack._copy.log_std.detach().numpy())
        assert deterministic or np.all((spread > np.exp(-2.0) * 0.95) & (spread < np.exp(-2.0) * 2.5))
    else:
        assert np.mean(guess == truth) > 0.8
        assert attack.fidelity > (0.85 if deterministic else 0.4)  # of one that samples nobody can say the choice
    white, black, noise = (moved(policy, obs, a) for a in (MAD(0.3, **settings), attack, RandomAttack(0.3, **settings)))
    assert black - noise > 0.45 * (white - noise) > 0


def moved(policy: ActorCriticPolicy, obs: Any, attack: Attack) -> float:
    """How far the attack moves the victim: by the very objective of MAD."""
    true = np.ascontiguousarray(obs)
    return float(MAD(0.1, deterministic=attack.deterministic).objective_on(policy, true).value(attack(policy, true)).mean())


def test_it_needs_answers_only(make_policy: MakePolicy) -> None:
    """From a victim that hides its weights it learns the same as from one that shows them."""
    policy, obs = make_policy("gaussian"), batch()
    env = noise_env(policy)
    plain = Snooping(0.2, seed=0, deterministic=True, **SMALL).fit(policy, env)
    hidden = Hidden(policy)
    assert not list(hidden.state_dict())
    blind = Snooping(0.2, seed=0, deterministic=True, **SMALL).fit(hidden, env)
    assert blind.fidelity == pytest.approx(plain.fidelity, abs=0.01)
    same = np.isclose(blind(hidden, obs), plain(policy, obs), atol=1e-3)
    assert same.mean() > 0.95


def test_the_perturbation_depends_on_the_copy_only(trained: PPO, cartpole: dict[bool, Snooping], tmp_path: Path) -> None:
    cartpole[True].save(tmp_path / "snooping.npz")
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    first = Snooping.load(tmp_path / "snooping.npz")(trained, obs)
    other = PPO("MlpPolicy", "CartPole-v1", seed=3, device="cpu")
    with th.no_grad():
        for parameter in other.policy.parameters():
            parameter.fill_(th.nan)
    np.testing.assert_array_equal(Snooping.load(tmp_path / "snooping.npz")(other, obs), first)
    again = Snooping.load(tmp_path / "snooping.npz")
    assert again._copy is not None
    with th.no_grad():
        again._copy.mlp_extractor.policy_net[0].weight.mul_(-1.0)
    assert not np.array_equal(again(trained, obs), first)


def test_the_victim_is_left_as_it_was(make_policy: MakePolicy) -> None:
    policy = make_policy("categorical")
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    env = VecNormalize(noise_env(policy))
    env.reset()
    count = env.obs_rms.count
    Snooping(0.2, seed=0, pairs=400, epochs=2).fit(policy, env)
    assert all(th.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert env.training and env.norm_reward and env.obs_rms.count == count


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ball_and_what_never_varied(make_policy: MakePolicy, norm: str) -> None:
    policy, obs = make_policy("gaussian"), batch()
    attack = Snooping(0.2, norm, [False, True, True, True, True], 0, pairs=2000, epochs=5).fit(policy, noise_env(policy))
    change = attack(policy, obs).astype(np.float64) - obs
    size = np.abs(change).max(axis=1) if norm == "linf" else np.linalg.norm(change, axis=1)
    assert size.max() <= 0.2 and size.mean() > 0.19
    assert not change[:, 0].any()
    if norm == "l2":  # random starts move it in l_inf
        assert np.abs(change[:, 4]).mean() < 0.05


@pytest.mark.parametrize("actions", ["gaussian", "categorical", "multi"])
def test_files(make_policy: MakePolicy, actions: str, tmp_path: Path) -> None:
    policy, obs = make_policy(actions), batch()
    settings: dict[str, Any] = dict(pairs=400, epochs=3, steps=7, restarts=2, step_size=0.4)
    attack = Snooping([0.2, 0.1, 0.2, 0.2, 0.0], "l2", seed=4, deterministic=True, **settings)
    with pytest.raises(NotFittedError, match="Snooping"):
        attack.save(tmp_path / "none.npz")
    attack.fit(policy, noise_env(policy)).save(tmp_path / "file.npz")
    with np.load(tmp_path / "file.npz", allow_pickle=False) as file:
        assert {"W0", "b0", "W2", "b2", "header"} <= set(file.files)
    loaded, fresh = Snooping.load(tmp_path / "file.npz"), Snooping.load(tmp_path / "file.npz")
    np.testing.assert_array_equal(loaded(policy, obs), attack(policy, obs))
    np.testing.assert_array_equal(fresh(policy, obs), Attack.__call__(Snooping.load(tmp_path / "file.npz"), policy, obs))
    assert (loaded.cost, loaded.fidelity, loaded._settings()) == (attack.cost, attack.fidelity, settings)
    whole = (tmp_path / "file.npz").read_bytes()
    (tmp_path / "file.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        Snooping.load(tmp_path / "file.npz")


def test_a_seed_fixes_the_fit(make_policy: MakePolicy) -> None:
    policy, obs = make_policy("multi"), batch()
    first, again, other = (
        Snooping(0.2, seed=seed, epochs=3).fit(policy, noise_env(policy), Budget(400))(policy, obs) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_budget(make_policy: MakePolicy) -> None:
    policy = make_policy("gaussian")
    env, shown = noise_env(policy), list[float]()
    attack = Snooping(0.2, seed=0, epochs=2).fit(policy, env, Budget(steps=403), on_progress=shown.append)
    assert attack.cost is not None and attack.cost.steps == 400  # whole steps of four environments
    assert shown == sorted(shown) and 0 < shown[0] and shown[-1] <= 1
    start = time.process_time()
    attack = Snooping(0.2, seed=0, pairs=10**9, epochs=10**9).fit(policy, env, Budget(seconds=0.6))
    assert attack.cost is not None and 0.55 < attack.cost.seconds <= time.process_time() - start < 1.5
    assert attack.cost.steps > 200


@pytest.mark.parametrize(
    "arguments, message", [(dict(pairs=3), "pairs=3"), (dict(epochs=0), "epochs=0"), (dict(steps=0), "steps=0")]
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Snooping(0.1, **arguments)


def test_without_data_there_is_no_attack(make_policy: MakePolicy) -> None:
    policy = make_policy()
    attack = Snooping(0.1)
    with pytest.raises(ValueError, match=r"steps=3.* gave 0 pairs"):
        attack.fit(policy, noise_env(policy), Budget(steps=3))
    with pytest.raises(NotFittedError):
        attack(policy, batch())
    attack.fit(policy, noise_env(policy), Budget(steps=100))
    with pytest.raises(ValueError, match=r"obs has 4 entries.* 5"):
        attack(make_policy(shape=(4,)), np.zeros((1, 4), np.float32))


KILLED = """
import sys, torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from sb3_prune_robust.attacks import Budget
from sb3_prune_robust.attacks.snooping import Snooping
th.set_num_threads(1)
model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
Snooping(0.2, seed=0, epochs=100_000).fit(model, make_vec_env("CartPole-v1", n_envs=4), Budget(2000), checkpoint=sys.argv[1])
"""


def test_kill_and_continue(tmp_path: Path) -> None:
    """What was watched is not watched again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    wait_for(tmp_path / "pairs.npz", 2000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read_arrays(tmp_path / "pairs.npz")[1]
    model, env = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu"), untouched(make_vec_env("CartPole-v1", n_envs=4))
    with pytest.raises(ValueError, match="of another fit"):
        Snooping(0.3, seed=0, epochs=100_000).fit(model, env, Budget(2000), checkpoint=tmp_path)
    attack = Snooping(0.2, seed=0, epochs=100_000)
    with pytest.raises(Stop):
        attack.fit(model, env, Budget(2000), checkpoint=tmp_path, on_progress=stop_after_watching)
    header, arrays = read_arrays(tmp_path / "pairs.npz")
    assert header["cost"]["steps"] == 2000 and env.steps == 0
    np.testing.assert_array_equal(arrays["observations"], before["observations"])


class Stop(Exception): ...


def stop_after_watching(progress: float) -> None:
    if progress >= 0.5:
        raise Stop


def untouched(venv: Any) -> Any:
    """The environments themselves, counting their steps: a wrapper would make them others to a checkpoint."""
    venv.steps, step_wait = 0, venv.step_wait

    def step() -> Any:
        venv.steps += 1
        return step_wait()

    venv.step_wait = step
    return venv


def wait_for(path: Path, steps: int) -> None:
    for _ in range(600):
        time.sleep(0.1)
        if path.exists() and read_arrays(path)[0]["cost"]["steps"] >= steps:
            return
    raise AssertionError(f"no {path}")


def test_learning_continues_where_it_was(make_policy: MakePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("gaussian")
    env = noise_env(policy)

    def fit(epochs_before_stop: float) -> Snooping:
        attack = Snooping(0.2, seed=0, pairs=400, epochs=20)
        return attack.fit(policy, env, checkpoint=tmp_path, on_progress=lambda p: stop_at(p, epochs_before_stop))

    def stop_at(progress: float, limit: float) -> None:
        if progress > limit:
            raise Stop

    with pytest.raises(Stop):
        fit(0.7)
    epoch = read_arrays(tmp_path / "copy.npz")[0]["epoch"]
    assert 8 <= epoch <= 12
    numbers = list[int]()
    raw = _Cloning.epoch
    monkeypatch.setattr(_Cloning, "epoch", lambda self, number, rate: (numbers.append(number), raw(self, number, rate)))
    attack = fit(2.0)
    assert numbers == list(range(epoch, 20))
    assert attack.cost is not None and attack.cost.steps == 400
    assert read_arrays(tmp_path / "copy.npz")[0]["epoch"] == 20
