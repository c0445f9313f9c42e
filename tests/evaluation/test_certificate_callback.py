"""Certificates logged during training: what they say, that they change nothing, and that they keep to their share of time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import VecNormalize

from sb3_prune_robust import LipschitzGaussianPolicy, PruningCallback, certify
from sb3_prune_robust.attacks import AdversarialTrainingCallback
from sb3_prune_robust.evaluation import CertificateCallback
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.network import UnsupportedNetworkError

ENV = "InvertedPendulum-v5"


class Recorder(CertificateCallback):
    """Keeps what is logged, and the states and policy it was logged for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logged: list[dict[str, float]] = []

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        values = self.logger.name_to_value
        self.logged.append({k: v for k, v in values.items() if k.startswith("certificate/")})
        if "certificate/tv" in values:
            states = self.model.rollout_buffer.observations.reshape(-1, 4)  # type: ignore[attr-defined]
            self.expected = certify(self.model, states, self.eps, method="crown").tv.mean()


def learn(callback: Any, steps: int = 1024, **kwargs: Any) -> PPO:
    venv = VecNormalize(make_env(ENV, 2))
    arguments: dict[str, Any] = dict(n_steps=128, batch_size=64, n_epochs=2, seed=0, device="cpu")
    return PPO(LipschitzGaussianPolicy, venv, **arguments, **kwargs).learn(steps, callback=callback)


def evaluation_env() -> VecNormalize:
    return VecNormalize(make_env(ENV, 4), training=False, norm_reward=False)


def test_what_is_logged_and_how_often() -> None:
    callback = Recorder(0.01, freq=512, n_states=256, eval_env=evaluation_env(), return_freq=768, n_episodes=10, max_share=1.0)
    learn(callback)
    with_tv = [i for i, entry in enumerate(callback.logged) if "certificate/tv" in entry]
    assert with_tv == [0, 2]  # rollouts of 256 steps, every 512
    last = callback.logged[2]
    assert last["certificate/tv"] == pytest.approx(callback.expected)
    assert 0 < last["certificate/tv"] < last["certificate/abs"] < 1
    returns = [entry for entry in callback.logged if "certificate/return" in entry]
    assert returns and all(0 <= one["certificate/return"] <= one["certificate/return_clean"] for one in returns)
    assert callback.seconds > 0


def test_training_is_the_same_with_and_without() -> None:
    callback = CertificateCallback(0.01, freq=1, eval_env=evaluation_env(), return_freq=1, n_episodes=5, max_share=1.0)
    with_certificates, without = learn(callback), learn(None)
    for ours, theirs in zip(with_certificates.policy.parameters(), without.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


def test_it_certifies_a_return_while_training_is_under_attack() -> None:
    """The adversary is one wrapper more than the environment of the certificate has."""
    callback = Recorder(0.01, freq=1, eval_env=evaluation_env(), return_freq=1, n_episodes=5, max_share=1.0)
    learn([AdversarialTrainingCallback("random", 0.01), callback], 512)
    assert all("certificate/return" in entry for entry in callback.logged) and len(callback.logged) == 2
    assert callback.eval_env.obs_rms.count > 256  # type: ignore[union-attr]  # statistics of training


def test_bound_a_falls_as_pruning_goes_on_and_the_callbacks_work_together() -> None:
    callback = Recorder(0.01, freq=1, max_share=1.0)
    learn([callback, PruningCallback(0.8, start=0.0, end=1.0)], 1024, learning_rate=0.0)  # nothing but pruning changes weights
    bound_a = [entry["certificate/abs"] for entry in callback.logged]
    assert len(bound_a) == 4 and all(np.diff(bound_a) < 0)


def test_it_keeps_to_its_share_of_the_time_and_says_so() -> None:
    """A share that lets the cheap certificates pass and puts the return off; then one that puts all off."""
    arguments: dict[str, Any] = dict(freq=1, n_states=8, eval_env=evaluation_env(), return_freq=1, n_episodes=5000)
    callback = Recorder(0.01, **arguments, max_share=0.9)
    with pytest.warns(UserWarning, match="a certified return of 6000 episodes takes about .* it is put off until about"):
        learn(callback)
    assert not any("certificate/return" in entry for entry in callback.logged)
    assert sum("certificate/tv" in entry for entry in callback.logged) >= 2
    callback = Recorder(0.01, **{**arguments, "eval_env": None}, max_share=1e-9)
    learn(callback)
    assert sum("certificate/tv" in entry for entry in callback.logged) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(freq=0), "freq must be at least 1"),
        (dict(n_states=0), "n_states must be at least 1"),
        (dict(return_freq=0), "return_freq must be at least 1"),
        (dict(n_episodes=0), "n_episodes must be at least 1"),
        (dict(max_share=0.0), r"max_share must lie in \(0, 1\]"),
        (dict(clip_rewards=(0, 1)), "clip_rewards=.* is for certified returns, which need an eval_env"),
        (dict(confidence=1.0), r"confidence must lie in \[0.5, 1\)"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CertificateCallback(0.1, **arguments)


def test_what_does_not_fit_the_model_is_said_before_training() -> None:
    with pytest.raises(TypeError, match="SAC has no rollout buffer"):
        SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).learn(1, callback=CertificateCallback(0.1))
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, use_sde=True)
    with pytest.raises(UnsupportedNetworkError, match="action distribution StateDependentNoiseDistribution"):
        model.learn(64, callback=CertificateCallback(0.1))
    assert model.num_timesteps == 0
    with pytest.raises(ValueError, match="eps must be finite and >= 0"):
        learn(CertificateCallback(-0.1))
    with pytest.raises(ValueError, match="eval_env must be wrapped in VecNormalize if, and only if"):
        learn(CertificateCallback(0.1, eval_env=make_env(ENV, 1)))
    ready = evaluation_env()
    ready.training = True
    with pytest.raises(ValueError, match="statistics are still being updated"):
        learn(CertificateCallback(0.1, eval_env=ready))
    unknown = VecNormalize(make_env("InvertedDoublePendulum-v5", 1), training=False)
    with pytest.raises(ValueError, match="no return can be certified: MuJoCo's velocities are not bounded"):
        learn(CertificateCallback(0.1, eval_env=unknown))
