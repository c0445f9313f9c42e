"""How long a study takes, before any of its cells is finished."""

from small import changed, first

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
