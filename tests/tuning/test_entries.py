"""What of an entry is ours, and the entry with other values."""

import copy

import pytest
from optuna.trial import FixedTrial
from torch import nn

from sb3_prune_robust.tuning.entries import as_dict, changed_entry, is_ours, lipschitz_of, pruning_arguments, with_pruning
from sb3_prune_robust.tuning.space import Space, baseline, rate_like, space_of, split_rate

PRUNE = "sb3_prune_robust.pruning.PruningCallback"
GAUSSIAN = "sb3_prune_robust.policies.LipschitzGaussianPolicy"
ENTRY = {
    "policy": GAUSSIAN,
    "policy_kwargs": {"net_arch": [32]},
    "learning_rate": "lin_0.001",
    "callback": ["rl_zoo3.callbacks.RawStatisticsCallback", {PRUNE: {"final_sparsity": 0.7, "scores": "random"}}],
}


def test_lipschitz_of_an_entry():
    assert lipschitz_of(GAUSSIAN, None) == 20.0  # the policy's default
    assert lipschitz_of(GAUSSIAN, "dict(lipschitz=3.5, activation_fn=nn.ReLU)") == 3.5
    assert lipschitz_of(GAUSSIAN, {"lipschitz": None}) is None
    assert lipschitz_of("sb3_prune_robust.policies.LipschitzDQNPolicy", {"lipschitz": 7.0}) == 7.0
    assert lipschitz_of("MlpPolicy", {"lipschitz": 3.5}) is None
    assert lipschitz_of("stable_baselines3.ppo.MlpPolicy", None) is None
    assert is_ours(GAUSSIAN) and not is_ours("MlpPolicy")


def test_strings_are_evaluated_as_the_zoo_does():
    assert as_dict("dict(activation_fn=nn.ReLU)") == {"activation_fn": nn.ReLU}
    assert as_dict(None) == {}


def test_pruning_arguments():
    assert pruning_arguments(PRUNE)["schedule"] == "polynomial"  # the callback's default
    found = pruning_arguments(ENTRY["callback"])
    assert (found["final_sparsity"], found["scores"], found["distribution"]) == (0.7, "random", "erk")
    for callbacks in (None, [], "rl_zoo3.callbacks.RawStatisticsCallback"):
        assert pruning_arguments(callbacks) is None


def test_sparsities_of_several_targets_are_not_tuned_as_one():
    both = {PRUNE: {"final_sparsity": {"actor": 0.8, "critic": 0.4}, "targets": ["actor", "critic"]}}
    with pytest.raises(ValueError, match=r"callback: one final_sparsity, .* can be tuned; the entry has \{'actor': 0.8"):
        pruning_arguments([both])
    two = [{PRUNE: {"final_sparsity": 0.9}}, {PRUNE: {"final_sparsity": 0.3, "targets": ["critic"]}}]
    with pytest.raises(ValueError, match=r"the entry has 0\.9, 0\.3"):
        pruning_arguments(two)


def test_changed_entry_keeps_the_rest():
    before = copy.deepcopy(ENTRY)
    params = {"lipschitz": 5.0, "final_sparsity": 0.9, "schedule": "micro", "learning_rate": 0.01}
    changed = changed_entry(ENTRY, params)
    assert before == ENTRY
    assert changed == {
        "policy": GAUSSIAN,
        "policy_kwargs": {"net_arch": [32], "lipschitz": 5.0},
        "learning_rate": 0.01,
        "callback": [
            "rl_zoo3.callbacks.RawStatisticsCallback",
            {PRUNE: {"final_sparsity": 0.9, "scores": "random", "schedule": "micro"}},
        ],
    }


def test_changed_string_of_policy_kwargs_stays_a_string():
    text = changed_entry({**ENTRY, "policy_kwargs": "dict(activation_fn=nn.ReLU, lipschitz=9)"}, {"lipschitz": 0.5})[
        "policy_kwargs"
    ]
    assert isinstance(text, str) and as_dict(text) == {"activation_fn": nn.ReLU, "lipschitz": 0.5}


def test_one_callback_without_a_list():
    assert with_pruning(PRUNE, {"schedule": "linear"}) == [{PRUNE: {"schedule": "linear"}}]


def test_learning_rates():
    assert split_rate("lin_7e-4") == ("lin", 7e-4) and split_rate(0.01) == ("", 0.01)
    assert rate_like("lin_0.1", 0.25) == "lin_0.25" and rate_like(0.1, 0.25) == 0.25


def test_space_follows_the_entry():
    space = space_of(ENTRY, ENTRY["callback"])
    asked = {"lipschitz": 1.0, "final_sparsity": 0.5, "schedule": "constant", "distribution": "global"}
    assert space.suggest(FixedTrial(asked)) == asked
    with pytest.warns(UserWarning, match=r"0\.99 of the parameter 'lipschitz' is out of the range"):  # a twentieth of 20 is 1
        space.suggest(FixedTrial({**asked, "lipschitz": 0.99}))
    assert space_of({"policy": "MlpPolicy"}, PRUNE).lipschitz is None
    assert Space(None, False).suggest(FixedTrial({})) == {}


def test_limits_of_what_an_entry_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"sparsities=\(0.6, 0.7\) .* are tuned of a PruningCallback, which"):
        space_of({"policy": "MlpPolicy"}, None, sparsities=(0.6, 0.7))


def test_baseline_is_the_entry_moved_into_the_space():
    space = space_of(ENTRY, ENTRY["callback"], sparsities=(0.8, 0.9), schedules=("micro",))
    assert baseline(ENTRY, space) == {"lipschitz": 20.0, "final_sparsity": 0.8, "distribution": "erk", "learning_rate": 0.001}
