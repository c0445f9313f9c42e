"""ATLA: who learns when and from what, and what comes out of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_prune_robust import LipschitzCategoricalPolicy, LipschitzGaussianPolicy, PruningCallback, sparsity
from sb3_prune_robust.attacks import AdversarialTrainingCallback, AdversarialVecEnv, RandomAttack
from sb3_prune_robust.defences.atla import ATLAPPO, PAATLAPPO

CLASSES = [ATLAPPO, PAATLAPPO]
EPS = 0.25
ENVS, STEPS, LENGTH = 2, 20, 8  # environments, steps of an iteration in each, steps of an episode: no divisor of 20


class Counter(gym.Env[Any, Any]):
    """Observes ``(episode, step, 0)``, pays ``1 + step``, ends after :data:`LENGTH` steps."""

    def __init__(self, actions: spaces.Space[Any] | None = None, truncates: bool = False, paid: float = 1.0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = actions or spaces.Discrete(2)
        self.truncates, self.paid = truncates, paid
        self.episode, self.steps = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.steps = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.steps += 1
        over = self.steps == LENGTH
        return self._observation(), self.paid * self.steps, over and not self.truncates, over and self.truncates, {}

    def _observation(self) -> Any:
        return np.array([self.episode, self.steps, 0], np.float32)


def counters(**settings: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(Counter(**settings))] * ENVS)


def truth(first: int, n: int = STEPS) -> Any:
    """What :class:`Counter` shows from a step on, shape ``(n, 1, 3)``."""
    steps = np.arange(first, first + n)
    return np.stack([steps // LENGTH, steps % LENGTH, np.zeros(n)], axis=1)[:, None]


def make(kind: Any, env: Any, policy: Any = "MlpPolicy", **settings: Any) -> Any:
    usual: dict[str, Any] = dict(n_steps=STEPS, batch_size=20, n_epochs=2, seed=0, device="cpu", gamma=0.9)
    robust = {} if kind is PPO else dict(eps=EPS, eps_schedule="constant", adversary_kwargs={"n_epochs": 2})
    return kind(policy, env, **{**usual, **robust, **settings})


def flat(module: th.nn.Module) -> Any:
    return th.nn.utils.parameters_to_vector(module.parameters()).detach().numpy().copy()


class Seen(BaseCallback):
    """What training looks like from inside."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.starts: list[Any] = []
        self.rollouts: list[Any] = []
        self.adversaries: list[Any] = []
        self.envs: list[Any] = []

    def _on_rollout_start(self) -> None:
        self.adversaries.append(flat(self.model.adversary.policy))

    def _on_step(self) -> bool:
        return self.num_timesteps != self.stop_at

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        self.rollouts.append(buffer.observations.copy())
        self.starts.append(buffer.episode_starts.copy())
        self.adversaries.append(flat(self.model.adversary.policy))
        self.envs.append(self.training_env)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_agent_learns_from_perturbed_observations_of_every_second_rollout(kind: Any, norm: str) -> None:
    """Episodes go on through the adversary's iterations, from where the agent left them."""
    seen, model = Seen(), make(kind, counters(), norm=norm)
    model.learn(4 * ENVS * STEPS, callback=seen)
    assert len(seen.rollouts) == 4
    for k, (observed, starts) in enumerate(zip(seen.rollouts, seen.starts, strict=True)):
        true = truth(2 * k * STEPS)
        change = observed - true
        size = np.abs(change).max(axis=-1) if norm == "linf" else np.linalg.norm(change, axis=-1)
        assert 0 < size.min() and size.max() <= EPS
        assert (starts == (true[..., 1] == 0)).all()
    assert model._last_obs.tolist() == [truth(8 * STEPS, 1)[0, 0].tolist()] * ENVS  # true, after the adversary's last


def test_a_third_entry_is_attacked_by_a_policy_that_samples() -> None:
    """The same observation is perturbed in another way each time, and within a radius of its own for each dimension."""
    seen = Seen()
    make(ATLAPPO, counters(), eps=[0.0, 0.1, 0.2]).learn(ENVS * STEPS, callback=seen)
    change = np.abs(seen.rollouts[0] - truth(0))
    assert (change[..., 0] == 0).all()
    assert 0.05 < change[..., 1].max() <= 0.1 < change[..., 2].max() <= 0.2
    assert len(np.unique(change[..., 2])) > STEPS / 2


@pytest.mark.parametrize("kind", CLASSES)
def test_the_adversary_learns_once_an_iteration_and_never_within_the_agents(kind: Any) -> None:
    seen, model = Seen(), make(kind, counters())
    model.learn(3 * ENVS * STEPS, callback=seen)
    weights = [*seen.adversaries, flat(model.adversary.policy)]
    same = [bool((a == b).all()) for a, b in pairwise(weights)]
    assert same == [True, False] * 3
    assert model.adversary_timesteps == model.num_timesteps == 3 * ENVS * STEPS
    assert model.adversary._n_updates == 3 * 2


def test_the_agent_stands_still_while_the_adversary_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(ATLAPPO, counters())
    learn, before = model._train_adversary, []

    def watched() -> None:
        before.append((flat(model.policy), th.random.get_rng_state(), np.random.get_state()[1].copy()))  # noqa: NPY002
        learn()
        policy, torchs, numpys = before[-1]
        assert (flat(model.policy) == policy).all()
        assert (th.random.get_rng_state() == torchs).all() and (np.random.get_state()[1] == numpys).all()  # noqa: NPY002

    monkeypatch.setattr(model, "_train_adversary", watched)
    model.learn(2 * ENVS * STEPS)
    assert len(before) == 2


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
def test_the_adversary_is_paid_minus_the_raw_reward_over_a_running_scale(kind: Any, normalized: bool) -> None:
    env: Any = counters(paid=100.0)
    model = make(kind, VecNormalize(env) if normalized else env)
    n = 20
    model.learn(n * ENVS * STEPS)
    paid = 100.0 * (1 + truth((2 * n - 1) * STEPS)[..., 1])  # its last rollout comes after the agent's last
    scale = -model.adversary.rollout_buffer.rewards / paid * np.sqrt(model._adversary_rewards.var)
    assert np.abs(scale - 1).max() < 0.05
    returns = [(1 + np.arange(LENGTH))[:k] @ 0.99 ** np.arange(k)[::-1] for k in range(1, LENGTH + 1)]
    assert np.sqrt(model._adversary_rewards.var) == pytest.approx(100 * np.std(returns), rel=0.3)


def test_the_adversary_observes_the_true_state_standardised() -> None:
    model = make(ATLAPPO, counters())
    model.learn(2 * ENVS * STEPS)
    # After training the buffer is flat, one environment after the other.
    observed = model.adversary.rollout_buffer.observations.reshape(ENVS, STEPS, 3).swapaxes(0, 1)
    true = truth(3 * STEPS)
    agents = np.concatenate([truth(0), truth(2 * STEPS)])[:, 0, 1]
    expected = (true[..., 1] - agents.mean()) / agents.std()
    assert np.abs(observed[..., 1] - expected).max() < 0.3  # its statistics are of perturbed observations
    assert (observed[..., 1] == observed[:, :1, 1]).all()  # what it sees itself is not perturbed
    assert (model.adversary.rollout_buffer.episode_starts == (true[..., 1] == 0)).all()


@pytest.mark.parametrize("truncates", [False, True])
def test_episodes_are_not_cut_at_the_switch(truncates: bool) -> None:
    model = make(ATLAPPO, counters(truncates=truncates))
    n = 5
    model.learn(n * ENVS * STEPS)
    episodes = [[one["l"] for one in who.ep_info_buffer] for who in (model, model.adversary)]
    assert set(episodes[0]) == set(episodes[1]) == {LENGTH}
    assert len(episodes[0]) + len(episodes[1]) == ENVS * (2 * n * STEPS // LENGTH)
    logged = model.logger.name_to_value
    assert logged["defence/attacked_return"] == LENGTH * (LENGTH + 1) / 2
    assert logged["defence/adversary_timesteps"] == n * ENVS * STEPS and logged["defence/eps"] == EPS


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_without_a_radius_it_is_ppo(kind: Any, env_id: str, schedule: str) -> None:
    models = [
        make(one, make_vec_env(env_id, n_envs=ENVS, seed=0), **settings).learn(4 * ENVS * STEPS)
        for one, settings in ((PPO, {}), (kind, dict(eps=0.0, eps_schedule=schedule)))
    ]
    assert (flat(models[0].policy) == flat(models[1].policy)).all()
    assert models[1].adversary_timesteps == models[1].adversary._n_updates == 0


def test_a_linear_schedule_begins_without_attack() -> None:
    seen, model = Seen(), make(ATLAPPO, counters(), eps_schedule="linear", eps_end=1.0)
    model.learn(4 * ENVS * STEPS, callback=seen)
    # The adversary learns from the end of the first iteration on.
    largest = [np.abs(observed - truth(2 * k * STEPS)).max() for k, observed in enumerate(seen.rollouts)]
    assert largest[0] == 0
    for k in (1, 2, 3):
        assert 0.2 * k * EPS < largest[k] <= 0.25 * k * EPS


@pytest.mark.parametrize("kind", CLASSES)
def test_a_seed_fixes_both(kind: Any) -> None:
    def weights(seed: int, noise: int) -> list[Any]:
        model = make(kind, make_vec_env("CartPole-v1", n_envs=ENVS, seed=0), seed=seed)
        th.manual_seed(7)
        np.random.seed(noise)  # noqa: NPY002
        model.learn(3 * ENVS * STEPS)
        return [flat(model.policy), flat(model.adversary.policy)]

    first, again, other = weights(0, 1), weights(0, 1), weights(1, 1)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "policy, actions",
    [
        ("MlpPolicy", spaces.Discrete(3)),
        ("MlpPolicy", spaces.Box(-1, 1, (2,))),
        (LipschitzGaussianPolicy, spaces.Box(-1, 1, (2,))),
        (LipschitzCategoricalPolicy, spaces.Discrete(3)),
    ],
)
def test_save_load_continue(kind: Any, policy: Any, actions: Any, tmp_path: Path) -> None:
    model = make(kind, counters(actions=actions), policy)
    model.learn(2 * ENVS * STEPS)
    model.save(tmp_path / "model")
    loaded = kind.load(tmp_path / "model", env=counters(actions=actions), device="cpu")
    assert (flat(loaded.adversary.policy) == flat(model.adversary.policy)).all()
    moments = [one.adversary.policy.optimizer.state_dict()["state"] for one in (model, loaded)]
    assert moments[1] and all((moments[0][k]["exp_avg"] == moments[1][k]["exp_avg"]).all() for k in moments[0])
    for name in ("mean", "var", "count"):
        for attribute in ("_adversary_rewards", "_observed"):
            assert np.all(getattr(getattr(loaded, attribute), name) == getattr(getattr(model, attribute), name))
    assert loaded._adversary_rng.bit_generator.state == model._adversary_rng.bit_generator.state  # it goes on where it was
    assert loaded.adversary_timesteps == 2 * ENVS * STEPS and loaded.adversary.n_epochs == 2
    loaded.learn(ENVS * STEPS, reset_num_timesteps=False)
    assert loaded.adversary_timesteps == loaded.num_timesteps == 3 * ENVS * STEPS
    assert (flat(loaded.adversary.policy) != flat(model.adversary.policy)).any()
    assert kind.load(tmp_path / "model").predict(np.zeros(3, np.float32))[0].shape == actions.shape


def test_evaluation_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, shown = make(ATLAPPO, counters()), Seen(), []
    predict = model.policy.predict
    monkeypatch.setattr(model.policy, "predict", lambda obs, *a, **k: shown.append(obs.copy()) or predict(obs, *a, **k))
    evaluation = EvalCallback(DummyVecEnv([lambda: Monitor(Counter())]), eval_freq=7, n_eval_episodes=2, verbose=0)
    env = model.env
    model.learn(2 * ENVS * STEPS, callback=[evaluation, seen])
    assert len(shown) > 4 * LENGTH and all((obs == obs.round()).all() for obs in shown)
    assert model.env is env and seen.envs == [env] * 2  # what other callbacks find, too
    assert seen.rollouts[1][..., 2].all()


def test_statistics_move_in_the_agents_iterations_only() -> None:
    env = VecNormalize(counters(), gamma=0.9)
    model = make(ATLAPPO, env)
    model.learn(3 * ENVS * STEPS)
    statistics: Any = env.obs_rms
    assert statistics.count == pytest.approx(1e-4 + ENVS + 3 * ENVS * STEPS)  # with the reset
    assert env.ret_rms.count == pytest.approx(1e-4 + 3 * ENVS * STEPS)
    assert env.training and env.norm_reward
    seen = np.concatenate([truth(0, 1)] + [truth(2 * k * STEPS + 1) for k in range(3)])
    assert statistics.mean == pytest.approx(seen[:, 0].mean(axis=0), abs=1e-3)


def test_a_rollout_that_is_broken_off_leaves_true_observations() -> None:
    model = make(ATLAPPO, counters())
    model.learn(10 * ENVS * STEPS, callback=Seen(stop_at=5 * ENVS))
    assert model._last_obs.tolist() == [truth(5, 1)[0, 0].tolist()] * ENVS


@pytest.mark.parametrize("kind", CLASSES)
def test_pruned_weights_stay_zero(kind: Any) -> None:
    env = make_vec_env("Pendulum-v1", n_envs=ENVS, seed=0)
    model = make(kind, env, LipschitzGaussianPolicy, policy_kwargs=dict(lipschitz=5.0))
    model.learn(10 * ENVS * STEPS, callback=PruningCallback(final_sparsity=0.7, start=0.2, end=0.5))
    assert sparsity(model)["actor"] == pytest.approx(0.7, abs=0.01)
    zeros = [(p == 0).clone() for p in model.policy.mlp_extractor.policy_net.parameters()]
    before = flat(model.policy)
    model.learn(2 * ENVS * STEPS, reset_num_timesteps=False)
    assert (flat(model.policy) != before).any()
    assert all((p[zero] == 0).all() for p, zero in zip(model.policy.mlp_extractor.policy_net.parameters(), zeros, strict=True))


def test_pa_atla_attacks_in_the_action_space_and_regularises() -> None:
    for actions, size in ((spaces.Discrete(4), 4), (spaces.Box(-1, 1, (2,)), 2)):
        models = [make(PAATLAPPO, counters(actions=actions), kappa=kappa).learn(3 * ENVS * STEPS) for kappa in (0.0, 1.0)]
        assert models[0].adversary.action_space.shape == (size,)
        assert (flat(models[0].policy) != flat(models[1].policy)).any()
        assert models[1].logger.name_to_value["defence/regularizer"] > 0
    assert make(ATLAPPO, counters()).adversary.action_space.shape == (3,)


def test_arguments_of_the_adversary() -> None:
    model = ATLAPPO("MlpPolicy", counters(), n_steps=320, device="cpu")
    adversary = model.adversary
    assert (adversary.n_steps, adversary.batch_size, adversary.learning_rate) == (320, 20, 1e-3)
    assert adversary.rollout_buffer.n_envs == ENVS and adversary.max_grad_norm == np.inf
    settings = dict(n_steps=10, learning_rate=lambda left: 1e-3 * left, policy_kwargs={"net_arch": [8]})
    model = make(ATLAPPO, counters(), adversary_kwargs=settings)
    model.learn(4 * ENVS * STEPS)
    assert model.adversary_timesteps == 4 * ENVS * 10
    assert model.adversary.policy.optimizer.param_groups[0]["lr"] == 0.0  # at the end of the agent's training
    with pytest.raises(ValueError, match=r"adversary_kwargs must be arguments of PPO other than .*; got 'seed'"):
        make(ATLAPPO, counters(), adversary_kwargs={"seed": 1})


class Other(Counter):
    """Observes something else."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.observation_space = space


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "policy, space",
    [
        ("MultiInputPolicy", spaces.Dict({"a": spaces.Box(-1, 1, (3,))})),
        ("CnnPolicy", spaces.Box(0, 255, (36, 36, 1), np.uint8)),
        ("MlpPolicy", spaces.Discrete(3)),
    ],
)
def test_other_observations_are_refused(kind: Any, policy: str, space: Any) -> None:
    with pytest.raises(Exception, match=r"observations|changes no image"):
        make(kind, DummyVecEnv([lambda: Other(space)]), policy, **({"inner": "pgd"} if kind is PAATLAPPO else {}))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eps has shape \(2,\)"):
        make(ATLAPPO, counters(), eps=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"already holds an AdversarialVecEnv"):
        make(ATLAPPO, counters()).learn(ENVS * STEPS, callback=AdversarialTrainingCallback("random", 0.1))


def test_the_adversary_of_a_training_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"SARL is directed by .*, which files cannot hold; fit it instead"):
        make(ATLAPPO, counters())._adversary_now().save(tmp_path / "attack.npz")


@pytest.mark.parametrize("kind", CLASSES)
def test_the_adversary_learns_to_bring_down_a_good_agent(kind: Any) -> None:
    """An agent that balances CartPole and does not learn: noise of the same size does little to it."""
    th.set_num_threads(1)
    eps = 0.3
    model = make(
        kind,
        make_vec_env("CartPole-v1", n_envs=8, seed=0),
        policy_kwargs=dict(net_arch=dict(pi=[], vf=[])),
        eps=eps,
        n_steps=256,
        batch_size=2048,
        n_epochs=1,
        learning_rate=0.0,  # the agent's
        adversary_kwargs={},
    )
    with th.no_grad():
        push = 5 * th.tensor([0.1, 0.5, 2.0, 1.0])
        model.policy.action_net.weight.copy_(th.stack([-push, push]))
        model.policy.action_net.bias.zero_()
    model.learn(12_000)

    def played(attack: Any) -> float:
        env = AdversarialVecEnv(make_vec_env("CartPole-v1", n_envs=8, seed=1), model, attack)
        return float(evaluate_policy(model, env, 8, deterministic=False, warn=False)[0])  # type: ignore[arg-type]

    returns = played(RandomAttack(eps, seed=0)), played(model._adversary_now())
    assert returns[1] < returns[0] / 3 and returns[0] > 150, returns
