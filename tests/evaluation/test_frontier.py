from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from sb3_prune_robust.attacks import Budget
from sb3_prune_robust.certificates import reward_range
from sb3_prune_robust.evaluation.audit import raw_eps
from sb3_prune_robust.evaluation.frontier import Agent, Settings, fitting_total, frontier, n_rollouts, pruned_copies
from sb3_prune_robust.evaluation.held_out import Watch
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.pruning import prune_policy, sparsity


def test_pruned_copies_are_nested_and_leave_the_model_alone(cartpole_model: PPO) -> None:
    before = {name: value.clone() for name, value in cartpole_model.policy.state_dict().items()}
    copies = pruned_copies(cartpole_model, (0.8, 0.5))
    assert list(copies) == [0.0, 0.5, 0.8]
    assert [sparsity(copy)["actor"] for copy in copies.values()] == pytest.approx([0.0, 0.5, 0.8], abs=1e-3)
    layers = [dict(copy.named_parameters())["mlp_extractor.policy_net.2.weight"] for copy in copies.values()]
    assert bool(((layers[1] == 0) <= (layers[2] == 0)).all())
    after = cartpole_model.policy.state_dict()
    assert all(th.equal(value, after[name]) for name, value in before.items())


def test_levels_that_the_agent_has_already_are_left_out(cartpole_model: PPO, tmp_path: Path) -> None:
    pruned = PPO.load(_saved(cartpole_model, tmp_path))
    prune_policy(pruned, 0.7)
    with pytest.warns(UserWarning, match=r"^sparsities: 0\.[37] is left out, there are as many") as caught:
        copies = pruned_copies(pruned, (0.0, 0.3, 0.7, 0.8))
    assert len(caught) == 2 and list(copies) == [0.0, 0.8]
    assert [sparsity(copy)["actor"] for copy in copies.values()] == pytest.approx([0.7, 0.8], abs=1e-3)


def _saved(model: PPO, folder: Path) -> Path:
    model.save(folder / "model")
    return folder / "model.zip"


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_sparsities_outside_their_range_are_refused(cartpole_model: PPO, value: float) -> None:
    with pytest.raises(ValueError, match=r"sparsities must lie in \[0, 1\)"):
        pruned_copies(cartpole_model, (value,))


@pytest.fixture(scope="module")
def result(cartpole_model: PPO) -> dict[str, Any]:
    agent = Agent("a", pruned_copies(cartpole_model, (0.9,)), make_env("CartPole-v1", 6))
    settings = Settings(0.05, attacks=("random", "mad"), n_episodes=6, rewards=reward_range("CartPole-v1"), horizon=500)
    played: list[None] = []
    outcome = frontier([agent], settings, Watch(lambda: played.append(None)))
    assert len(played) == n_rollouts([agent], settings) == 2 * (2 * 3 + 4) * 6  # 4 further radii
    return outcome


def test_the_terms_of_regret_add_up(result: dict[str, Any]) -> None:
    for mode in result.values():
        for point in mode["points"]:
            terms = point["regret"]["returns"]
            total = terms["clean_task"] + terms["pruning_loss"]["mean"] + terms["robustness"]["mean"]
            assert total == pytest.approx(mode["best_clean"]["mean"] - point["worst"]["mean"])


def test_the_worst_attack_is_the_lowest_mean(result: dict[str, Any]) -> None:
    for mode in result.values():
        for point in mode["points"]:
            means = {name: np.mean(cell["episodes"]["returns"]) for name, cell in point["attacks"].items()}
            assert point["worst"]["mean"] == pytest.approx(min(means.values()))
            assert point["gap"] == pytest.approx(np.mean(point["clean"]["episodes"]["returns"]) - min(means.values()))


def test_certified_bounds_hold_for_the_attacks_played(result: dict[str, Any]) -> None:
    assert all(point["certificate"] is None for point in result["deterministic"]["points"])
    for point in result["stochastic"]["points"]:
        certificate = point["certificate"]["agents"][0]
        regret = point["regret"]["discounted"]
        assert regret["robustness"]["mean"] <= certificate["attack_loss"]["bound"]
        assert regret["pruning_loss"]["mean"] <= (certificate["pruning_loss"] or {"bound": 0})["bound"]
        assert certificate["return"]["lower"] <= point["clean"]["discounted"]["mean"]
        assert 0 < certificate["visitation"]["mean"] <= certificate["visitation"]["upper"] <= 1
        tv = point["certificate"]["tv"]
        assert tv["mean"] <= min(tv["by_method"].values()) * (1 + 1e-9)


def test_bound_abs_falls_with_sparsity(result: dict[str, Any]) -> None:
    dense, pruned = (point["certificate"]["tv"]["by_method"]["abs"] for point in result["stochastic"]["points"])
    assert pruned < dense


def test_no_reward_range_no_certified_return(cartpole_model: PPO) -> None:
    agent = Agent("a", pruned_copies(cartpole_model, ()), make_env("CartPole-v1", 2))
    points = frontier([agent], Settings(0.05, attacks=("random",), n_episodes=2, modes=("stochastic",)))["stochastic"][
        "points"
    ]
    certificate = points[0]["certificate"]["agents"][0]
    assert certificate["attack_loss"] is certificate["return"] is None and certificate["visitation"] is not None
    assert "no range" in points[0]["certificate"]["rewards"]


def test_a_policy_that_no_formula_covers_is_measured_and_not_certified() -> None:
    model = PPO("MlpPolicy", "InvertedPendulum-v5", use_sde=True, device="cpu", seed=0)
    agent = Agent("gsde", pruned_copies(model, ()), make_env("InvertedPendulum-v5", 2))
    points = frontier([agent], Settings(0.05, attacks=("random",), n_episodes=2, modes=("stochastic",)))["stochastic"][
        "points"
    ]
    assert "gSDE" in points[0]["certificate"]["not_certified"]


def test_several_agents_are_the_unit_of_inference(cartpole_model: PPO) -> None:
    agents = [Agent(name, pruned_copies(cartpole_model, ()), make_env("CartPole-v1", 4)) for name in "ab"]
    point = frontier(agents, Settings(0.05, attacks=("random",), n_episodes=4, modes=("deterministic",)))["deterministic"][
        "points"
    ][0]
    assert point["clean"]["n"] == 2 and np.shape(point["clean"]["episodes"]["returns"]) == (2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": -0.1}, "eps must be"),
        ({"eps": float("nan")}, "eps must be"),
        ({"norm": "l3"}, "norm 'l3' is unknown; known: linf, l2"),
        ({"attacks": ("nope",)}, "attacks: 'nope' is unknown; known: random, fgsm"),
        ({"attacks": ()}, "attacks"),
        ({"attacks": ("mad", "mad")}, "attacks: each at most once"),
        ({"attacks": ("mad#0",)}, "attacks: 'mad#0' is unknown"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**30 - 49}, "seed.*attacks are fitted on the seeds from there on"),
        ({"n_episodes": 0}, "episodes must be at least 1"),
        ({"gamma": 1.5}, "gamma"),
        ({"confidence": 1.0}, "confidence"),
        ({"modes": ("sleepy",)}, "modes"),
    ],
)
def test_bad_settings_name_the_argument(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**{"eps": 0.1, **changes})


def test_several_agents_have_a_worst_attack_each(cartpole_model: PPO) -> None:
    other = PPO("MlpPolicy", "CartPole-v1", n_steps=512, learning_rate=1e-3, seed=5, device="cpu").learn(4_000)
    agents = [
        Agent(str(i), pruned_copies(m, (0.8,)), make_env("CartPole-v1", 4)) for i, m in enumerate((cartpole_model, other))
    ]
    settings = Settings(0.1, attacks=("random", "mad", "critic"), n_episodes=4, modes=("deterministic",))
    for mode in frontier(agents, settings).values():
        for point in mode["points"]:
            means = {name: np.mean(cell["episodes"]["returns"], axis=1) for name, cell in point["attacks"].items()}
            lowest = np.min(list(means.values()), axis=0)
            assert point["worst"]["mean"] == pytest.approx(lowest.mean())
            assert [means[name][i] for i, name in enumerate(point["worst"]["by_agent"])] == pytest.approx(lowest)
            names = set(point["worst"]["by_agent"])
            assert point["worst"]["attack"] == (names.pop() if len(names) == 1 else None)
            clean = np.mean(point["clean"]["episodes"]["returns"], axis=1)
            assert point["regret"]["returns"]["robustness"]["mean"] == pytest.approx((clean - lowest).mean())


def test_learned_attacks_are_fitted_on_each_agent_at_each_sparsity_in_each_mode(cartpole_model: PPO) -> None:
    agent = Agent("a", pruned_copies(cartpole_model, (0.9,)), make_env("CartPole-v1", 4))
    settings = Settings(
        0.1,
        attacks=("pa-ad", "random", "sa-rl#2"),
        n_episodes=4,
        rewards=reward_range("CartPole-v1"),
        horizon=500,
        attack_budget=Budget(steps=600),
    )
    told: dict[str, float] = {}
    played: list[None] = []
    watch = Watch(lambda: played.append(None), lambda what, amount: told.__setitem__(what, told.get(what, 0.0) + amount))
    modes = frontier([agent], settings, watch)
    assert len(played) == n_rollouts([agent], settings)
    assert sum(told.values()) == pytest.approx(fitting_total([agent], settings)) == 2 * 2 * 2 * 600
    assert {"pa-ad on a at 0%, stochastic", "sa-rl#2 on a at 90%, deterministic"} <= set(told) and len(told) == 8
    for mode in modes.values():
        for point in mode["points"]:
            learned, random = point["attacks"]["pa-ad"], point["attacks"]["random"]
            assert learned["learned"] and 0 < learned["cost"][0]["steps"] and 0 < learned["cost"][0]["seconds"]
            assert learned["budget"] == {"steps": 600, "seconds": None}
            assert (random["learned"], random["cost"], random["budget"]) == (False, None, None)
    for point in modes["stochastic"]["points"]:  # at the other radii a learned attack has nothing to say
        curve = point["certificate"]["certified_return"]["curve"]
        assert [at["attack"] for at in curve] == ["random"] * 4 + [point["worst"]["attack"]]
        assert curve[-1]["attack_by_agent"] == point["worst"]["by_agent"]


def test_without_eps_nothing_is_fitted(cartpole_model: PPO) -> None:
    agent = Agent("a", pruned_copies(cartpole_model, ()), make_env("CartPole-v1", 2))
    settings = Settings(0.0, attacks=("pa-ad",), n_episodes=2, modes=("deterministic",))
    assert fitting_total([agent], settings) == 0
    point = frontier([agent], settings)["deterministic"]["points"][0]
    assert point["gap"] == 0 and point["attacks"]["pa-ad"]["cost"] is None


def test_suites_are_written_out() -> None:
    attacks = Settings(0.1, attacks=("fgsm", "strong", "random")).attacks
    assert attacks[0] == "fgsm" and {"random", "pa-ad", "mad"} <= set(attacks) and len(set(attacks)) == len(attacks)


def test_raw_eps_is_in_the_environments_units() -> None:
    venv = VecNormalize(make_env("CartPole-v1", 1))
    assert raw_eps(venv.venv, 0.1) is None
    venv.obs_rms.var = np.array([4.0, 1.0, 0.25, 100.0])
    assert raw_eps(venv, 0.1) == pytest.approx([0.2, 0.1, 0.05, 1.0], rel=1e-6)
    shifted = venv.normalize_obs(np.array([[0.2, 0.1, 0.05, 1.0]])) - venv.normalize_obs(np.zeros((1, 4)))
    np.testing.assert_allclose(shifted, 0.1, rtol=1e-5)
