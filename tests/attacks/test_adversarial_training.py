"""Training under attack: what the learner receives, what others still see, and what is put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sb3_contrib import ARS, TRPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_prune_robust.attacks import ATTACKS, AdversarialTrainingCallback, Attack, RandomAttack

EPS = 0.25


def envs(counter: Any, n: int = 2) -> DummyVecEnv:
    return DummyVecEnv([counter] * n)


def ppo(venv: Any, **settings: Any) -> PPO:
    return PPO("MlpPolicy", venv, **{"n_steps": 60, "batch_size": 60, "n_epochs": 1, "seed": 0, "device": "cpu", **settings})


class Seen(BaseCallback):
    """Keeps what training looks like from inside, a copy of each rollout's observations among it."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.rollouts: list[Any] = []
        self.envs: list[Any] = []
        self.logged: list[dict[str, Any]] = []
        self.fail_at = fail_at

    def _on_step(self) -> bool:
        if self.fail_at is not None and self.num_timesteps >= self.fail_at:
            raise RuntimeError("killed")
        return True

    def _on_rollout_end(self) -> None:
        buffer = getattr(self.model, "rollout_buffer", None)
        self.rollouts.append(None if buffer is None else buffer.observations.copy())
        self.envs.append(self.training_env)
        self.logged.append(dict(self.logger.name_to_value))


def truth(n_steps: int, first: int = 0) -> Any:
    """Observations of the counting environment: ``(episode, step, 0)``, episodes of three steps."""
    steps = np.arange(first, first + n_steps)
    return np.stack([steps // 3, steps % 3, np.zeros(n_steps)], axis=1)[:, None]


@pytest.mark.parametrize("algorithm", [PPO, A2C, TRPO])
def test_every_observation_that_is_learned_from_is_attacked(counter: Any, algorithm: Any) -> None:
    model = algorithm("MlpPolicy", envs(counter), n_steps=60, seed=0, device="cpu")
    seen = Seen()
    model.learn(240, callback=[AdversarialTrainingCallback("random", EPS), seen])
    for k, observed in enumerate(seen.rollouts):
        change = np.abs(observed - truth(60, 60 * k))
        assert change.shape == (60, 2, 3) and 0 < change.min() and change.max() <= EPS
    assert len(seen.rollouts) == 2
    assert seen.logged[0]["attack/eps"] == EPS and EPS / 2 < seen.logged[0]["attack/mean_perturbation"] < EPS


def test_it_is_outermost_and_statistics_are_of_true_observations(counter: Any) -> None:
    normalizer = VecNormalize(envs(counter), norm_reward=False)
    model, seen = ppo(normalizer), Seen()
    model.learn(240, callback=[AdversarialTrainingCallback("random", EPS), seen])
    assert seen.envs[0].venv is normalizer and model.env is normalizer and model.get_vec_normalize_env() is normalizer
    statistics: Any = normalizer.obs_rms
    assert normalizer.training and statistics.mean[2] == 0.0 and statistics.count > 240
    # The third entry is 0 however it is normalised, so what stands there is the perturbation, in normalised units.
    changes = np.abs(np.stack(seen.rollouts)[..., 2])
    assert 0 < changes.min() and changes.max() <= EPS


def test_the_victim_is_the_model_that_learns(counter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    victims: list[Any] = []

    class Spy(Attack):
        def perturb(self, policy: Any, ball: Any) -> Any:
            victims.append((policy, policy.action_net.weight.detach().clone()))
            return ball.center + 1.0

    monkeypatch.setitem(ATTACKS, "spy", Spy)
    model = ppo(envs(counter))
    model.learn(240, callback=AdversarialTrainingCallback("spy", EPS))
    assert all(policy is model.policy for policy, _ in victims)
    assert not victims[0][1].equal(victims[-1][1])  # weights of the moment


@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_replay_buffers_hold_attacked_observations(counter: Any, algorithm: Any) -> None:
    venv: Any = envs(counter) if algorithm is SAC else make_vec_env("CartPole-v1", 2, seed=0)
    model = algorithm("MlpPolicy", venv, learning_starts=10, buffer_size=1000, seed=0, device="cpu")
    model.learn(120, callback=AdversarialTrainingCallback("random", EPS, seed=1))
    buffer = model.replay_buffer
    held = buffer.pos
    if algorithm is SAC:
        ends = truth(held)  # after the last step of an episode comes (episode, 3, 0), not the next episode's first
        ends[:, 0, 1] += 1
        for stored, true in ((buffer.observations, truth(held)), (buffer.next_observations, ends)):
            change = np.abs(stored[:held] - true)
            assert 0 < change.min() and change.max() <= EPS
        assert buffer.dones[:held].sum() == 2 * (held // 3)
    # The next observation and the one of the following step are the same thing, where the episode goes on.
    goes_on = buffer.dones[: held - 1] == 0
    np.testing.assert_array_equal(buffer.next_observations[: held - 1][goes_on], buffer.observations[1:held][goes_on])


@pytest.mark.parametrize("norm_obs", [True, False])
def test_an_attack_that_would_not_reach_the_replay_buffer_is_refused(counter: Any, norm_obs: bool) -> None:
    venv = VecNormalize(envs(counter), norm_obs=norm_obs)
    model = SAC("MlpPolicy", venv, buffer_size=100, device="cpu")
    with pytest.raises(ValueError, match=r"VecNormalize, and SAC's replay buffer stores.*without VecNormalize"):
        model.learn(20, callback=AdversarialTrainingCallback("random", EPS))
    assert model.env is venv


def evaluated(counter: Any, tmp_path: Path, **settings: Any) -> tuple[EvalCallback, list[Any], Any]:
    """What the policy was shown in evaluations beside a training under attack."""
    shown: list[Any] = []
    model = ppo(VecNormalize(envs(counter), norm_reward=False))
    policy: Any = model.policy
    predict = policy.predict
    policy.predict = lambda obs, *args, **kwargs: (shown.append(np.array(obs)), predict(obs, *args, **kwargs))[1]
    eval_env = VecNormalize(envs(counter, 1), training=False, norm_reward=False)
    callback = EvalCallback(eval_env, eval_freq=30, n_eval_episodes=40, best_model_save_path=str(tmp_path), verbose=0)
    checkpoints = CheckpointCallback(60, str(tmp_path), save_vecnormalize=True)
    model.learn(240, callback=CallbackList([AdversarialTrainingCallback("random", EPS, **settings), callback, checkpoints]))
    assert callback.eval_env is eval_env and model.env is model.get_vec_normalize_env()
    assert (tmp_path / "best_model.zip").exists() and len(list(tmp_path.glob("rl_model_vecnormalize_*"))) == 2
    np.testing.assert_array_equal(eval_env.obs_rms.mean, model.get_vec_normalize_env().obs_rms.mean)  # type: ignore[union-attr]
    return callback, shown, eval_env


def test_evaluation_is_clean_beside_training_under_attack(counter: Any, tmp_path: Path) -> None:
    callback, shown, _ = evaluated(counter, tmp_path)
    assert len(shown) == 4 * 40 * 3 and all(obs[0, 2] == 0 for obs in shown)
    assert callback.last_mean_reward == 3.0


def test_evaluation_is_attacked_on_request_at_full_eps(counter: Any, tmp_path: Path) -> None:
    _, shown, _ = evaluated(counter, tmp_path, evaluate="attacked", eps_schedule="linear", start=0.9, end=1.0)
    changes = np.abs(np.stack(shown)[..., 2])
    assert 0 < changes.min() and 0.9 * EPS < changes.max() <= EPS


def test_the_schedule_climbs_from_0_to_eps_between_two_shares_of_training(counter: Any) -> None:
    seen = Seen()
    schedule: dict[str, Any] = dict(eps_schedule="linear", start=0.25, end=0.75)
    ppo(envs(counter)).learn(960, callback=[AdversarialTrainingCallback("random", EPS, **schedule), seen])
    eps = [logged["attack/eps"] for logged in seen.logged]
    # Rollouts start at 0, 1/8, ..., 7/8 of training.
    np.testing.assert_allclose(eps, EPS * np.array([0, 0, 0, 0.25, 0.5, 0.75, 1, 1]))
    for k, observed in enumerate(seen.rollouts):
        change = np.abs(observed - truth(60, 60 * k))[1:]  # the first was made at the end of the rollout before
        assert change.max() == 0 if eps[k] == 0 else 0.9 * eps[k] < change.max() <= eps[k]


def test_eps_may_be_given_for_each_dimension(counter: Any) -> None:
    seen = Seen()
    ppo(envs(counter)).learn(120, callback=[AdversarialTrainingCallback("random", [0.0, 0.5, 0.0]), seen])
    change = np.abs(seen.rollouts[0] - truth(60))
    assert change[..., [0, 2]].max() == 0 and 0 < change[..., 1].min() and change[..., 1].max() <= 0.5
    assert seen.logged[0]["attack/eps"] == 0.5


class Null(Attack):
    def perturb(self, policy: Any, ball: Any) -> Any:
        return ball.center


def test_training_that_is_not_attacked_raises(counter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "null", Null)
    with pytest.raises(RuntimeError, match=r"attack 'null' has left 100 observations .* no attack takes place"):
        ppo(envs(counter)).learn(240, callback=AdversarialTrainingCallback("null", EPS))
    schedule: dict[str, Any] = dict(eps_schedule="constant", start=0.99)
    ppo(envs(counter)).learn(240, callback=AdversarialTrainingCallback("null", EPS, **schedule))  # eps is 0 all along


def test_evaluation_that_is_not_attacked_raises(counter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "null", Null)
    callback = EvalCallback(envs(counter, 1), eval_freq=30, n_eval_episodes=40, verbose=0, warn=False)
    with pytest.raises(RuntimeError, match=r"attack 'null' has left 100 observations"):
        late = AdversarialTrainingCallback("null", EPS, start=0.99, evaluate="attacked")
        ppo(envs(counter, 1)).learn(240, callback=[late, callback])


def test_what_an_exception_left_is_put_right_at_the_next_start(counter: Any) -> None:
    venv, eval_env = envs(counter), envs(counter, 1)
    model, evaluation = ppo(venv), EvalCallback(eval_env, eval_freq=10**6, verbose=0)
    with pytest.raises(RuntimeError, match="killed"):
        model.learn(240, callback=[AdversarialTrainingCallback("random", EPS), evaluation, Seen(fail_at=20)])
    seen = Seen()
    model.learn(120, callback=[AdversarialTrainingCallback("random", EPS), evaluation, seen], reset_num_timesteps=False)
    assert seen.envs[0].venv is venv and model.env is venv and evaluation.eval_env is eval_env
    third = np.abs(seen.rollouts[0][..., 2])
    assert 0 < third.min() and third.max() <= EPS  # once, the observation that was left over too


def test_the_end_of_training_may_be_told_twice(counter: Any) -> None:
    venv = envs(counter)
    model, callback = ppo(venv), AdversarialTrainingCallback("random", EPS)
    model.learn(120, callback=callback)
    callback.on_training_end()
    assert model.env is venv
    np.testing.assert_array_equal(model._last_obs, truth(1, 60).repeat(2, axis=1)[0])  # true again
    model.learn(120, callback=callback, reset_num_timesteps=False)
    AdversarialTrainingCallback("random", EPS).on_training_end()  # of one that never began


def test_environments_may_live_in_other_processes() -> None:
    venv = make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=SubprocVecEnv)
    seen, model = Seen(), ppo(venv)
    try:
        settings: dict[str, Any] = dict(attack_kwargs={"steps": 2, "restarts": 2})
        model.learn(120, callback=[AdversarialTrainingCallback("mad", 0.1, norm="l2", **settings), seen])
    finally:
        venv.close()
    assert 0.09 < seen.logged[0]["attack/mean_perturbation"] <= 0.1


def test_a_ramp_on_images_may_begin_below_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """That no pixel moves yet is no failure; that none moves at full eps is."""
    images = [lambda: FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True)]
    settings: dict[str, Any] = dict(n_steps=128, batch_size=128, n_epochs=1, seed=0, device="cpu")
    ramp: dict[str, Any] = dict(eps_schedule="linear", end=1.0)
    seen = Seen()
    PPO("CnnPolicy", DummyVecEnv(images), **settings).learn(
        512, callback=[AdversarialTrainingCallback("random", 2.0, **ramp), seen]
    )
    assert [one["attack/eps"] for one in seen.logged] == [0.0, 0.5, 1.0, 1.5]
    moved = [one["attack/mean_perturbation"] for one in seen.logged]
    assert moved[1] == 0 and 0 < moved[2] <= 1
    monkeypatch.setattr(RandomAttack, "perturb", lambda self, policy, ball: ball.center)
    with pytest.raises(RuntimeError, match=r"left 100 observations and more unchanged although eps is 1\.0"):
        PPO("CnnPolicy", DummyVecEnv(images), **settings).learn(
            512, callback=AdversarialTrainingCallback("random", 2.0, **ramp)
        )


def test_numbers_are_those_of_the_seed(counter: Any) -> None:
    def rollout(**seeds: Any) -> Any:
        seen = Seen()
        callback = AdversarialTrainingCallback("random", EPS, seed=seeds.pop("attack", None))
        ppo(envs(counter), **seeds).learn(120, callback=[callback, seen])
        return seen.rollouts[0]

    first = rollout(seed=3)
    np.testing.assert_array_equal(first, rollout(seed=3))
    np.testing.assert_array_equal(rollout(seed=3, attack=5), rollout(seed=4, attack=5))
    assert not np.array_equal(first, rollout(seed=4))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "attack": ({"attack": "laser"}, r"attack 'laser' is not known; choose one of \['random', 'fgsm'"),
    "learned": ({"attack": "robust-sarsa"}, r"attack 'robust-sarsa' learns on a victim that stays.*'mad'"),
    "eps": ({"eps": 0.0}, r"eps=0.0 is 0 everywhere: that is no attack"),
    "negative eps": ({"eps": -1.0}, r"eps=-1.0"),
    "norm": ({"norm": "l7"}, r"norm='l7' is not known"),
    "schedule": ({"eps_schedule": "cubic"}, r"eps_schedule='cubic' is not known; choose one of \['constant', 'linear'\]"),
    "evaluate": ({"evaluate": "both"}, r"evaluate='both' is not known; choose one of \['clean', 'attacked'\]"),
    "start": ({"start": 1.0}, r"start=1.0 must lie in \[0, 1\)"),
    "end": ({"eps_schedule": "linear", "start": 0.5, "end": 0.5}, r"end=0.5 in \(start, 1\]"),
    "end for nothing": ({"end": 0.5}, r"end=0.5 belongs to eps_schedule='linear'"),
    "steps": ({"attack": "mad", "attack_kwargs": {"steps": 0}}, r"steps=0 must be a whole number"),
    "several": ({"attack": ["mad", "critic"]}, r"attack=\['mad', 'critic'\] must be the name of one attack"),
    "text": ({"eps": "0.1"}, r"eps='0.1' must be a number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        AdversarialTrainingCallback(**{"attack": "random", "eps": EPS, **changes})


def test_two_at_a_time_are_refused(counter: Any) -> None:
    callbacks = [AdversarialTrainingCallback("random", EPS), AdversarialTrainingCallback("mad", EPS)]
    with pytest.raises(ValueError, match=r"more than one AdversarialTrainingCallback"):
        ppo(envs(counter)).learn(120, callback=callbacks)  # type: ignore[arg-type]


class EvaluatesAtTheEnd(BaseCallback):
    """As PruningCallback does."""

    evaluates_at_end = True

    def _on_step(self) -> bool:
        return True


def test_a_last_evaluation_cannot_come_when_the_attack_has_gone(counter: Any) -> None:
    attack = AdversarialTrainingCallback("random", EPS)
    with pytest.raises(ValueError, match=r"before EvaluatesAtTheEnd; list it behind"):
        ppo(envs(counter)).learn(120, callback=[attack, EvaluatesAtTheEnd()])
    ppo(envs(counter)).learn(120, callback=[EvaluatesAtTheEnd(), attack])


def test_ars_is_refused() -> None:
    with pytest.raises(TypeError, match=r"ARS plays perturbed copies of its policy"):
        ARS("LinearPolicy", "CartPole-v1", n_delta=1).learn(10, callback=AdversarialTrainingCallback("random", EPS))
