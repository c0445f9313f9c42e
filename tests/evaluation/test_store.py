"""What is kept: read back exactly, never for another question, redone with a warning where damaged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from sb3_prune_robust import worst_case
from sb3_prune_robust.attacks import ATTACKS, MAD, Budget, FittedAttack, make_attack
from sb3_prune_robust.evaluation import held_out
from sb3_prune_robust.evaluation.held_out import HeldOut, Watch
from sb3_prune_robust.evaluation.identity import digest, named_key, versions, victim_key
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.evaluation.rollouts import Episodes, NoAttackError, rollout
from sb3_prune_robust.evaluation.store import DamagedPieceWarning, Piece, Store
from sb3_prune_robust.policies import copy_policy
from sb3_prune_robust.pruning import prune_policy

KEY = {"seed": 0, "limits": (-np.inf, 1.0), "weights": np.arange(3)}
STEPS = Budget(steps=600)


def same(one: Episodes, other: Episodes) -> bool:
    return all(np.all(np.equal(a, b)) for a, b in zip(leaves(one), leaves(other), strict=True))


def leaves(episodes: Episodes) -> list[Any]:
    values = [getattr(episodes, field.name) for field in fields(Episodes)]
    return [leaf for value in values for leaf in (value if isinstance(value, tuple) else [value])]


@pytest.fixture
def held(cartpole_model: PPO, tmp_path: Path) -> HeldOut:
    return HeldOut(cartpole_model.policy, make_env("CartPole-v1", 3), 4, False, store=Store(tmp_path / "kept"), budget=STEPS)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many rollouts and fits there were."""
    counted = {"rollout": 0, "fit": 0}

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(held_out, "rollout", counting("rollout", held_out.rollout))
    monkeypatch.setattr(FittedAttack, "fit", counting("fit", FittedAttack.fit))
    return counted


@pytest.mark.parametrize("record", [False, True])
def test_episodes_come_back_as_they_were(held: HeldOut, record: bool, count: dict[str, int]) -> None:
    first, again = held.clean(record).episodes, held.clean(record).episodes
    assert same(first, again) and count["rollout"] == 1
    assert bool(again.observations) == bool(again.samples) == record
    assert [len(one) for one in again.rewards] == again.lengths.tolist()


def test_without_a_folder_nothing_is_kept(held: HeldOut, count: dict[str, int]) -> None:
    held = replace(held, store=Store(None))
    assert same(held.clean().episodes, held.clean().episodes) and count["rollout"] == 2
    assert held.named("pa-ad", 0.1, "linf").cost is not None


def test_an_attack_that_changed_nothing_is_remembered(held: HeldOut, count: dict[str, int]) -> None:
    for _ in range(2):
        with pytest.raises(NoAttackError, match="unchanged"):
            held.named("random", 1e-30, "linf")
    assert count["rollout"] == 1


OTHERWISE: dict[str, Callable[[HeldOut], Any]] = {
    "eps": lambda held: held.named("random", 0.2, "linf"),
    "norm": lambda held: held.named("random", 0.1, "l2"),
    "attack": lambda held: held.named("random#2", 0.1, "linf"),
    "seed": lambda held: replace(held, seed=1).named("random", 0.1, "linf"),
    "mode": lambda held: replace(held, deterministic=True).named("random", 0.1, "linf"),
    "episodes": lambda held: replace(held, n_episodes=3).named("random", 0.1, "linf"),
    "gamma": lambda held: replace(held, gamma=0.9).named("random", 0.1, "linf"),
    "rewards": lambda held: replace(held, reward_range=(0.0, 2.0)).named("random", 0.1, "linf"),
    "n_envs": lambda held: replace(held, venv=make_env("CartPole-v1", 2)).named("random", 0.1, "linf"),
    "time limit": lambda held: replace(held, venv=limited(3)).named("random", 0.1, "linf"),
    "normalizer": lambda held: replace(held, venv=VecNormalize(held.venv)).named("random", 0.1, "linf"),
    "weights": lambda held: replace(held, policy=pruned(held.policy)).named("random", 0.1, "linf"),
}


def limited(n: int) -> Any:
    return make_env(lambda: gym.make("CartPole-v1", max_episode_steps=10), n)


def pruned(policy: Any) -> Any:
    copy = copy_policy(policy)
    prune_policy(copy, 0.01)
    return copy


@pytest.mark.parametrize("change", OTHERWISE)
def test_another_setting_never_gets_an_old_result(change: str, held: HeldOut, count: dict[str, int]) -> None:
    for _ in range(2):
        held.named("random", 0.1, "linf")
    assert count["rollout"] == 1
    OTHERWISE[change](held)
    assert count["rollout"] == 2


def test_the_key_knows_activations_statistics_and_versions(cartpole_model: PPO, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = VecNormalize(make_env("CartPole-v1", 1))
    relu = PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"activation_fn": th.nn.ReLU}, device="cpu").policy
    relu.load_state_dict(cartpole_model.policy.state_dict())
    keys = [victim_key(cartpole_model.policy, venv), victim_key(relu, venv)]
    venv.obs_rms.mean = venv.obs_rms.mean + 1e-9
    keys.append(victim_key(cartpole_model.policy, venv))
    assert keys[0] != keys[1] and keys[0] != keys[2] and keys[0]["weights"] == keys[1]["weights"]
    assert "sb3-prune-robust" in versions()


def test_an_attack_of_other_defaults_is_another(held: HeldOut, count: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    held.named("mad", 0.1, "linf")
    monkeypatch.setitem(ATTACKS, "mad", functools.partial(MAD, steps=11))
    for _ in range(2):
        held.named("mad", 0.1, "linf")
    assert count["rollout"] == 2
    given: list[dict[str, Any]] = [{}, {"steps": 3}, {"restarts": 3}, {"step_size": 0.1}, {"engine": "autograd"}]
    given += [{"objective": "critic"}, {"objective": lambda policy, clean, points: points.sum(1)}]
    keys = [named_key("pgd", make_attack("pgd", 0.1, **settings)) for settings in given]
    assert len({digest(key) for key in keys}) == len(given)
    assert keys[0] == named_key("pgd", make_attack("pgd", 0.1, seed=3))  # the seed is in the name and the episodes'


class Scale(gym.RewardWrapper[Any, Any]):
    """Keeps its argument, and counts in public and in private."""

    def __init__(self, env: Any, scale: float) -> None:
        super().__init__(env)
        self.scale, self.n_steps, self._last, self.best = scale, 0, 0.0, float("-inf")

    def reward(self, reward: Any) -> float:
        self.n_steps, self._last, self.best = self.n_steps + 1, float(reward), max(self.best, float(reward))
        return self.scale * float(reward)


class Hidden(Scale):
    """Passes its argument on."""

    def __init__(self, env: Any, **kwargs: Any) -> None:
        super().__init__(env, **kwargs)


class Private(gym.RewardWrapper[Any, Any]):
    def __init__(self, env: Any, scale: Any) -> None:
        super().__init__(env)
        self._scale = np.array(scale)

    def reward(self, reward: Any) -> float:
        return float(self._scale) * float(reward)


class Own(gym.Env[Any, Any]):
    """Not registered, with an argument."""

    observation_space, action_space = gym.spaces.Box(-5, 5, (4,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, pay: float) -> None:
        self.pay, self.n_steps = pay, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        return np.zeros(4, np.float32), self.pay, self.n_steps % 9 == 0, False, {}


MADE: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    name: (functools.partial(make, 1.0), functools.partial(make, 5.0))
    for name, make in {
        "kept": lambda x: Scale(gym.make("CartPole-v1"), x),
        "passed on": lambda x: Hidden(gym.make("CartPole-v1"), scale=x),
        "private": lambda x: Private(gym.make("CartPole-v1"), x),
        "inner": lambda x: gym.wrappers.RecordEpisodeStatistics(Scale(gym.make("CartPole-v1"), x)),
        "recorded": lambda x: gym.wrappers.ClipReward(gym.make("CartPole-v1"), -x, x),
        "time limit": lambda x: gym.wrappers.TimeLimit(gym.make("CartPole-v1").unwrapped, int(20 * x)),
        "environment": lambda x: Own(x),
    }.items()
}
MADE["function"] = (
    lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: 1.5 * float(reward)),
    lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: 5.5 * float(reward)),
)


@pytest.mark.parametrize("how", MADE)
def test_the_key_knows_the_arguments_of_wrappers_and_no_counts(how: str, cartpole_model: PPO) -> None:
    one, other = (make_env(make, 2) for make in MADE[how])
    before = digest(victim_key(cartpole_model.policy, one))
    assert before == digest(victim_key(cartpole_model.policy, make_env(MADE[how][0], 2)))
    assert before != digest(victim_key(cartpole_model.policy, other))
    rollout(cartpole_model, one, 4)
    assert digest(victim_key(cartpole_model.policy, one)) == before


def test_the_key_knows_the_arguments_of_wrappers_around_all(cartpole_model: PPO) -> None:
    class ScaleAll(VecEnvWrapper):
        def __init__(self, venv: Any, scale: float) -> None:
            super().__init__(venv)
            self.scale = scale

        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            return self.venv.step_wait()

    keys = [victim_key(cartpole_model.policy, ScaleAll(make_env("CartPole-v1", 2), scale)) for scale in (1.0, 1.0, 5.0)]
    assert keys[0] == keys[1] != keys[2]


def test_the_key_knows_the_arguments_of_the_policy(cartpole_model: PPO) -> None:
    class Rounding(ActorCriticPolicy):
        def __init__(self, *args: Any, step: float = 0.01, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.step = step

    venv = make_env("CartPole-v1", 2)
    models = [PPO(Rounding, venv, policy_kwargs={"step": step}, seed=0, device="cpu") for step in (0.1, 0.1, 5.0)]
    keys = [digest(victim_key(model.policy, venv)) for model in models]
    assert keys[0] == keys[1] != keys[2]


def test_the_key_knows_the_statistics_of_each_key_of_a_dict() -> None:
    venv = VecNormalize(make_vec_env(lambda: Dicts(), 2), training=False)
    policy = PPO("MultiInputPolicy", venv, seed=0, device="cpu").policy
    before = digest(victim_key(policy, venv))
    assert before == digest(victim_key(policy, venv))
    venv.obs_rms["b"].mean += 1.0
    assert before != digest(victim_key(policy, venv))


class Dicts(gym.Env[Any, Any]):
    """One step; pays 1."""

    observation_space = gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (3,)), "b": gym.spaces.Box(-1, 1, (2,))})
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.0, True, False, {}


def test_a_normalised_agent_of_dict_observations_has_a_worst_case() -> None:
    venv = VecNormalize(make_vec_env(lambda: Dicts(), 2), training=False)
    model = PPO("MultiInputPolicy", venv, n_steps=8, batch_size=16, seed=0, device="cpu")
    assert worst_case(model, venv, ["mad"], eps={"a": 0.3}, n_episodes=4).mean == 1.0


def test_a_change_of_version_is_another_result(held: HeldOut, count: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    held.clean()
    monkeypatch.setattr(held_out, "versions", lambda: {"sb3-prune-robust": "next"})
    held.clean()
    assert count["rollout"] == 2


def test_a_fitted_attack_is_kept_and_its_settings_matter(held: HeldOut, count: dict[str, int]) -> None:
    first, again = (held.named("pa-ad", 0.1, "linf") for _ in range(2))
    assert count == {"rollout": 1, "fit": 1} and first.cost == again.cost
    assert same(first.episodes, again.episodes)
    held.named("pa-ad", 0.1, "l2")
    held.named("pa-ad#2", 0.1, "linf")
    held.named("pa-ad", 0.2, "linf")
    replace(held, budget=Budget(steps=700)).named("pa-ad", 0.1, "linf")
    replace(held, deterministic=True).named("pa-ad", 0.1, "linf")
    replace(held, policy=pruned(held.policy)).named("pa-ad", 0.1, "linf")
    assert count["fit"] == 7
    before = dict(count)
    replace(held, n_episodes=3).named("pa-ad", 0.1, "linf")  # other episodes of the same attack
    assert count == {"rollout": before["rollout"] + 1, "fit": 7}


class Drawn(FittedAttack):
    """Learns torch's next random numbers."""

    default_budget = STEPS

    def _fit(self, *args: Any, **kwargs: Any) -> None:
        self.drawn = th.rand(3).numpy()

    def _settings(self) -> dict[str, Any]:
        return {}

    def _arrays(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def _restore(self, arrays: Any) -> None:
        self.drawn = arrays["drawn"]

    def perturb(self, policy: Any, ball: Any) -> Any:
        return ball.center + ball.eps


def test_what_is_learned_depends_on_the_seed_alone(held: HeldOut) -> None:
    learned = []
    for seed, state in ((0, 1), (0, 2), (1, 1)):
        th.manual_seed(state)  # that other code leaves behind
        learned.append(replace(held, store=Store(None)).under(Drawn(0.1, seed=seed), "drawn").attack.drawn)
        assert th.initial_seed() == state
    np.testing.assert_array_equal(learned[0], learned[1])
    assert not np.array_equal(learned[0], learned[2])


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        middle = len(content) // 3
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    else:
        path.write_bytes(b"" if how == "empty" else b"text")


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "text"])
@pytest.mark.parametrize("kind", ["episodes", "attack"])
def test_a_damaged_file_is_reported_and_redone(kind: str, how: str, held: HeldOut, count: dict[str, int]) -> None:
    first = held.named("pa-ad", 0.1, "linf")
    (path,) = Path(held.store.folder or "").glob(f"{kind}-*.npz")
    damage(path, how)
    with pytest.warns(DamagedPieceWarning, match=str(path)):
        again = held.named("pa-ad", 0.1, "linf")
    assert count == ({"rollout": 2, "fit": 1} if kind == "episodes" else {"rollout": 1, "fit": 2})
    assert same(first.episodes, again.episodes)
    held.named("pa-ad", 0.1, "linf")
    assert sum(count.values()) == 3


def test_a_file_of_another_question_is_reported_and_not_used(held: HeldOut, count: dict[str, int]) -> None:
    clean, attacked = held.clean().episodes, held.named("random", 0.1, "linf").episodes
    one, other = sorted(Path(held.store.folder or "").glob("episodes-*.npz"))
    one.write_bytes(other.read_bytes())
    with pytest.warns(DamagedPieceWarning, match="its key is"):
        again = held.clean().episodes, held.named("random", 0.1, "linf").episodes
    assert same(clean, again[0]) and same(attacked, again[1])


def test_an_attack_of_other_settings_is_not_used(held: HeldOut, tmp_path: Path) -> None:
    held.named("pa-ad", 0.1, "linf")
    (path,) = Path(held.store.folder or "").glob("attack-*.npz")
    make_attack("pa-ad", 0.3, seed=0).fit(held.policy, held.venv, STEPS).save(path)
    with pytest.warns(DamagedPieceWarning, match="settings"):
        assert held.named("pa-ad", 0.1, "linf").attack.eps == 0.1


def test_a_damaged_checkpoint_is_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.checkpoint(KEY)
    assert folder is not None
    folder.mkdir()
    (folder / "checkpoint.npz").write_bytes(b"PK")
    with pytest.warns(DamagedPieceWarning):
        assert store.checkpoint(KEY) == folder
    assert not folder.exists()


def test_keys_may_hold_arrays_and_infinities_and_order_does_not_matter(tmp_path: Path) -> None:
    store, piece = Store(tmp_path), Piece(None, 1.5, "nothing")
    store.write(KEY, piece)
    assert store.read(dict(reversed(KEY.items()))) == piece
    assert store.read({**KEY, "weights": np.arange(4)}) is None
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["episodes-"]


def test_a_fit_that_was_killed_is_continued_from_its_checkpoint(held: HeldOut, count: dict[str, int]) -> None:
    held, told = replace(held, budget=Budget(steps=20_000)), [0.0]

    def kill(what: str, amount: float) -> None:
        told.append(told[-1] + amount)
        if list(Path(held.store.folder or "").glob("fit-*/learner.npz")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(held, watch=Watch(on_fit=kill)).named("pa-ad", 0.1, "linf")
    again: list[float] = []
    played = replace(held, watch=Watch(on_fit=lambda what, amount: again.append(amount))).named("pa-ad", 0.1, "linf")
    first = next(amount for amount in again if amount > 0)
    assert 4_000 <= first <= told[-1] < 20_000  # it starts where the checkpoint was
    assert sum(again) == pytest.approx(20_000) and played.cost is not None and played.cost.steps <= 21_000
    assert not list(Path(held.store.folder or "").glob("fit-*")) and count["fit"] == 2


def test_a_record_is_made_once_and_made_again_where_damaged(tmp_path: Path) -> None:
    store, made = Store(tmp_path), []

    def make() -> dict[str, Any]:
        made.append(None)
        return {"b": np.arange(2), "a": (0.1, None)}

    for _ in range(2):
        assert store.record(KEY, make) == {"b": [0, 1], "a": [0.1, None]} and len(made) == 1
    assert list(store.record(KEY, make)) == ["b", "a"]
    store.record({**KEY, "seed": 1}, make)
    assert len(made) == 2
    for path in tmp_path.iterdir():
        damage(path, "flipped")
    with pytest.warns(DamagedPieceWarning):
        store.record(KEY, make)
    assert len(made) == 3
