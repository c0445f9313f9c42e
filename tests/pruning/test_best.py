"""The best model of an EvalCallback is no less pruned than the final one."""

import math

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common import callbacks, monitor
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnNoModelImprovement,
)

from sb3_prune_robust.pruning import PruningCallback, sparsity

ARGUMENTS = {
    PPO: dict(n_steps=16, batch_size=16, n_epochs=2),
    SAC: dict(learning_starts=10, batch_size=8, buffer_size=300),
    TD3: dict(learning_starts=10, batch_size=8, buffer_size=300),
}


@pytest.fixture
def dense_is_better(monkeypatch):
    """An evaluation that scores a policy by its share of weights that are left: 100 for a dense one."""

    def evaluate_policy(model, *args, **kwargs):
        return [100 * (1 - sparsity(model)["actor"])], [1]

    monkeypatch.setattr(callbacks, "evaluate_policy", evaluate_policy)


def make(algorithm):
    return algorithm("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(net_arch=[16, 16]), **ARGUMENTS[algorithm])


def evaluation(folder, eval_freq=10, cls=EvalCallback, **kwargs):
    env = monitor.Monitor(gym.make("Pendulum-v1"))
    return cls(env, eval_freq=eval_freq, best_model_save_path=str(folder), log_path=str(folder), verbose=0, **kwargs)


def learn(algorithm, evaluation, pruning, before=False, n=96):
    order = [evaluation, pruning] if before else [pruning, evaluation]
    return make(algorithm).learn(n, callback=order)


class Own(EvalCallback):
    """Somebody's heir of it."""


@pytest.mark.parametrize("algorithm", [PPO, SAC])
@pytest.mark.parametrize("schedule", ["polynomial", "micro", "one_shot"])
@pytest.mark.parametrize("before", [True, False])
def test_the_best_model_has_the_final_sparsity_though_a_denser_one_scored_better(
    algorithm, schedule, before, dense_is_better, tmp_path
):
    # 39 does not divide 96, so that the last evaluation of its own comes before the schedule's end
    own = evaluation(tmp_path, eval_freq=39, cls=Own)
    model = learn(algorithm, own, PruningCallback(0.7, schedule, start=0.5, end=0.9), before)
    assert sparsity(algorithm.load(tmp_path / "best_model")) == sparsity(model)
    assert own.best_mean_reward == pytest.approx(100 * (1 - sparsity(model)["actor"]))
    assert own.evaluations_results[0] == [100.0]  # the dense one, which scored better
    assert (own.eval_freq, own.n_calls) == (39, 96)
    assert len(own.evaluations_timesteps) == 3 and sorted(own.evaluations_timesteps) == own.evaluations_timesteps


@pytest.mark.parametrize("algorithm", [PPO, SAC])
@pytest.mark.parametrize("schedule", ["linear", "micro"])
def test_also_when_the_last_prune_is_made_as_training_ends(algorithm, schedule, dense_is_better, tmp_path):
    own, pruning = evaluation(tmp_path), PruningCallback(0.7, schedule, start=0.0, end=1.0)
    model = learn(algorithm, own, pruning)
    assert sparsity(algorithm.load(tmp_path / "best_model")) == sparsity(model)
    assert own.evaluations_timesteps[-2:] == [90, 96]
    pruning.on_training_end()  # the zoo says it twice
    assert len(own.evaluations_timesteps) == 10 and len(pruning.events) == pruning.n_mask_updates


def test_one_that_evaluates_at_that_step_by_itself_does_not_do_it_twice(dense_is_better, tmp_path):
    own = evaluation(tmp_path, eval_freq=1)
    learn(PPO, own, PruningCallback(0.7, "one_shot", start=0.5), before=True)
    assert own.evaluations_timesteps == list(range(1, 97))


def test_it_is_found_in_lists_and_events(dense_is_better, tmp_path):
    first, second = evaluation(tmp_path / "1", eval_freq=1), evaluation(tmp_path / "2", eval_freq=30)
    nested = CallbackList([EveryNTimesteps(20, first), CallbackList([second])])
    model = learn(PPO, nested, PruningCallback(0.7, "one_shot", start=0.5))
    for folder in ("1", "2"):
        assert sparsity(PPO.load(tmp_path / folder / "best_model")) == sparsity(model)
    assert first.evaluations_timesteps == [20, 40, 49, 60, 80] and second.evaluations_timesteps == [30, 49, 60, 90]


def test_later_evaluations_compete_with_the_pruned_model_only(monkeypatch, tmp_path):
    scores = iter([9.0, 1.0, 5.0, 3.0])
    monkeypatch.setattr(callbacks, "evaluate_policy", lambda *args, **kwargs: ([next(scores)], [1]))
    own = evaluation(tmp_path, eval_freq=30)
    learn(PPO, own, PruningCallback(0.7, "one_shot", start=0.5))
    assert own.best_mean_reward == 5.0 and own.last_mean_reward == 3.0


def test_a_score_that_has_seen_one_of_two_optimisers_is_not_complete(dense_is_better, tmp_path):
    """The critic of TD3 is stepped first and pruned first: the actor is dense for one more step of the environment."""
    own, pruning = (
        evaluation(tmp_path, eval_freq=100),
        PruningCallback(0.7, "micro", "movement", start=0.0, end=0.05, targets=("actor", "critic")),
    )
    model = learn(TD3, own, pruning, n=40)
    assert own.evaluations_results == [[100 * (1 - sparsity(model)["actor"])]]


class Never(BaseCallback):
    def _on_step(self):
        return False


def test_what_the_evaluation_answers_is_passed_on(dense_is_better, tmp_path):
    own = evaluation(tmp_path, eval_freq=1000, callback_after_eval=Never())
    model = learn(PPO, own, PruningCallback(0.7, "one_shot", start=0.5))
    assert own.evaluations_timesteps == [49] and model.num_timesteps == 49


def test_the_pruned_model_does_not_count_as_one_that_failed_to_improve(dense_is_better, tmp_path):
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=0)
    own = evaluation(tmp_path, eval_freq=45, callback_after_eval=stop)
    model = learn(PPO, own, PruningCallback(0.7, "one_shot", start=0.5))
    assert own.evaluations_timesteps == [45, 49, 90] and model.num_timesteps == 90  # the third is no better than the second


class Trial(EvalCallback):
    """As RL Zoo's, which reports each evaluation to Optuna."""

    trial = object()


@pytest.mark.parametrize("cls", [Trial, EvalCallback])
def test_evaluations_that_keep_no_model_are_not_one_more_than_asked_for(cls, dense_is_better, tmp_path):
    evaluated = evaluation(tmp_path, eval_freq=32, cls=cls)
    if cls is EvalCallback:
        evaluated.best_model_save_path = None
    learn(PPO, evaluated, PruningCallback(0.5, start=0.1, end=0.5))
    assert len(evaluated.evaluations_timesteps) == 3  # of 96 steps


def test_one_that_never_evaluates_is_left_alone(tmp_path):
    own = evaluation(tmp_path, eval_freq=0)
    own.best_mean_reward = 7.0
    learn(PPO, own, PruningCallback(0.7, "one_shot", start=0.5))
    assert own.best_mean_reward == 7.0 and not (tmp_path / "best_model.zip").exists()


def test_a_true_evaluation_in_the_midst_of_a_rollout_changes_nothing_but_the_file(tmp_path):
    own = evaluation(tmp_path, eval_freq=1000, n_eval_episodes=1)
    model = learn(PPO, own, PruningCallback(0.7, "one_shot", start=0.5))
    other = learn(PPO, Silent(), PruningCallback(0.7, "one_shot", start=0.5))
    assert math.isfinite(own.best_mean_reward) and own.evaluations_timesteps == [49]
    pairs = zip(model.policy.parameters(), other.policy.parameters(), strict=True)
    assert all(np.array_equal(a.detach(), b.detach()) for a, b in pairs)


class Silent(BaseCallback):
    def _on_step(self):
        return True
