"""The minimum over attacks: on held-out episodes, with each attack's own number and cost, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from sb3_prune_robust import worst_case
from sb3_prune_robust.attacks import MAD, PAAD, SARL, Budget, FittedAttack, RandomAttack, RobustSarsa, fitting
from sb3_prune_robust.attacks.fitting import NothingToLearnError
from sb3_prune_robust.attacks.registry import is_known
from sb3_prune_robust.evaluation import held_out
from sb3_prune_robust.evaluation.cells import Agent, play_cell
from sb3_prune_robust.evaluation.frontier import frontier
from sb3_prune_robust.evaluation.held_out import HeldOut, Watch
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.evaluation.rollouts import NoAttackError, rollout
from sb3_prune_robust.evaluation.settings import Settings
from sb3_prune_robust.evaluation.store import Store
from sb3_prune_robust.evaluation.tables import interval

STEPS = Budget(steps=600)


def test_the_minimum_of_the_means_and_every_attacks_own_number(cartpole_model: PPO) -> None:
    venv = make_env("CartPole-v1", 8)
    found = worst_case(cartpole_model, venv, ["mad", "pa-ad", RandomAttack(0.3, seed=0)], 0.3, 8, budget=STEPS)
    means = {name: one.returns.mean() for name, one in found.episodes.items()}
    assert list(means) == ["mad", "pa-ad", "RandomAttack-2"]
    assert found.mean == min(means.values()) == means[found.attack]
    clean = rollout(cartpole_model, venv, 8, deterministic=True)
    np.testing.assert_array_equal(found.clean.returns, clean.returns)
    assert means["mad"] < 0.7 * clean.returns.mean()
    assert set(found.cost) == {"pa-ad"} and 0 < found.cost["pa-ad"].steps and found.cost["pa-ad"].seconds > 0
    assert set(found.play_seconds) == set(found.attacks) == set(means) and not found.skipped
    assert found.interval().mean == found.mean


@pytest.mark.parametrize("name", ["strong", ["strong"]])
def test_suites(cartpole_model: PPO, name: Any) -> None:
    found = worst_case(cartpole_model, make_env("CartPole-v1", 4), name, 0.1, 4, budget=Budget(steps=200))
    assert {"random", "mad", "pa-ad"} <= set(found.episodes) and "pa-ad" in found.cost


@pytest.mark.parametrize("attacks", [[], "nope", ["nope"], ["mad", "mad"], [3], "mad#0", "mad#1", "mad#02", MAD, [MAD], 3])
def test_bad_attacks_are_named(cartpole_model: PPO, attacks: Any) -> None:
    with pytest.raises(ValueError, match="attacks"):
        worst_case(cartpole_model, make_env("CartPole-v1", 1), attacks, eps=0.1, n_episodes=1)


def test_numbers_behind_a_name_start_at_2() -> None:
    assert is_known("mad#2") and is_known("mad#10")
    assert not any(is_known(name) for name in ("mad#", "mad#0", "mad#1", "mad#01", "mad#02", "mad#x"))


def test_one_attack_object_need_not_be_in_a_list(cartpole_model: PPO) -> None:
    assert set(
        worst_case(cartpole_model, make_env("CartPole-v1", 2), MAD(0.1, seed=0, deterministic=True), n_episodes=2).episodes
    ) == {"MAD-0"}


@pytest.mark.parametrize(
    ("attacks", "eps"),
    [("mad", 0.0), ("mad", [0.0] * 4), (["pa-ad"], 0), (MAD(0.0), 0.1), ([RandomAttack(0.1), PAAD(0.0)], 0.1)],
)
def test_clean_numbers_never_stand_under_the_name_of_an_attack(cartpole_model: PPO, attacks: Any, eps: Any) -> None:
    with pytest.raises(ValueError, match=r"^eps of .* is 0 everywhere"):
        worst_case(cartpole_model, make_env("CartPole-v1", 1), attacks, eps, 1)
    own = MAD([0.1, 0.0, 0.0, 0.0], seed=0, deterministic=True)
    worst_case(cartpole_model, make_env("CartPole-v1", 1), own, 0.0, 1)  # its own eps holds


@pytest.mark.parametrize("kind", [PAAD, MAD])
def test_an_attack_is_not_made_for_another_victim_than_is_played(cartpole_model: PPO, kind: Any) -> None:
    """MAD on a categorical: the divergence of samples, or the margin of the choice."""
    venv = make_env("CartPole-v1", 4)
    for mode in (False, True):
        with pytest.raises(ValueError, match=f"^attacks: {kind.__name__}-0 is made .* deterministic={mode}, the call's"):
            worst_case(cartpole_model, venv, [kind(0.1, deterministic=mode)], n_episodes=1, deterministic=not mode)
    worst_case(cartpole_model, venv, RandomAttack(0.3, deterministic=False), n_episodes=1)
    fitted = PAAD(0.1, seed=0, deterministic=False).fit(cartpole_model, venv, STEPS)
    worst_case(cartpole_model, venv, fitted, n_episodes=1)


class AlwaysUp(gym.Wrapper[Any, Any, Any, Any]):
    """Never fails: ends by its time limit alone."""

    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = self.env.step(action)
        self.left -= 1
        return np.clip(observation, -0.2, 0.2), reward, False, self.left == 0, info

    def reset(self, **kwargs: Any) -> Any:
        self.left = 20
        return self.env.reset(**kwargs)


def test_an_attack_that_finds_nothing_to_learn_is_skipped_and_not_fitted_again(
    cartpole_model: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = make_env(lambda: AlwaysUp(gym.make("CartPole-v1").unwrapped), 4)
    attack = RobustSarsa(0.1, seed=0, deterministic=True)
    arguments: dict[str, Any] = dict(
        attacks=[attack, MAD(0.1, seed=0, deterministic=True)], n_episodes=2, budget=STEPS, folder=tmp_path
    )
    found = worst_case(cartpole_model, venv, **arguments)
    assert set(found.skipped) == {"RobustSarsa-0"} and "worth the same" in found.skipped["RobustSarsa-0"]
    assert set(found.episodes) == {"MAD-1"} and not found.cost
    assert not list(tmp_path.glob("fit-*"))
    monkeypatch.setattr(FittedAttack, "fit", None)
    again = worst_case(cartpole_model, venv, **arguments)
    assert again.skipped == found.skipped and set(again.episodes) == {"MAD-1"}


def test_so_it_is_in_an_audit(cartpole_model: PPO) -> None:
    venv = make_env(lambda: AlwaysUp(gym.make("CartPole-v1").unwrapped), 4)
    agent = Agent("a", {0.0: cartpole_model.policy}, venv)
    settings = Settings(0.1, attacks=("random", "robust-sarsa"), n_episodes=2, attack_budget=STEPS)
    played: list[None] = []
    cell = play_cell([agent], 0.0, settings, "deterministic", Watch(lambda: played.append(None)), Store(None))
    assert set(cell.attacked) == {"random"} and set(cell.skipped) == {"robust-sarsa"} and not cell.costs["random"]
    assert len(played) == 3 * 2


def test_an_attack_that_finds_nothing_on_one_agent_stays_for_the_others(
    cartpole_model: PPO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the minimum of the others would lack an attack, at this sparsity and not at another."""
    agents = [Agent(name, {0.0: cartpole_model.policy}, make_env("CartPole-v1", 4)) for name in ("a", "b")]
    settings = Settings(0.3, attacks=("random", "mad"), n_episodes=4, modes=("deterministic",))
    named = HeldOut.named

    def nothing_on_b(self: HeldOut, name: str, *how: Any) -> Any:
        if name == "mad" and self.venv is agents[1].venv:
            raise NothingToLearnError("every action is worth the same")
        return named(self, name, *how)

    monkeypatch.setattr(HeldOut, "named", nothing_on_b)
    cell = play_cell(agents, 0.0, settings, "deterministic", Watch(), Store(None))
    assert not cell.skipped and cell.nothing_found == {"mad": {"b": "every action is worth the same"}}
    assert cell.attacked["mad"][0].perturbed == 1 and cell.attacked["mad"][1] is cell.clean[1]
    (point,) = frontier(agents, settings)["deterministic"]["points"]
    assert point["attacks"]["mad"]["nothing_found"].keys() == {"b"} and point["attacks"]["random"]["nothing_found"] is None
    assert interval(point["attacks"]["mad"]).endswith("] (nothing found on b)")
    alone = cell.attacked["mad"][0].returns.mean()
    assert point["worst"]["by_agent"][0] == "mad" and alone < cell.attacked["random"][0].returns.mean()
    assert point["worst"]["mean"] == pytest.approx((alone + cell.attacked["random"][1].returns.mean()) / 2)


def test_a_fitted_attack_is_used_as_it_is_and_an_unfitted_one_is_fitted(
    cartpole_model: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = make_env("CartPole-v1", 4)
    new = PAAD(0.3, seed=1, deterministic=True)
    found = worst_case(cartpole_model, venv, [new], n_episodes=4, budget=STEPS)
    fitted = found.attacks["PAAD-0"]
    assert new.cost is None and fitted.cost is not None and fitted.eps == 0.3
    fitted.save(tmp_path / "shared.npz")
    monkeypatch.setattr(FittedAttack, "fit", None)  # fitting again would fail
    again = worst_case(cartpole_model, venv, [PAAD.load(tmp_path / "shared.npz")], n_episodes=4)
    assert again.mean == found.mean and again.cost == found.cost


def test_one_attack_that_does_nothing_is_skipped_with_its_reason(cartpole_model: PPO) -> None:
    venv = make_env("CartPole-v1", 2)
    found = worst_case(cartpole_model, venv, [RandomAttack(1e-30), MAD(0.1, seed=0, deterministic=True)], n_episodes=2)
    assert set(found.skipped) == {"RandomAttack-0"} and "unchanged" in found.skipped["RandomAttack-0"]
    assert set(found.episodes) == {"MAD-1"}
    with pytest.raises(NoAttackError, match="no attack changed any observation"):
        worst_case(cartpole_model, venv, [RandomAttack(1e-30)], n_episodes=2)


class Watched(gym.Wrapper[Any, Any, Any, Any]):
    """Notes the seeds of its resets."""

    seeds: set[int]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.seeds.add(seed)
        return self.env.reset(seed=seed, options=options)


@pytest.mark.parametrize("attack", ["pa-ad", "sa-rl", "pa-ad#3"])
def test_no_episode_is_both_fitted_on_and_reported(cartpole_model: PPO, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "seeds", set(), raising=False)
    venv = make_env(lambda: Watched(gym.make("CartPole-v1")), 4)
    worst_case(cartpole_model, venv, attack, 0.1, 6, seed=40, budget=STEPS)
    reported = {seed for seed in Watched.seeds if seed < held_out.FIRST_SEED_OF_FITTING}
    assert reported == set(range(40, 46)) and Watched.seeds - reported
    assert held_out.FIRST_SEED_OF_FITTING is fitting.FIRST_SEED_OF_FITTING


@pytest.mark.parametrize("seed", [-1, 2**30 - 1, 2**30, 2**31])
def test_seeds_of_fitting_are_refused(cartpole_model: PPO, seed: int) -> None:
    with pytest.raises(ValueError, match="seed must be at least 0, and seed \\+ episodes at most"):
        worst_case(cartpole_model, make_env("CartPole-v1", 1), "random", 0.1, 2, seed=seed)


def test_what_is_finished_is_not_done_again(cartpole_model: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv, attacks = make_env("CartPole-v1", 4), ["random", "pa-ad", SARL(0.1, seed=0, deterministic=True)]
    arguments: dict[str, Any] = dict(eps=0.1, n_episodes=4, budget=STEPS, folder=tmp_path)
    real, calls = held_out.rollout, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["attack"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(held_out, "rollout", killed)
    with pytest.raises(KeyboardInterrupt):
        worst_case(cartpole_model, venv, attacks, **arguments)  # pa-ad is fitted, not played
    found = worst_case(cartpole_model, venv, attacks, **arguments)
    assert [type(attack).__name__ for attack in calls] == ["NoneType", "RandomAttack", "PAAD", "PAAD", "SARL"]
    monkeypatch.setattr(FittedAttack, "fit", None)
    again = worst_case(cartpole_model, venv, attacks, **arguments)
    assert len(calls) == 5 and again.cost == found.cost and again.play_seconds == found.play_seconds
    monkeypatch.undo()
    whole = worst_case(cartpole_model, venv, attacks, **{**arguments, "folder": None})
    for one in (found, again):
        assert (one.mean, one.attack) == (whole.mean, whole.attack)
        for name, episodes in whole.episodes.items():
            np.testing.assert_array_equal(one.episodes[name].returns, episodes.returns)


def test_a_model_and_an_environment_that_do_not_fit_together_are_refused(cartpole_model: PPO) -> None:
    model = PPO("MlpPolicy", VecNormalize(make_env("CartPole-v1", 1)), device="cpu")
    with pytest.raises(ValueError, match="trained on normalised observations"):
        worst_case(model, make_env("CartPole-v1", 1), "random", 0.1, 1)
    with pytest.raises(ValueError, match="observations"):
        worst_case(cartpole_model, make_env("Acrobot-v1", 1), "random", 0.1, 1)


def test_a_progress_bar_shows_what_is_fitted(
    cartpole_model: PPO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import functools

    from sb3_prune_robust.evaluation import bars

    monkeypatch.setattr(bars, "tqdm", functools.partial(bars.tqdm, mininterval=0, miniters=0))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    worst_case(cartpole_model, make_env("CartPole-v1", 2), "pa-ad", 0.1, 2, budget=STEPS, progress_bar=True)
    shown = capsys.readouterr().err
    assert "fitting pa-ad: 100%" in shown and "600/600" in shown and "episodes: 100%" in shown
