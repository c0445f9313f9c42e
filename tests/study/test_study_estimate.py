"""How long a study takes, before any of its cells is finished."""

import numpy as np
import pytest
from small import changed, first

from sb3_prune_robust.evaluation.rollouts import NoAttackError
from sb3_prune_robust.study import estimate
from sb3_prune_robust.study.plan import Estimate, short_tasks
from sb3_prune_robust.study.store import StudyStore
from sb3_prune_robust.study.training import make_entry


def test_the_probe_of_an_off_policy_algorithm_learns_for_most_of_its_steps(tmp_path, monkeypatch):
    entry = {"n_timesteps": 100_000, "learning_starts": 50_000, "buffer_size": 1000, "policy_kwargs": {"net_arch": [8]}}
    source = changed(
        environments={"CartPole-v1": {"entry": entry, "eps": [0.1]}},
        algorithms={"dqn": {}},
        grid=[{"algorithms": ["dqn"], "sparsities": [0, 0.5], "seeds": [0]}],
    )
    study, _ = first(source)
    probed, train = [], estimate.train

    def noted(key, *rest):
        probed.append(make_entry(key))
        return train(key, *rest)

    monkeypatch.setattr(estimate, "train", noted)
    store = StudyStore(tmp_path)
    seconds, kinds = estimate.estimated(study, store, short_tasks(study), Estimate(store))
    assert seconds > 0 and kinds == len(probed) == 1
    assert 10 * probed[0]["learning_starts"] < probed[0]["n_timesteps"] < 10_000


def test_an_attack_that_learns_counts_as_the_dearest_of_the_others(monkeypatch):
    monkeypatch.setattr(estimate, "_under", lambda trained, name, norm: {"random": 1.0, "mad": 5.0}[name])
    attacked = estimate._attacked(None, ["random", "pa-ad", "mad"], "linf", 2.0)
    assert attacked == {"random": 1.0, "pa-ad": 5.0, "mad": 5.0}
    assert estimate._attacked(None, ["pa-ad"], "linf", 2.0) == {"pa-ad": 2.0}


@pytest.mark.parametrize(("lengths", "per_step"), [([10, 30], 0.1), (None, 4 / (estimate.N_ENVS * estimate._PROBE_ATTACKED))])
def test_the_seconds_under_an_attack_are_those_of_a_step(monkeypatch, lengths, per_step):
    """Of those played; if the attack changed nothing, it is not known how many these were, but at most."""
    clock = iter([1.0, 5.0])

    class Played:
        model = venv = None

    def rollout(*args, **kwargs):
        if lengths is None:
            raise NoAttackError
        Played.lengths = np.array(lengths)
        return Played

    monkeypatch.setattr(estimate, "rollout", rollout)
    monkeypatch.setattr(estimate.time, "process_time", lambda: next(clock))
    assert estimate._under(Played, "mad", "linf") == pytest.approx(per_step)
