"""A study's YAML file: the grid it asks for, and what it is refused for."""

import pytest
import yaml
from small import SMALL, changed

from sb3_prune_robust.attacks import Budget
from sb3_prune_robust.study.config import check_environments, make_study, read_study


def test_one_dense_agent_is_the_pair_of_every_way_of_pruning():
    grid = [
        {"sparsities": [0, 0.5, 0.9], "seeds": [0, 1], "scores": ["magnitude", "random"], "schedules": ["linear", "micro"]},
        {"sparsities": [0, 0.5], "seeds": [0, 2]},
    ]
    cells = make_study(changed(grid=grid)).cells
    dense = [cell for cell in cells if cell.sparsity == 0]
    assert [cell.seed for cell in dense] == [0, 1, 2] and {cell.scores for cell in dense} == {"none"}
    assert len(cells) == len(set(cells)) == 3 + 2 * 2 * 2 * 2 + 2  # the second block adds two pruned agents and a dense one
    assert cells[-1].name == "CartPole-v1-ppo-plain-magnitude-erk-polynomial-0.5-seed2"


def test_axes_that_are_left_out_have_defaults():
    cells = make_study(SMALL).cells
    assert {(cell.algorithm, cell.policy) for cell in cells} == {("ppo", "plain")}
    assert {cell.axes()["distribution"] for cell in cells} == {"none", "erk"}


def test_budgets():
    study = make_study(changed(strong={"attacks": ["strong"], "attack_seconds": 60, "attack_steps": 1000}))
    assert study.strong.budget == Budget(1000, 60) and study.evaluation.budget is None


ENVIRONMENT = SMALL["environments"]["CartPole-v1"]


@pytest.mark.parametrize(
    "sections, said",
    [
        ({"name": None}, "name is missing"),
        ({"seeds": [1]}, "section 'seeds' is unknown"),
        ({"environments": {"CartPole-v1": {**ENVIRONMENT, "eps": [0]}}}, "eps must be one or more positive"),
        ({"environments": {"CartPole-v1": {**ENVIRONMENT, "eps": [0.1, 0.1]}}}, "each once"),
        ({"environments": {"CartPole-v1": {**ENVIRONMENT, "eps": True}}}, "eps must be"),
        ({"environments": {"CartPole-v1": {**ENVIRONMENT, "clip_rewards": [5, 0]}}}, "clip_rewards must be two numbers"),
        ({"environments": {"CartPole-v1": {**ENVIRONMENT, "clip_rewards": 5}}}, "clip_rewards must be two numbers"),
        ({"environments": {"CartPole-v1": {**ENVIRONMENT, "entry": []}}}, "entry must be a mapping"),
        ({"environments": {"CartPole-v1": {"entry": {"n_timesteps": "1e6"}, "eps": 1}}}, "n_timesteps must be a.*got '1e6'"),
        ({"environments": {"CartPole-v1": {"entry": {"n_timesteps": float("inf")}, "eps": 1}}}, "n_timesteps must be"),
        ({"environments": {"CartPole-v1": {"entry": {"n_timesteps": True}, "eps": 1}}}, "n_timesteps must be"),
        ({"environments": ["CartPole-v1"]}, "environments must be a mapping"),
        ({"algorithms": ["ppo"]}, "algorithms must be a mapping"),
        ({"algorithms": {"ppo": 3}}, "algorithms: ppo must be a mapping"),
        ({"algorithms": {"ppo": {"callback": []}}}, "algorithms: ppo: callback is set by the study"),
        ({"algorithms": {"sappo": {"eps": 0.3}}}, "algorithms: sappo: eps is set by the study"),
        ({"policies": {"../x": {}}}, "each name must be of letters"),
        ({"policies": {1: {}}}, "each name must be of letters"),
        ({"policies": {"none": {}}}, "not 'none'"),
        ({"grid": 5}, "grid must be a list of blocks"),
        ({"grid": [{"sparsities": [False], "seeds": [0]}]}, "every sparsity must lie"),
        ({"grid": [{"sparsities": [0.5], "seeds": [0], "scores": [["random"]]}]}, "is unknown"),
        ({"evaluation": {"n_episodes": 3}}, "evaluation: attacks is missing"),
        ({"evaluation": {**SMALL["evaluation"], "attacks": "mad"}}, "attacks must be a list of names"),
        ({"evaluation": {**SMALL["evaluation"], "attack_steps": "1e5"}}, "attack_steps must be a whole number"),
        ({"evaluation": {**SMALL["evaluation"], "attack_seconds": "9"}}, "attack_seconds must be a number"),
        ({"strong": {}}, "strong: attacks is missing"),
        ({"environments": {"CartPole-v1": {**ENVIRONMENT, "eps": []}}}, "eps must be"),
        ({"environments": {"CartPole-v1": {**ENVIRONMENT, "epsilon": 1}}}, "'epsilon' is unknown"),
        ({"environments": {"CartPole-v1": {"eps": 0.1}}}, "entry"),
        ({"environments": {"CartPole-v1": {"entry": {"n_steps": 8}, "eps": 0.1}}}, "n_timesteps is missing"),
        ({"environments": {"CartPole-v1": {"entry": {"n_timesteps": 8, "policy": "A"}, "eps": 0.1}}}, "policy is set by"),
        ({"environments": {"CartPole-v1": {"entry": {"n_timesteps": 8, "callback": []}, "eps": 0.1}}}, "callback is set by"),
        ({"algorithms": {"papo": {}}}, "'papo' is unknown, maybe you meant"),
        ({"policies": {"mine": {"bound": 3}}}, "'bound' is unknown"),
        ({"grid": [{"sparsities": [0]}]}, "seeds must be a list in each block"),
        ({"grid": [{"sparsities": 0.5, "seeds": [0]}]}, "sparsities must be a list"),
        ({"grid": [{"sparsities": [1.0], "seeds": [0]}]}, r"every sparsity must lie in \[0, 1\), got 1.0"),
        ({"grid": [{"sparsities": [0.5], "seeds": [-1]}]}, "every seed must be a whole number"),
        ({"grid": [{"sparsities": [0.5], "seeds": [0], "score": ["random"]}]}, "'score' is unknown, maybe you meant scores"),
        ({"grid": [{"sparsities": [0.5], "seeds": [0], "scores": ["size"]}]}, "scores: 'size' is unknown"),
        ({"grid": [{"sparsities": [0.5], "seeds": [0], "policies": ["bounded"]}]}, "policies: 'bounded' is unknown"),
        ({"grid": [{"sparsities": [0.5], "seeds": [0], "algorithms": ["sappo"]}]}, "algorithms: 'sappo' is unknown"),
        ({"grid": [3]}, "each block, of .* must be a mapping"),
        ({"evaluation": {**SMALL["evaluation"], "attacks": ["madd"]}}, "evaluation: attacks: 'madd' is unknown"),
        ({"evaluation": {**SMALL["evaluation"], "n_episodes": 0}}, "evaluation: n_episodes must be a whole number"),
        ({"evaluation": {**SMALL["evaluation"], "norm": "l1"}}, "norm must be"),
        ({"strong": {"attacks": ["strong"], "attack_seconds": -1}}, "strong: budget: seconds=-1"),
        ({"strong": ["strong"]}, "strong must be a mapping"),
        ({"confidence": 0.3}, "confidence must lie in"),
    ],
)
def test_what_is_wrong_is_named(sections, said, tmp_path):
    path = tmp_path / "study.yml"
    path.write_text(yaml.safe_dump(changed(**sections)))
    with pytest.raises(ValueError, match=said) as caught:
        read_study(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("env, said", [("CartPol-v1", "CartPol-v1"), ("FrozenLake-v1", "v1: its observations are Discrete")])
def test_environments_are_made_before_a_run_and_not_to_read_a_study(env, said):
    study = make_study(changed(environments={env: ENVIRONMENT}))
    with pytest.raises(ValueError, match=said):
        check_environments(study)


@pytest.mark.parametrize("text, said", [("{", "is not YAML"), ("3", "must be a mapping"), (None, "cannot be read")])
def test_what_is_no_study_is_refused(text, said, tmp_path):
    path = tmp_path / "study.yml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_study(path)
