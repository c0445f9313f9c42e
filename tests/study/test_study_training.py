"""Training a cell: what it is trained with, and how it continues after a kill."""

import multiprocessing
import shutil
import signal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from small import SMALL, changed, first, with_entry, work_and_die
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_prune_robust import LipschitzCategoricalPolicy, sparsity
from sb3_prune_robust.defences import SAPPO
from sb3_prune_robust.evaluation.identity import normal_form
from sb3_prune_robust.study import training
from sb3_prune_robust.study.config import make_study
from sb3_prune_robust.study.plan import short_tasks
from sb3_prune_robust.study.store import StudyStore
from sb3_prune_robust.study.training import make_entry, newest, train

NORMALIZED = with_entry(normalize=True)


def killed(source, folder, sparsity, after):
    """The newest checkpoint of a worker that was killed in training."""
    process = multiprocessing.get_context("spawn").Process(target=work_and_die, args=(source, folder, sparsity, after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    study, task = first(source, sparsity)
    return study, task, newest(StudyStore(folder).agent(task), normal_form(study.key(task.cell)))


def test_a_killed_training_continues_from_its_checkpoint(tmp_path):
    study, task, checkpoint = killed(NORMALIZED, tmp_path, 0.5, after=5)
    assert checkpoint.name == f"{4 * 128:012d}"  # the fifth, before the fifth rollout: the first is before the first
    steps = []
    trained = train(study.key(task.cell), checkpoint.parent, 2, lambda what, share: steps.append(share))
    assert steps[0] == pytest.approx((4 * 128 + 2) / 1024) and steps[-1] == 1.0  # no step is done again
    about = trained.about
    assert (about["timesteps"], about["resumed"]) == (1024, 1) and about["cpu_seconds"] > 0
    assert sparsity(trained.model)["actor"] == pytest.approx(0.5, abs=0.001)
    assert trained.model.learning_rate(0.0) == pytest.approx(0.0) and trained.model._current_progress_remaining < 0.13
    statistics = unwrap_vec_normalize(trained.venv)
    assert statistics.obs_rms.count == pytest.approx(1024, abs=10) and not statistics.training  # those of both halves
    assert [path.name for path in checkpoint.parent.iterdir()] == ["final"]


def test_a_finished_agent_is_loaded_and_not_trained_again(tmp_path):
    study, task = first(NORMALIZED)
    one = train(study.key(task.cell), tmp_path, 2)
    two = train(study.key(task.cell), tmp_path, 2, lambda *_: pytest.fail("trained"))
    assert one.about == two.about and one.about["resumed"] == 0
    states = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert np.array_equal(one.model.predict(states, deterministic=True)[0], two.model.predict(states, deterministic=True)[0])
    assert np.array_equal(one.venv.obs_rms.mean, two.venv.obs_rms.mean) and np.abs(two.venv.obs_rms.mean).max() > 0


@pytest.mark.parametrize("file", ["model.zip", "vecnormalize.pkl", "about.json"])
def test_a_damaged_checkpoint_is_told_and_not_used(tmp_path, file):
    study, task = first(NORMALIZED)
    train(study.key(task.cell), tmp_path, 2)
    shutil.copytree(tmp_path / "final", tmp_path / "000000000512")
    content = (tmp_path / "final" / file).read_bytes()
    (tmp_path / "final" / file).write_bytes(content[:-10])
    with pytest.warns(training.DamagedCheckpointWarning, match="final"):
        assert newest(tmp_path, normal_form(study.key(task.cell))) == tmp_path / "000000000512"
    (tmp_path / "000000000512" / file).unlink()
    with pytest.warns(training.DamagedCheckpointWarning):
        trained = train(study.key(task.cell), tmp_path, 2)
    assert trained.about["resumed"] == 0 and trained.about["timesteps"] == 1024


def test_an_agent_of_another_cell_is_not_taken_for_this_ones(tmp_path):
    study, task = first(NORMALIZED)
    train(study.key(task.cell), tmp_path, 2)
    _, other = first(NORMALIZED, 0.5)
    with pytest.warns(training.DamagedCheckpointWarning, match="of another training"):
        assert sparsity(train(study.key(other.cell), tmp_path, 2).model)["actor"] == pytest.approx(0.5, abs=0.001)


def test_what_cannot_be_trained_is_said_before_anything_is():
    study = make_study(with_entry(n_step=5))
    with pytest.raises(ValueError, match=r"CartPole-v1, ppo, plain cannot be trained: TypeError.*n_step"):
        training.check_kinds(study)


LSTM = changed(algorithms={"ppo_lstm": {}}, grid=[{"algorithms": ["ppo_lstm"], "sparsities": [0], "seeds": [0]}])
UNCOVERED = "CartPole-v1, ppo_lstm, plain cannot be attacked by pa-ad: Unsupported.*memory"


def test_what_an_attack_does_not_cover_is_said_before_anything_is_trained():
    study = make_study({**LSTM, "evaluation": {"attacks": ["mad", "pa-ad"], "attack_steps": 100}})
    with pytest.raises(ValueError, match=UNCOVERED):
        training.check_kinds(study)


def test_what_a_strong_attack_does_not_cover_is_warned_of_since_all_else_can_be_done():
    study = make_study({**LSTM, "strong": {"attacks": ["pa-ad"], "attack_steps": 100}})
    with pytest.warns(training.UncoveredAttackWarning, match=UNCOVERED):
        training.check_kinds(study)


class Switches(gym.Env):
    """Three switches to set."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.MultiBinary(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action.sum()), False, True, {}


@pytest.fixture
def switches():
    gym.register("Switches-v0", Switches)
    yield "Switches-v0"
    del gym.registry["Switches-v0"]


@pytest.mark.parametrize("attack", ["mad", "robust-sarsa", "snooping"])
def test_attacks_are_tried_as_they_are_used(switches, attack):
    evaluation = {"attacks": ["random", attack], "attack_steps": 100}  # of the mode of the policy, which mad then asks for
    source = changed(environments={switches: {"entry": {"n_timesteps": 100}, "eps": [0.1]}}, evaluation=evaluation)
    with pytest.raises(ValueError, match=f"Switches-v0, ppo, plain cannot be attacked by {attack}: "):
        training.check_kinds(make_study(source))


def test_what_its_attacks_cover_is_not_refused():
    strong = {"attacks": ["strong"], "attack_steps": 100}
    training.check_kinds(make_study({**NORMALIZED, "strong": strong}))


def test_a_bound_joins_the_entrys_own_policy_arguments():
    source = {**with_entry(policy_kwargs="dict(net_arch=[8])"), "policies": {"bounded": {"lipschitz": 3.0}}}
    source["grid"] = [{"policies": ["bounded"], "sparsities": [0], "seeds": [0]}]
    study, task = first(source)
    assert eval(make_entry(study.key(task.cell))["policy_kwargs"]) == {"net_arch": [8], "lipschitz": 3.0}


def test_a_replay_buffer_is_kept_with_a_checkpoint(tmp_path, monkeypatch):
    entry = {"n_timesteps": 300, "learning_starts": 50, "buffer_size": 1000, "train_freq": 4, "batch_size": 8}
    source = changed(
        environments={"CartPole-v1": {"entry": entry, "eps": [0.1]}},
        algorithms={"dqn": {}},
        grid=[{"algorithms": ["dqn"], "sparsities": [0.5], "seeds": [0]}],
    )
    study, task, checkpoint = killed(source, tmp_path, 0.5, after=40)
    assert int(checkpoint.name) > 100
    trained = train(study.key(task.cell), checkpoint.parent, 2)
    assert trained.model.replay_buffer.size() == trained.about["timesteps"] == 300
    assert sparsity(trained.model)["actor"] == pytest.approx(0.5, abs=0.001)


def test_the_entry_has_the_cells_pruning_policy_and_algorithm():
    source = changed(
        algorithms={"ppo": None, "sappo": {"kappa": 0.3}},
        policies={"plain": None, "bounded": {"lipschitz": 4.0}},
        grid=[dict(algorithms=["sappo"], policies=["bounded"], schedules=["micro"], sparsities=[0, 0.9], seeds=[3])],
    )
    study = make_study(source)
    dense, pruned = (make_entry(study.key(task.cell)) for task in short_tasks(study))
    assert dense == {
        **SMALL["environments"]["CartPole-v1"]["entry"],
        "kappa": 0.3,
        "eps": 0.1,
        "policy": "sb3_prune_robust.policies.LipschitzCategoricalPolicy",
        "policy_kwargs": {"lipschitz": 4.0},
    }
    arguments = {"final_sparsity": 0.9, "scores": "magnitude", "distribution": "erk", "schedule": "micro"}
    assert pruned == {**dense, "callback": [{"sb3_prune_robust.pruning.PruningCallback": arguments}]}


def test_a_defence_is_trained_with_its_policy(tmp_path):
    source = changed(
        algorithms={"sappo": {"kappa": 0.3}},
        policies={"bounded": {"lipschitz": 4.0}},
        grid=[{"algorithms": ["sappo"], "policies": ["bounded"], "sparsities": [0.9], "seeds": [3]}],
    )
    study, task = first(source, 0.9)
    model = train(study.key(task.cell), tmp_path, 2).model
    assert isinstance(model, SAPPO) and isinstance(model.policy, LipschitzCategoricalPolicy)
    assert (model.kappa, model.eps, model.policy.lipschitz, model.seed) == (0.3, 0.1, 4.0, 3)


@pytest.mark.parametrize(
    "env, algorithm, policy",
    [("Pendulum-v1", "ppo", "Gaussian"), ("Pendulum-v1", "sa_sac", "SAC"), ("CartPole-v1", "sa_dqn", "DQN")],
)
def test_the_lipschitz_policy_is_that_of_the_algorithm_and_the_actions(env, algorithm, policy):
    source = changed(
        environments={env: {"entry": {"n_timesteps": 100}, "eps": 0.1}},
        algorithms={algorithm: {}},
        policies={"bounded": {"lipschitz": 4.0}},
        grid=[{"algorithms": [algorithm], "policies": ["bounded"], "sparsities": [0], "seeds": [0]}],
    )
    study = make_study(source)
    entry = make_entry(study.key(study.cells[0]))
    assert entry["policy"] == f"sb3_prune_robust.policies.Lipschitz{policy}Policy"


def test_a_training_is_reproducible(tmp_path):
    study, task = first()
    shas = [train(study.key(task.cell), tmp_path / name, 2).model.policy.state_dict() for name in "ab"]
    assert all(np.array_equal(shas[0][name], shas[1][name]) for name in shas[0])
