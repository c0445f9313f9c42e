"""Every shipped entry through RL Zoo's code: it trains, with our policy and callback to its final sparsity; or robustly."""

import argparse
import importlib

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from sb3_prune_robust.hyperparams import ALGORITHMS, FOLDER, load
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_prune_robust import defences, policies, sparsity
from sb3_prune_robust.pruning import PruningCallback
from sb3_prune_robust.tuning import register_algorithms

register_algorithms()
PRUNED = ["ppo", "a2c", "trpo", "sac", "td3", "dqn", "tqc"]  # with our policies and callback
ROBUST = list(defences.ALGORITHMS)  # the method alone
MUJOCO = ["InvertedPendulum", "InvertedDoublePendulum", "Hopper", "HalfCheetah", "Walker2d", "Ant", "Swimmer"]
CONTINUOUS = {"Pendulum-v1", *(f"{name}-v5" for name in MUJOCO)}
OFF_POLICY = {
    "sac": policies.LipschitzSACPolicy,
    "td3": policies.LipschitzTD3Policy,
    "dqn": policies.LipschitzDQNPolicy,
    "tqc": importlib.import_module("sb3_contrib.tqc.policies").TQCPolicy,
}
FIRST = {algo: next(iter(load(algo))) for algo in ALGORITHMS}
SAMPLED = {*OFF_POLICY, "sa_sac", "sa_td3", "sa_dqn"}  # from a replay buffer
# Small enough to run; what an entry is about stays as it is.
ON = {"n_steps": 16}
OFF = {"learning_starts": 64, "buffer_size": 600, "train_freq": 8, "gradient_steps": 1}


@pytest.fixture(autouse=True)
def one_thread():
    th.set_num_threads(1)


def manager(algo, env, folder, n_timesteps, config=None):
    small = OFF if algo in SAMPLED else ON if algo == "a2c" else {**ON, "batch_size": 64}
    return ExperimentManager(
        argparse.Namespace(),
        algo,
        env,
        str(folder),
        n_timesteps=n_timesteps,
        eval_freq=-1,
        log_interval=-1,
        hyperparams=dict(small),
        verbose=0,
        device="cpu",
        config=config or f"sb3_prune_robust.hyperparams.{algo}",
    )


def test_environments_are_those_promised():
    assert set(ALGORITHMS) == {*PRUNED, *ROBUST}
    promised = {"dqn": {"CartPole-v1"}, **dict.fromkeys(("sac", "td3", "tqc"), CONTINUOUS)}
    for algo in PRUNED:
        assert set(load(algo)) == promised.get(algo, {"CartPole-v1", *CONTINUOUS}), algo
    robust = {"CartPole-v1", *CONTINUOUS} - {"InvertedDoublePendulum-v5", "Swimmer-v5"}
    promised = {"sa_dqn": {"CartPole-v1"}, "sa_sac": {"Pendulum-v1", "Hopper-v5"}, "sa_td3": {"Pendulum-v1", "Hopper-v5"}}
    for algo in ROBUST:
        assert set(load(algo)) == promised.get(algo, robust), algo


@pytest.mark.parametrize(("algo", "env"), [(algo, env) for algo in ROBUST for env in load(algo)])
def test_entry_of_a_robust_algorithm(algo, env, tmp_path):
    """Set up, with what the entry says; and trained for one environment of each algorithm."""
    experiment = manager(algo, env, tmp_path, 256)
    model, _ = experiment.setup_experiment()
    entry = load(algo)[env]
    assert type(model) is defences.ALGORITHMS[algo] and model.n_envs == 8 and not experiment.callbacks
    assert type(model).policy_aliases["MlpPolicy"] is model.policy_class
    own = {"eps", "kappa", "inner", "weight", "worst_case_lr", "adversary_kwargs"} & set(entry)
    assert "eps" in own and all(getattr(model, name) == entry[name] for name in own)
    if env == FIRST[algo]:
        before = parameters(model)
        experiment.learn(model)
        assert any((new != old).any() for new, old in zip(parameters(model), before, strict=True))
        assert model.eps_now == entry["eps"] > 0


@pytest.mark.parametrize("env", load("sappo"))
def test_robust_entries_differ_from_those_of_ppo_by_the_method_alone(env):
    """Or comparisons of the algorithms would compare something else too."""
    ppo = {key: value for key, value in load("ppo")[env].items() if key not in ("policy", "callback")}
    for algo in ROBUST:
        if algo.endswith("ppo"):
            entry = load(algo)[env]
            assert {key: entry.get(key) for key in ppo} == ppo and entry["policy"] == "MlpPolicy" and "callback" not in entry
            assert entry["eps"] == load("sappo")[env]["eps"]


@pytest.mark.parametrize(("algo", "env"), [(algo, env) for algo in PRUNED for env in load(algo)])
def test_entry_trains_and_prunes(algo, env, tmp_path):
    """In full for one environment of each algorithm, for the others until the first updates: CPU time is dear."""
    full = env == FIRST[algo]
    experiment = manager(algo, env, tmp_path, 512 if full else 144)
    model, _ = experiment.setup_experiment()
    assert type(model.policy) is expected_policy(algo, env)
    assert model.n_envs == 8
    (pruning,) = (callback for callback in experiment.callbacks if isinstance(callback, PruningCallback))
    before = parameters(model)
    experiment.learn(model)
    assert any((new != old).any() for new, old in zip(parameters(model), before, strict=True))
    assert pruning.n_mask_updates >= 1
    assert sparsity(model)["actor"] == pytest.approx(0.7, abs=0.001)
    assert algo == "dqn" or sparsity(model)["critic"] == 0.0


def expected_policy(algo, env):
    if algo in OFF_POLICY:
        return OFF_POLICY[algo]
    discrete = isinstance(gym.make(env).action_space, spaces.Discrete)
    return policies.LipschitzCategoricalPolicy if discrete else policies.LipschitzGaussianPolicy


def parameters(model):
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


@pytest.mark.parametrize(("algo", "env"), [(algo, env) for algo in PRUNED for env in load(algo)])
def test_observations_are_normalised(algo, env):
    entry = load(algo)[env]
    if (algo, env) in {("ppo", "CartPole-v1"), ("dqn", "CartPole-v1")}:
        assert "normalize" not in entry  # measured: docs/tuning.md
        return
    settings = entry["normalize"] if entry["normalize"] is True else yaml.safe_load(entry["normalize"])
    rewards = settings is True or settings["norm_reward"]
    assert rewards is (algo not in OFF_POLICY and env != "CartPole-v1")


def test_normalisation_reaches_the_replay_buffer_raw(tmp_path):
    """SB3 stores what it can normalise anew, with the statistics of the time it is drawn."""
    model, _ = manager("sac", "Pendulum-v1", tmp_path, 512).setup_experiment()
    model.learn(256)
    normalizer = unwrap_vec_normalize(model.get_env())
    assert normalizer.norm_obs and not normalizer.norm_reward
    stored = model.replay_buffer.observations[: model.replay_buffer.pos]
    assert np.abs(np.hypot(stored[..., 0], stored[..., 1]) - 1).max() < 1e-5  # cosine and sine, as the environment gives them


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_swimmer_looks_far_ahead(algo):
    assert load(algo)["Swimmer-v5"]["gamma"] == {"ppo": 0.9999, "sac": 0.999}[algo]


def test_path_and_module_give_the_same(tmp_path):
    by_path = manager("trpo", "Hopper-v5", tmp_path / "a", 64, str(FOLDER / "trpo.yml")).read_hyperparameters()
    by_module = manager("trpo", "Hopper-v5", tmp_path / "b", 64).read_hyperparameters()
    assert by_path == by_module and by_path[0]["cg_damping"] == 0.1


def test_module_is_read_anew():
    """The zoo deletes from what it reads."""
    module = importlib.import_module("sb3_prune_robust.hyperparams.ppo")
    module.hyperparams["CartPole-v1"].clear()
    assert module.hyperparams["CartPole-v1"]["n_envs"] == 8
    with pytest.raises(AttributeError, match=r"hyperparams\.ppo has no attribute 'other'"):
        _ = module.other


def test_unknown_algorithm():
    with pytest.raises(ValueError, match=r"algo 'ars' has no hyperparameters here; those that have: a2c, atla_ppo, "):
        load("ars")
