"""RL Zoo's own -optimize after register()."""

import argparse
import contextlib

import optuna
import pytest
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from sb3_prune_robust import LipschitzCategoricalPolicy, LipschitzGaussianPolicy, PruningCallback, sparsity
from sb3_prune_robust.tuning import register

OURS = {"lipschitz", "final_sparsity", "schedule", "distribution"}
PRUNE = "sb3_prune_robust.pruning.PruningCallback"


class Spy(BaseCallback):
    """Keeps the models of trials as they were at the end of training, and their pruning callbacks."""

    models: list = []  # noqa: RUF012

    def _on_step(self):
        return True

    def _on_training_end(self):
        self.models.append((self.model, sparsity(self.model)["actor"]))


def entry(**changes):
    common = dict(policy="sb3_prune_robust.policies.LipschitzCategoricalPolicy", n_timesteps=64, n_envs=2, learning_rate=1e-3)
    callbacks = [{PRUNE: {"final_sparsity": 0.7, "scores": "random"}}, f"{__name__}.Spy"]
    return {**common, "policy_kwargs": {"log_std_init": -1.5, "lipschitz": 8.0}, "callback": callbacks, **changes}


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A function that runs the zoo's optimisation of an entry, and gives the study."""
    th.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    register()
    Spy.models.clear()
    sampled = {"n_steps_pow": 5, "batch_size_pow": 5, "n_epochs": 1, "net_arch": "tiny"}  # quick
    for kind in ("int", "categorical"):
        name = f"suggest_{kind}"
        original = getattr(optuna.Trial, name)

        def suggest(self, key, *args, original=original, **kwargs):
            if key not in sampled:
                return original(self, key, *args, **kwargs)
            return (
                original(self, key, [sampled[key]])
                if original.__name__.endswith("categorical")
                else original(self, key, sampled[key], sampled[key])
            )

        monkeypatch.setattr(optuna.Trial, name, suggest)

    def run(hyperparams, env="CartPole-v1", **arguments):
        config = tmp_path / "entry.yml"
        config.write_text(yaml.safe_dump({env: hyperparams}))
        rest = dict(eval_freq=-1, verbose=0, device="cpu", no_optim_plots=True, n_eval_episodes=1, config=str(config))
        manager = ExperimentManager(
            argparse.Namespace(), "ppo", env, str(tmp_path), **{**rest, "optimize_hyperparameters": True, **arguments}
        )
        with contextlib.redirect_stdout(None):
            return manager, manager.setup_experiment()

    return run


def optimize(manager, n_trials=1):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(manager.objective, n_trials=n_trials)
    return study


def test_ours_are_sampled_and_reach_the_training(zoo):
    manager, _ = zoo(entry())
    study = optimize(manager, 2)
    assert len(Spy.models) == 2
    for trial, (model, reached) in zip(study.trials, Spy.models, strict=True):
        assert trial.params.keys() >= OURS | {"learning_rate"}
        assert type(model.policy) is LipschitzCategoricalPolicy
        assert model.policy.lipschitz == trial.params["lipschitz"] and 0.4 <= model.policy.lipschitz <= 40
        assert model.policy_kwargs["log_std_init"] == -1.5  # the entry's, which the zoo's sampler would lose
        assert model.policy_kwargs["net_arch"] == dict(pi=[64], vf=[64])  # the zoo's own
        assert reached == pytest.approx(trial.params["final_sparsity"], abs=0.01)
    assert study.trials[0].params["lipschitz"] != study.trials[1].params["lipschitz"]
    assert manager.specified_callbacks[0] == {PRUNE: {"final_sparsity": 0.7, "scores": "random"}}  # not changed for good


def test_an_entry_without_anything_of_ours_goes_its_usual_way(zoo):
    manager, _ = zoo(
        {
            "policy": "MlpPolicy",
            "n_timesteps": 64,
            "n_envs": 2,
            "callback": f"{__name__}.Spy",
            "policy_kwargs": {"log_std_init": -1.5},
        }
    )
    study = optimize(manager)
    ((model, reached),) = Spy.models
    assert not OURS & study.trials[0].params.keys() and reached == 0.0
    assert "log_std_init" not in model.policy_kwargs  # what the zoo does, for good or ill


def test_mlp_policy_with_our_callback(zoo):
    manager, _ = zoo(entry(policy="MlpPolicy", policy_kwargs={"log_std_init": -1.5}))
    study = optimize(manager)
    assert OURS & study.trials[0].params.keys() == OURS - {"lipschitz"}
    ((model, reached),) = Spy.models
    assert type(model) is PPO and model.policy_kwargs["log_std_init"] == -1.5
    assert reached == pytest.approx(study.trials[0].params["final_sparsity"], abs=0.01)


def test_no_bound_stays_no_bound(zoo):
    """The zoo's sampler would replace lipschitz=None by the policy's default."""
    manager, _ = zoo(entry(policy_kwargs={"lipschitz": None}, callback=f"{__name__}.Spy"))
    study = optimize(manager)
    assert not OURS & study.trials[0].params.keys()
    assert Spy.models[0][0].policy.lipschitz is None


def test_samplers_outside_a_trial_of_ours_are_the_zoos():
    register()
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    sampled = HYPERPARAMS_SAMPLER["ppo"](trial, 1, 1, {})
    assert sampled["policy_kwargs"].keys() == {"net_arch", "activation_fn"}
    assert sampled == HYPERPARAMS_SAMPLER["ppo"].__wrapped__(trial, 1, 1, {})


def test_register_twice_is_register_once():
    register()
    before = ExperimentManager.objective, dict(HYPERPARAMS_SAMPLER), dict(HYPERPARAMS_CONVERTER)
    register()
    assert before == (ExperimentManager.objective, dict(HYPERPARAMS_SAMPLER), dict(HYPERPARAMS_CONVERTER))


@pytest.mark.parametrize("policy_kwargs", [{"lipschitz": 8.0, "log_std_init": -1.5}, "dict(lipschitz=8.0, log_std_init=-1.5)"])
def test_trial_id_takes_the_trial_up_again(zoo, tmp_path, policy_kwargs):
    storage = f"sqlite:///{tmp_path}/zoo.db"
    manager, _ = zoo(entry())
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    study.optimize(manager.objective, n_trials=2)
    where = dict(storage=storage, study_name="s", trial_id=1, optimize_hyperparameters=False)
    manager, (model, _) = zoo(entry(policy_kwargs=policy_kwargs), **where)
    params = study.trials[1].params
    assert model.policy.lipschitz == params["lipschitz"] and model.policy_kwargs["log_std_init"] == -1.5
    assert model.policy_kwargs["net_arch"] == dict(pi=[64], vf=[64])
    assert model.learning_rate(1.0) == params["learning_rate"]
    (pruning,) = (callback for callback in manager.callbacks if isinstance(callback, PruningCallback))
    assert pruning.schedules["actor"].final_sparsity == params["final_sparsity"]
    assert pruning.distribution == params["distribution"] and type(pruning.score).__name__ == "RandomScore"


def test_continuous_actions(zoo):
    manager, _ = zoo(entry(policy="sb3_prune_robust.policies.LipschitzGaussianPolicy"), "Pendulum-v1")
    optimize(manager)
    assert type(Spy.models[0][0].policy) is LipschitzGaussianPolicy
