"""What is wrong with a request is said before anything is trained."""

import pytest
import yaml
from sb3_prune_robust.hyperparams import FOLDER

from sb3_prune_robust.tuning.settings import TuneSettings

GOOD = dict(algo="ppo", env="CartPole-v1", eps=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algo": "ars"}, r"algo 'ars' is unknown; known: a2c, atla_ppo, certified_ppo, dqn, .*trpo, wocar_ppo"),
        ({"env": "CartPole-v0"}, r"env 'CartPole-v0' has no entry for ppo; those that have: CartPole-v1, Pendulum-v1"),
        ({"algo": "dqn", "env": "Hopper-v5"}, r"env 'Hopper-v5' has no entry for dqn; those that have: CartPole-v1$"),
        ({"attack": "madd"}, r"attack 'madd' is unknown; choose one of random, fgsm, pgd, mad"),
        ({"attack": "sa-rl"}, r"attack 'sa-rl' learns on its victim .* choose one of random"),
        ({"eps": 0.0}, r"eps must be positive and finite, got 0\.0"),
        ({"eps": float("nan")}, r"eps must be positive and finite, got nan"),
        ({"eps": float("inf")}, r"eps must be positive and finite, got inf"),
        ({"weight": -0.1}, r"weight must lie in \[0, 1\], got -0\.1"),
        ({"weight": 1.1}, r"weight must lie in \[0, 1\], got 1\.1"),
        ({"weight": float("nan")}, r"weight must lie in \[0, 1\], got nan"),
        ({"schedules": ("cubic",)}, r"schedules: 'cubic' is unknown; known: one_shot, polynomial"),
        ({"schedules": ("micro", "micro")}, r"schedules: each at most once"),
        ({"schedules": ()}, r"schedules: each at most once and at least one"),
        ({"sparsities": (0.5, 1.0)}, r"sparsities must be a number in \[0, 1\), got 1\.0"),
        ({"sparsities": (0.9, 0.5)}, r"sparsities must be the smallest and the largest, got \[0\.9, 0\.5\]"),
        ({"sparsities": (0.9,)}, r"sparsities must be the smallest and the largest, got \[0\.9\]"),
        ({"timesteps": 0}, r"timesteps must be at least 1, got 0"),
        ({"n_episodes": 0}, r"episodes must be at least 1, got 0"),
        ({"conf_file": "/nonexistent.yml"}, r"conf-file /nonexistent\.yml could not be read"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TuneSettings(**{**GOOD, **changes})


def test_bounds_themselves_are_accepted():
    for changes in ({"weight": 0.0}, {"weight": 1.0}, {"sparsities": (0.0, 0.0)}, {"sparsities": (0.99, 0.99)}):
        settings = TuneSettings(**{**GOOD, **changes})
        assert all(getattr(settings, name) == value for name, value in changes.items())


def test_entry_is_the_packages_with_the_learning_rate_that_it_leaves_to_sb3():
    hopper = yaml.safe_load((FOLDER / "ppo.yml").read_text())["Hopper-v5"]
    assert "learning_rate" not in hopper
    settings = TuneSettings("ppo", "Hopper-v5", eps=0.1, timesteps=123)
    assert settings.entry == {**hopper, "learning_rate": 3e-4, "n_timesteps": 123}


def test_own_file(tmp_path):
    path = tmp_path / "own.yml"
    path.write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 5, learning_rate: 0.5}\nNo-such-v0: {policy: MlpPolicy}\n")
    own = {**GOOD, "conf_file": str(path)}
    assert TuneSettings(**own).entry == {"policy": "MlpPolicy", "n_timesteps": 5, "learning_rate": 0.5}
    with pytest.raises(ValueError, match=r"env 'No-such-v0' cannot be made"):
        TuneSettings(**{**own, "env": "No-such-v0"})
    path.write_text("- a\n- list\n")
    with pytest.raises(ValueError, match=r"own\.yml is not a file of entries by environment id"):
        TuneSettings(**own)
    path.write_text("a: {b")
    with pytest.raises(ValueError, match=r"own\.yml could not be read"):
        TuneSettings(**own)
