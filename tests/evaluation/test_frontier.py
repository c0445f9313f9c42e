from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from sb3_prune_robust.attacks import RandomAttack
from sb3_prune_robust.certificates import reward_range
from sb3_prune_robust.evaluation.audit import raw_eps
from sb3_prune_robust.evaluation.frontier import Agent, Settings, frontier, n_rollouts, pruned_copies, worst_case
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.evaluation.rollouts import rollout
from sb3_prune_robust.pruning import sparsity


def test_pruned_copies_are_nested_and_leave_the_model_alone(cartpole_model: PPO) -> None:
    before = {name: value.clone() for name, value in cartpole_model.policy.state_dict().items()}
    copies = pruned_copies(cartpole_model, (0.8, 0.5))
    assert list(copies) == [0.0, 0.5, 0.8]
    assert [sparsity(copy)["actor"] for copy in copies.values()] == pytest.approx([0.0, 0.5, 0.8], abs=1e-3)
    layers = [dict(copy.named_parameters())["mlp_extractor.policy_net.2.weight"] for copy in copies.values()]
    assert bool(((layers[1] == 0) <= (layers[2] == 0)).all())
    after = cartpole_model.policy.state_dict()
    assert all(th.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_sparsities_outside_their_range_are_refused(cartpole_model: PPO, value: float) -> None:
    with pytest.raises(ValueError, match=r"sparsities must lie in \[0, 1\)"):
        pruned_copies(cartpole_model, (value,))


@pytest.fixture(scope="module")
def result(cartpole_model: PPO) -> dict[str, Any]:
    agent = Agent("a", pruned_copies(cartpole_model, (0.9,)), make_env("CartPole-v1", 6))
    settings = Settings(0.05, attacks=("random", "mad"), n_episodes=6, rewards=reward_range("CartPole-v1"), horizon=500)
    played: list[None] = []
    outcome = frontier([agent], settings, on_episode=lambda: played.append(None))
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
        ({"n_episodes": 0}, "episodes must be at least 1"),
        ({"gamma": 1.5}, "gamma"),
        ({"confidence": 1.0}, "confidence"),
        ({"modes": ("sleepy",)}, "modes"),
    ],
)
def test_bad_settings_name_the_argument(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**{"eps": 0.1, **changes})


def test_worst_case_is_the_minimum_and_below_clean(cartpole_model: PPO) -> None:
    venv = make_env("CartPole-v1", 8)
    worst, results = worst_case(cartpole_model, venv, ["mad", RandomAttack(0.3, seed=0)], eps=0.3, n_episodes=8)
    assert worst == min(episodes.returns.mean() for episodes in results.values())
    clean = rollout(cartpole_model, venv, 8, deterministic=True).returns
    assert results["mad"].returns.mean() < 0.7 * clean.mean()
    assert len(results) == 2


@pytest.mark.parametrize("attacks", [[], "mad", ["nope"]])
def test_worst_case_refuses_bad_attacks(cartpole_model: PPO, attacks: Any) -> None:
    with pytest.raises(ValueError, match="attacks"):
        worst_case(cartpole_model, make_env("CartPole-v1", 1), attacks, eps=0.1, n_episodes=1)


def test_raw_eps_is_in_the_environments_units() -> None:
    venv = VecNormalize(make_env("CartPole-v1", 1))
    assert raw_eps(venv.venv, 0.1) is None
    venv.obs_rms.var = np.array([4.0, 1.0, 0.25, 100.0])
    assert raw_eps(venv, 0.1) == pytest.approx([0.2, 0.1, 0.05, 1.0], rel=1e-6)
    shifted = venv.normalize_obs(np.array([[0.2, 0.1, 0.05, 1.0]])) - venv.normalize_obs(np.zeros((1, 4)))
    np.testing.assert_allclose(shifted, 0.1, rtol=1e-5)
