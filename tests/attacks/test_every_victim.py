"""Attacks and certificates on a policy of every SB3 algorithm: outputs, gradients, gains, certified actions."""

from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_prune_robust import AdversarialVecEnv, certify
from sb3_prune_robust.actor import Actor
from sb3_prune_robust.attacks import MAD, PAAD, PGD, SARL, Attack, Budget, CriticAttack, RandomAttack, RobustSarsa, Snooping
from sb3_prune_robust.attacks.engines import NetworkReader, outputs_at
from sb3_prune_robust.attacks.objectives import analytic_objective, autograd_objective
from sb3_prune_robust.attacks.q_descent import QDescent
from sb3_prune_robust.attacks.robust_q import QFunction
from sb3_prune_robust.evaluation import rollout
from sb3_prune_robust.evaluation.rollouts import NoAttackError
from sb3_prune_robust.network import TANH, Network, UnsupportedNetworkError, action_network

BUFFER = {"buffer_size": 200}
ALGORITHMS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "ppo": (PPO, "Pendulum-v1", {"n_steps": 16, "batch_size": 16}),
    "a2c": (A2C, "CartPole-v1", {}),
    "trpo": (TRPO, "CartPole-v1", {"n_steps": 16, "batch_size": 16}),
    "maskable": (MaskablePPO, "CartPole-v1", {"n_steps": 16, "batch_size": 16}),
    "sac": (SAC, "Pendulum-v1", BUFFER),
    "td3": (TD3, "Pendulum-v1", BUFFER),
    "ddpg": (DDPG, "Pendulum-v1", BUFFER),
    "tqc": (TQC, "Pendulum-v1", BUFFER),
    "crossq": (CrossQ, "Pendulum-v1", {**BUFFER, "learning_starts": 20, "batch_size": 32}),
    "dqn": (DQN, "CartPole-v1", BUFFER),
    "qrdqn": (QRDQN, "CartPole-v1", BUFFER),
    "ars": (ARS, "Pendulum-v1", {"n_delta": 1, "n_top": 1}),
    "ars-discrete": (ARS, "CartPole-v1", {"n_delta": 1, "n_top": 1}),
}
ACTORS = ("sac", "td3", "ddpg", "tqc", "crossq")
GREEDY = ("dqn", "qrdqn", "ars-discrete")
OBS = {"Pendulum-v1": 3, "CartPole-v1": 4}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    made, random = {}, th.Generator().manual_seed(0)
    for name, (algorithm, env, settings) in ALGORITHMS.items():
        model = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [24, 24]}, seed=0, device="cpu", **settings)
        if name == "crossq":
            model.learn(60)  # its running statistics are those of data, then
        with th.no_grad():
            for parameter in model.policy.parameters():
                if name.startswith("ars"):  # all zeros before it learns
                    parameter.copy_(th.randn(parameter.shape, generator=random) / 4)
                elif parameter.ndim == 2:
                    parameter.mul_(1.5)
        model.policy.set_training_mode(False)
        made[name] = model
    return made


def observations(name: str, n: int = 32) -> Any:
    return np.random.default_rng(0).normal(size=(n, OBS[ALGORITHMS[name][1]])).astype(np.float32)


def played(model: Any, obs: Any) -> Any:
    return model.policy.predict(obs, deterministic=True)[0].astype(np.float64).reshape(len(obs), -1)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_plain_network_is_what_the_policy_computes(models: dict[str, Any], name: str) -> None:
    policy, obs = models[name].policy, observations(name)
    logits = action_network(policy)(obs)
    through = outputs_at(policy, obs)
    if name in ("a2c", "trpo", "maskable"):  # torch keeps logits up to a constant
        logits = logits - logits.mean(axis=1, keepdims=True)
        through = through - through.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, through, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_actor_plays_what_predict_plays(models: dict[str, Any], name: str) -> None:
    policy, obs = models[name].policy, observations(name)
    actor = Actor(policy, deterministic=True)
    assert actor.network is not None  # the fast path
    streams = [np.random.default_rng(i) for i in range(len(obs))]
    actions = actor(obs, streams)[0]
    expected = policy.predict(obs, deterministic=True)[0]
    assert actions.shape == expected.shape and actions.dtype == expected.dtype
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sac", "tqc", "crossq"])
def test_noise_of_a_squashed_actor_is_its_own(models: dict[str, Any], name: str) -> None:
    policy, obs = models[name].policy, np.repeat(observations(name, 1), 3000, axis=0)
    streams = [np.random.default_rng(i) for i in range(len(obs))]
    actions = Actor(policy, deterministic=False)(obs, streams)[0]
    with th.no_grad():
        expected = policy.actor.action_log_prob(th.as_tensor(obs))[0].numpy()
    assert abs(actions.std() - 2.0 * expected.std()) < 0.1 and actions.std() > 0.1  # the box is [-2, 2]


@pytest.mark.parametrize("objective", ["mad", "critic"])
@pytest.mark.parametrize("name", [*ACTORS, *GREEDY, "ars", "maskable"])
def test_gradients_are_those_of_finite_differences(models: dict[str, Any], name: str, objective: str) -> None:
    policy, obs = models[name].policy, observations(name, 6)
    if objective == "critic" and name.startswith("ars"):
        for engine in ("analytic", "autograd"):
            with pytest.raises(UnsupportedNetworkError, match=r"ARS.*critic"):
                CriticAttack(0.1, engine=engine)(policy, obs)
        return
    engines = [autograd_objective(policy, obs, objective, False)]
    if objective == "mad" or name in (*GREEDY, "maskable"):
        engines.append(analytic_objective(policy, obs, objective, False, NetworkReader()))
    hat = obs + np.random.default_rng(1).normal(size=obs.shape).astype(np.float32) * 0.2
    found = [one.value_and_gradient(hat) for one in engines]
    for (values, gradient), one in zip(found, engines, strict=True):
        np.testing.assert_allclose(values, one.value(hat), rtol=1e-4, atol=1e-5)
        direction = np.random.default_rng(2).normal(size=obs.shape).astype(np.float32)
        step = 2e-3
        slope = (one.value(hat + step * direction) - one.value(hat - step * direction)) / (2 * step)
        np.testing.assert_allclose((gradient * direction).sum(axis=1), slope, rtol=0.05, atol=2e-3 * (1 + np.abs(slope).max()))
    if len(found) == 2:
        np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_mad_moves_actions_further_than_noise_does(models: dict[str, Any], name: str) -> None:
    model, obs = models[name], observations(name, 200)
    clean = played(model, obs)
    moved = {}
    for attack in (MAD(0.15, seed=0, deterministic=True), RandomAttack(0.15, seed=0)):
        hat = attack(model, obs)
        assert hat.dtype == np.float32 and np.abs(hat.astype(np.float64) - obs).max() <= 0.15
        moved[type(attack)] = np.abs(played(model, hat) - clean).mean()
    assert moved[MAD] > 1.5 * moved[RandomAttack]


def test_mad_is_not_blind_where_tanh_is_saturated(models: dict[str, Any]) -> None:
    """In float32 the tanh of 20 is 1, and its slope 0: the first coordinate alone leads out of there."""
    model = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": []}, device="cpu", **BUFFER)
    with th.no_grad():
        model.actor.mu.weight[:] = th.tensor([[100.0, 0.0, 0.0]])
        model.actor.mu.bias[:] = 20.0
    obs = np.zeros((4, 3), np.float32)
    for engine in ("analytic", "autograd"):
        np.testing.assert_allclose(played(model, MAD(0.5, seed=0, engine=engine)(model, obs)), -2.0, atol=1e-3)


@pytest.mark.parametrize("name", ["sac", "td3", "tqc", "crossq"])
def test_critic_attack_lowers_the_value_of_actions(models: dict[str, Any], name: str) -> None:
    model, obs = models[name], observations(name, 100)

    def value(hat: Any) -> float:
        with th.no_grad():
            action = th.as_tensor(played(model, hat) / 2.0, dtype=th.float32)
            found = model.policy.critic(th.as_tensor(obs), action)
        return float((found if isinstance(found, th.Tensor) else th.cat(found, dim=1)).mean())

    noise, attacked = value(RandomAttack(0.3, seed=0)(model, obs)), value(CriticAttack(0.3, seed=0)(model, obs))
    assert attacked < min(value(obs), noise) - 1e-4


@pytest.mark.parametrize("name", ["dqn", "qrdqn"])
def test_critic_attack_makes_a_q_network_play_what_it_values_least(models: dict[str, Any], name: str) -> None:
    model, obs = models[name], observations(name, 200)
    worst = outputs_at(model.policy, obs).argmin(axis=1)
    shares = [(played(model, hat)[:, 0] == worst).mean() for hat in (obs, CriticAttack(0.5, seed=0)(model, obs))]
    assert shares[0] == 0 and shares[1] > 0.2


def test_deterministic_makes_no_difference_to_what_never_samples(models: dict[str, Any]) -> None:
    for name in ("td3", "dqn", "ars"):
        obs = observations(name)
        first, second = (MAD(0.2, seed=0, deterministic=mode)(models[name], obs) for mode in (False, True))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("method", ["abs", "spectral", "lipsdp", "interval", "crown", "best"])
@pytest.mark.parametrize("name", [*ACTORS, "ars"])
def test_no_attack_moves_an_actor_further_than_certified(models: dict[str, Any], name: str, method: str) -> None:
    model, obs = models[name], observations(name)
    certificate = certify(model, obs, eps=0.05, method=method)
    assert certificate.radius.shape == (32, 1) and "deterministic action" in certificate.assumptions
    moved = np.abs(played(model, MAD(0.05, seed=0, deterministic=True)(model, obs)) - played(model, obs))
    assert (moved <= certificate.radius + 1e-6).all() and moved.max() > 1e-3
    assert (certificate.tv == 1).all() and np.isinf(certificate.kl).all() and certificate.delta is None
    if method == "crown":
        assert np.median(certificate.radius / moved.clip(1e-6)) < 3  # in the units of the action, half width 2


def test_certified_radius_by_hand() -> None:
    """``a = 2 tanh(3 s_1)`` at s = 0: an eps of 0.1 moves it by 2 tanh(0.3); far out, in the flat, by all but nothing."""
    model = TD3("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": []}, device="cpu", **BUFFER)
    with th.no_grad():
        model.actor.mu[0].weight[:] = th.tensor([[3.0, 0.0, 0.0]])
        model.actor.mu[0].bias[:] = 0.0
    model.policy.set_training_mode(False)
    certificate = certify(model, np.array([[0.0, 0, 0], [10.0, 0, 0]]), eps=0.1, method="interval")
    np.testing.assert_allclose(certificate.radius[:, 0], [2 * np.tanh(0.3), 0.0], atol=1e-9)
    assert certify(model, np.zeros((1, 3)), eps=[0.0, 0.1, 0.1]).tv[0] == 0  # entries that the actor does not look at


@pytest.mark.parametrize("name", GREEDY)
def test_certified_choices_do_not_change(models: dict[str, Any], name: str) -> None:
    model, obs = models[name], observations(name, 300)
    certificate = certify(model, obs, eps=0.05)
    unchanged = certificate.greedy_unchanged
    assert unchanged is not None and 0.1 < unchanged.mean() < 1
    hat = MAD(0.05, seed=0)(model, obs)
    stays = (played(model, hat) == played(model, obs))[:, 0]
    assert stays[unchanged].all() and not stays.all()
    np.testing.assert_array_equal(certificate.tv, np.where(unchanged, 0.0, 1.0))
    np.testing.assert_array_equal(certificate.kl, np.where(unchanged, 0.0, np.inf))
    change = np.abs(outputs_at(model.policy, hat) - outputs_at(model.policy, obs))
    assert (change <= certificate.radius + 1e-5).all() and change.max() > 0.5 * certificate.radius.max()


def masked_policy(space: Any, size: int = 3) -> MaskableActorCriticPolicy:
    th.manual_seed(0)
    seen = spaces.Box(-np.inf, np.inf, (size,), np.float32)
    policy = MaskableActorCriticPolicy(seen, space, lambda _: 1e-3, net_arch=[16, 16])
    policy.set_training_mode(False)
    with th.no_grad():
        policy.action_net.weight.mul_(100)
    return policy


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([3, 2])])
def test_a_masked_policy_is_certified_whatever_the_mask(space: Any) -> None:
    """Without the mask the first choice is all but certain, and its distribution cannot move; with it, the others compete."""
    policy, obs = masked_policy(space), np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    with th.no_grad():
        policy.action_net.bias[0] = 9.0
    certificate = certify(policy, obs, eps=0.05)
    assert certificate.margin is None and certificate.greedy_unchanged is None
    moved = []
    for mask in ([True] * len(policy.action_net.bias), [False, True, True, True, True][: len(policy.action_net.bias)]):
        for seed in range(3):
            hat = PGD(0.05, seed=seed, objective=lambda p, s, x: -p.get_distribution(x).log_prob(_others(p, x)))(policy, obs)
            masks = np.tile(mask, (len(obs), 1))
            p, q = (_probabilities(policy, x, masks) for x in (obs, hat))
            each = [np.abs(x - y).sum(axis=1) / 2 for x, y in zip(p, q, strict=True)]
            moved.append(np.max(each, axis=0))  # of all choices together it is no less
            assert (moved[-1] <= certificate.tv + 1e-6).all()
    assert np.max(moved) > 0.01


def _probabilities(policy: Any, obs: Any, masks: Any) -> list[Any]:
    with th.no_grad():
        found = policy.get_distribution(th.as_tensor(obs), action_masks=masks)  # one object, changed by each call
    return [one.probs.numpy().copy() for one in getattr(found, "distributions", None) or [found.distribution]]


def _others(policy: Any, obs: Any) -> Any:
    """A choice other than the first, for PGD to push away from."""
    return th.ones(len(obs)) if isinstance(policy.action_space, spaces.Discrete) else th.ones(len(obs), 2)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)])
@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_masked_policies_of_every_action_space_are_attacked(space: Any, engine: str) -> None:
    policy, obs = masked_policy(space), np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    moved = {}
    for attack in (MAD(0.2, seed=0, engine=engine), RandomAttack(0.2, seed=0)):
        moved[type(attack)] = np.abs(outputs_at(policy, attack(policy, obs)) - outputs_at(policy, obs)).mean()
    assert moved[MAD] > 1.3 * moved[RandomAttack]


def test_certificates_without_noise_are_refused_by_name(models: dict[str, Any]) -> None:
    from sb3_prune_robust import certify_return
    from sb3_prune_robust.evaluation import make_env

    for name in ("sac", "dqn", "maskable"):
        _, env, _ = ALGORITHMS[name]
        with pytest.raises(UnsupportedNetworkError, match=r"SACPolicy|DQNPolicy|MaskableActorCriticPolicy"):
            certify_return(models[name], make_env(env, 2), eps=0.01, n_episodes=2, clip_rewards=(0, 1))


class Sights(gym.Env[Any, int]):
    """Images and a vector: the reward is 1 for the choice that the vector's sign asks for."""

    action_space = spaces.Discrete(2)

    def __init__(self, keys: tuple[str, ...] = ("image", "vector", "stage")) -> None:
        parts: dict[str, spaces.Space[Any]] = {
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            "vector": spaces.Box(-1.0, 1.0, (3,), np.float32),
            "stage": spaces.Discrete(3),
        }
        self.observation_space = spaces.Dict({key: parts[key] for key in keys}) if len(keys) > 1 else parts[keys[0]]
        self.steps = 0

    def _seen(self) -> Any:
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._seen(), float(action), False, self.steps >= 5, {}


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_images_are_attacked_in_whole_pixels(algorithm: Any) -> None:
    settings: dict[str, Any] = BUFFER if algorithm is DQN else {"n_steps": 4, "batch_size": 4}
    model = algorithm("CnnPolicy", DummyVecEnv([lambda: Sights(("image",))] * 2), seed=0, device="cpu", **settings)
    venv = model.get_env()
    obs = venv.reset()
    assert obs.dtype == np.uint8 and obs.shape == (2, 1, 36, 36)
    obs[0], obs[1, 0, 0] = 0, 255  # at the ends of the range
    hat = MAD(3.0, seed=0, steps=3, restarts=2, deterministic=algorithm is DQN)(model, obs)
    change = hat.astype(int) - obs
    assert hat.dtype == np.uint8 and hat.shape == obs.shape
    assert np.abs(change).max() == 3 and (change[0] >= 0).all() and (change[1, 0, 0] <= 0).all()
    noise = RandomAttack(3.0, seed=0)(model, obs)
    moved = [
        np.abs(outputs_at(model.policy, x.reshape(2, -1).astype(np.float32)) - _outputs(model, obs)) for x in (hat, noise)
    ]
    assert moved[0].max() > 2 * moved[1].max()
    tensor = MAD(3.0, seed=0, steps=3, restarts=2, deterministic=algorithm is DQN)(model, th.as_tensor(obs))
    np.testing.assert_array_equal(tensor.numpy(), hat)
    with pytest.raises(UnsupportedNetworkError, match="features extractor"):
        certify(model, obs, eps=1.0)
    attacked = rollout(model, venv, 4, attack=MAD(3.0, steps=1, restarts=1), deterministic=True)
    assert attacked.perturbed == 1 and rollout(model, venv, 4, deterministic=True).perturbed == 0
    with pytest.raises(NoAttackError):
        rollout(model, venv, 2, attack=MAD(0.5, steps=1, restarts=1), deterministic=True)  # less than a pixel's step


@pytest.mark.parametrize("eps, norm, moved", [
    (1, "linf", 1), (1.5, "linf", 1), (4, "linf", 4), (4.01, "linf", 4), (3.99995, "linf", 3), (0.9, "linf", 0),
    (255, "linf", 128),
    (36 * 4 + 0.1, "l2", 4), (36 * 4 - 0.1, "l2", 3),
])  # fmt: skip
def test_a_pixel_moves_by_all_of_a_whole_radius(eps: float, norm: str, moved: int) -> None:
    """The ball ends just below 128 + 4 in floats, since it is rounded inward: cut off, that was a move of 3."""

    class Corner(Attack):
        def perturb(self, policy: Any, ball: Any) -> Any:
            return ball.center + 1000 * np.where(np.arange(ball.center.shape[1]) % 2, 1, -1)

    model = PPO("CnnPolicy", DummyVecEnv([lambda: Sights(("image",))]), n_steps=4, batch_size=4, seed=0, device="cpu")
    obs = np.full((2, 1, 36, 36), 128, np.uint8)
    change = Corner(eps, norm)(model, obs).astype(int) - obs
    side = np.where(np.arange(36 * 36) % 2, 1, -1).reshape(36, 36)
    np.testing.assert_array_equal(change, np.broadcast_to(np.minimum(moved * side, 127), change.shape))


def _outputs(model: Any, obs: Any) -> Any:
    return outputs_at(model.policy, obs.reshape(len(obs), -1).astype(np.float32))


def test_chosen_keys_of_dict_observations_are_attacked() -> None:
    model = PPO("MultiInputPolicy", DummyVecEnv([Sights] * 2), n_steps=4, batch_size=4, seed=0, device="cpu")
    venv = model.get_env()
    obs = venv.reset()
    attack = MAD({"vector": [0.1, 0.0, 0.2]}, seed=0, steps=3, restarts=2)
    hat = attack(model, obs)
    change = np.abs(hat["vector"].astype(np.float64) - obs["vector"])
    assert (change <= [0.1, 0.0, 0.2]).all() and change[:, [0, 2]].min() > 0
    np.testing.assert_array_equal(hat["image"], obs["image"])
    np.testing.assert_array_equal(hat["stage"], obs["stage"])
    both = MAD({"vector": 0.1, "image": 2}, seed=0, steps=2, restarts=1)(model, obs)
    assert np.abs(both["image"].astype(int) - obs["image"]).max() == 2 and both["image"].dtype == np.uint8
    for eps, message in (
        ({"stage": 0.1}, r"'stage'.*image, vector"),
        ({"sound": 0.1}, r"'sound'"),
        (0.1, r"by key"),
        ({"vector": [0.1, 0.2]}, r"eps\['vector'\] has shape"),
        ({"vector": -0.1}, r"eps\['vector'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            MAD(eps)(model, obs)
    with pytest.raises(ValueError, match=r"at least one key"):
        MAD({})
    with pytest.raises(TypeError, match=r"keys \['image', 'stage', 'vector'\]"):
        attack(model, obs["vector"])


def test_dict_observations_in_rollouts_and_environments() -> None:
    model = PPO("MultiInputPolicy", DummyVecEnv([Sights] * 2), n_steps=4, batch_size=4, seed=0, device="cpu")
    venv, attack = model.get_env(), PGD({"vector": 0.3}, seed=0, steps=2, restarts=1)
    episodes = rollout(model, venv, 3, attack=attack, record=True)
    assert episodes.perturbed == 1 and episodes.observations[0].shape == (5, 36 * 36 + 3 + 1)
    attacked = AdversarialVecEnv(venv, model, attack)
    obs = attacked.reset()
    obs, _, _, infos = attacked.step(np.zeros(2, np.int64))
    assert set(infos[0]["true_observation"]) == {"image", "vector", "stage"}
    assert not np.array_equal(infos[0]["true_observation"]["vector"], obs["vector"][0])
    np.testing.assert_array_equal(infos[0]["true_observation"]["image"], obs["image"][0])
    assert 0 < attacked.mean_perturbation <= 0.3
    with pytest.raises(UnsupportedNetworkError, match=r"Dict"):
        certify(model, np.zeros((1, 4)), eps=0.1)


def test_a_recurrent_victim_is_attacked_with_its_memory() -> None:
    model = RecurrentPPO(
        "MlpLstmPolicy", "CartPole-v1", n_steps=8, seed=0, device="cpu", policy_kwargs={"lstm_hidden_size": 8}
    )
    with th.no_grad():
        for parameter in model.policy.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    venv = model.get_env()
    with pytest.raises(UnsupportedNetworkError, match=r"memory"):
        MAD(0.1)(model, np.zeros((2, 4), np.float32))
    seen: list[Any] = []

    def attack(policy: Any, obs: Any) -> Any:
        seen.append((policy, obs))
        return MAD(1.0, seed=0)(policy, obs)

    clean, attacked = rollout(model, venv, 3, seed=5), rollout(model, venv, 3, attack=attack, seed=5)
    assert attacked.perturbed == 1 and clean.perturbed == 0
    # The memory is that of the episode: zero at its start, then not; and rows of a search's restarts each have their own.
    first, later = seen[0][0], seen[3][0]
    assert not first.memory[0].any() and later.memory[0].any()
    obs = th.as_tensor(np.repeat(seen[3][1], 3, axis=0))
    with th.no_grad():
        logits = later.get_distribution(obs).distribution.logits
    np.testing.assert_allclose(logits[0], logits[2], rtol=1e-6)
    alone, _ = model.policy.predict(seen[3][1], state=later.memory, episode_start=np.zeros(1, bool), deterministic=True)
    assert alone[0] == logits[0].argmax()
    with pytest.raises(UnsupportedNetworkError, match=r"critic has a memory"):
        rollout(model, venv, 1, attack=CriticAttack(0.1))


def test_recurrent_episodes_are_those_of_predict() -> None:
    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, seed=1, device="cpu")
    ours = rollout(model, model.get_env(), 2, deterministic=True, seed=3)
    env = gym.make("CartPole-v1")
    for k in range(2):
        obs, _ = env.reset(seed=3 + k)
        state, total, done = None, 0.0, False
        while not done:
            action, state = model.predict(obs, state=state, episode_start=np.array([state is None]), deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        assert total == ours.returns[k]


class Masked(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole in which pushing to the left is never allowed."""

    def action_masks(self) -> Any:
        return np.array([False, True])


def test_a_maskable_victim_plays_by_its_masks(models: dict[str, Any]) -> None:
    venv = DummyVecEnv([lambda: Masked(gym.make("CartPole-v1"))] * 2)
    right = rollout(models["maskable"], venv, 4)
    assert set(right.lengths) <= {8, 9, 10, 11}  # always to the right
    attacked = rollout(models["maskable"], venv, 4, attack=MAD(0.5, seed=0))
    assert attacked.perturbed == 1
    np.testing.assert_array_equal(attacked.returns, right.returns)  # no attack makes it break its mask


class Strict(Masked):
    """An illegal choice is an error."""

    def step(self, action: Any) -> Any:
        assert action == 1, "an illegal choice"
        return super().step(action)


@pytest.mark.parametrize("kind", [RobustSarsa, Snooping, SARL, PAAD])
def test_attacks_that_learn_obey_masks(models: dict[str, Any], kind: Any) -> None:
    """What plays an illegal choice is another victim."""
    small: dict[str, Any] = {}
    if kind is RobustSarsa:
        small = {"grid": [(0.1, 0.3)], "rounds": 1, "ratios": [0.0], "transitions": 200, "updates": 5}
    elif kind is not Snooping:
        small = {"algorithm_kwargs": {"n_steps": 32, "batch_size": 32, "n_epochs": 1}}
    venv = DummyVecEnv([lambda: Strict(gym.make("CartPole-v1"))] * 2)
    attack = kind(0.3, seed=0, **small).fit(models["maskable"], venv, Budget(steps=400))
    assert rollout(models["maskable"], venv, 2, attack=attack).perturbed > 0.5


@pytest.mark.parametrize("name", ["sac", "crossq", "gsde", "recurrent", "ppo"])
def test_noise_is_that_of_the_episode_whatever_is_played_beside_it(models: dict[str, Any], name: str) -> None:
    if name == "recurrent":
        model: Any = RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", n_steps=8, seed=0, device="cpu")
    elif name == "gsde":
        model = PPO("MlpPolicy", "Pendulum-v1", use_sde=True, n_steps=8, seed=0, device="cpu")
    else:
        model = models[name]
    obs = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)

    def streams() -> list[np.random.Generator]:
        return [np.random.default_rng(seed) for seed in (5, 6, 7)]

    together, alone = streams(), streams()
    first, second = Actor(model.policy, deterministic=False), Actor(model.policy, deterministic=False)
    for _ in range(3):
        actions = first(obs, together)[0]
        one_by_one = [second(obs[i : i + 1], alone[i : i + 1])[0] for i in (2, 0, 1)]
        np.testing.assert_allclose(actions, np.concatenate(one_by_one)[[1, 2, 0]], rtol=1e-5, atol=1e-6)
    assert np.ptp(actions) > 0.1


def test_keys_of_two_types_stay_in_the_ball() -> None:
    """All are flattened to float64; what comes back as float32 must not be rounded out of the ball."""
    space = spaces.Dict({"a": spaces.Box(-9, 9, (400,), np.float32), "b": spaces.Box(-9, 9, (3,), np.float64)})
    policy = MultiInputActorCriticPolicy(space, spaces.Discrete(2), lambda _: 1e-3)
    rng = np.random.default_rng(0)
    obs = {"a": rng.normal(size=(20, 400)).astype(np.float32), "b": rng.normal(size=(20, 3))}
    hat = MAD({"a": 0.1, "b": 0.3}, seed=0)(policy, obs)
    assert hat["a"].dtype == np.float32 and hat["b"].dtype == np.float64
    for key, eps in (("a", 0.1), ("b", 0.3)):
        pairs = zip(hat[key].ravel().tolist(), obs[key].ravel().tolist(), strict=True)
        assert max(abs(Fraction(x) - Fraction(y)) for x, y in pairs) <= Fraction(eps)


def test_a_key_of_whole_numbers_does_not_stand_in_the_way() -> None:
    parts = {"a": spaces.Box(-9, 9, (2,), np.float32), "flags": spaces.Box(0, 9, (3,), np.int64)}
    policy = MultiInputActorCriticPolicy(spaces.Dict(parts), spaces.Discrete(2), lambda _: 1e-3)
    obs = {"a": np.zeros((4, 2), np.float32), "flags": np.full((4, 3), 2**40 + 1)}
    hat = MAD({"a": 0.1}, seed=0)(policy, obs)
    np.testing.assert_array_equal(hat["flags"], obs["flags"])
    assert hat["flags"].dtype == np.int64 and np.abs(hat["a"]).max() > 0.05
    with pytest.raises(ValueError, match=r"'flags'; keys that can be attacked .*: a"):
        MAD({"flags": 1})(policy, obs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pixels_are_rounded_towards_the_true_ones(norm: str) -> None:
    model = PPO("CnnPolicy", DummyVecEnv([lambda: Sights(("image",))]), n_steps=4, batch_size=4, seed=0, device="cpu")
    obs = np.full((2, 1, 36, 36), 128, np.uint8)
    eps = 2.6 if norm == "linf" else 90.0
    change = RandomAttack(eps, norm, seed=0)(model, obs).astype(float) - obs
    size = np.abs(change).max() if norm == "linf" else np.linalg.norm(change.reshape(2, -1), axis=1).max()
    assert 0 < size <= eps and np.array_equal(change, np.rint(change))
    if norm == "linf":
        assert set(np.unique(change)) == {-2, -1, 0, 1, 2}  # 2.6 is 2, not 3


class Wide(gym.Env[Any, Any]):
    """So many inputs that random starts find little."""

    observation_space = gym.spaces.Box(-9, 9, (30,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(30, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(30, np.float32), 0.0, False, False, {}


class ValueIsTheAction(th.nn.Module):
    def forward(self, observation: Any, action: Any) -> Any:
        return (action[:, :1] + 0 * observation[:, :1],)

    def set_training_mode(self, mode: bool) -> None:
        self.train(mode)


def test_a_saturated_tanh_does_not_blind_the_attacks() -> None:
    """The worst action is -1; +1 is played with a tanh that has no slope in float32. What MAD reaches these must reach."""
    policy = TD3("MlpPolicy", Wide(), seed=0, buffer_size=10, policy_kwargs=dict(net_arch=[64, 64]), device="cpu").policy
    policy.set_training_mode(False)
    with th.no_grad():
        policy.actor.mu[-2].weight.mul_(400)
    states = np.random.default_rng(0).standard_normal((300, 30)).astype(np.float32)
    states = states[policy.actor.mu[:-1](th.as_tensor(states)).detach().numpy()[:, 0] > 9.5]
    policy.critic = ValueIsTheAction()
    first, last = np.zeros((64, 31), np.float32), np.zeros((1, 64), np.float32)
    first[0, 30], last[0, 0] = 0.5, 1.0  # rises with the action alone
    biases = (np.zeros(64, np.float32), np.zeros(64, np.float32), np.zeros(1, np.float32))
    q = QFunction(
        Network((first, np.eye(64, dtype=np.float32), last), biases, (TANH, TANH)), np.zeros(30), np.ones(30), 1.0, 0.0
    )
    settings: dict[str, Any] = dict(seed=0, deterministic=True)
    attacks = (
        MAD(0.4, **settings),
        CriticAttack(0.4, **settings),
        QDescent(0.4, q=q, ratio=0.0, restarts=2, step_size=0.25, **settings),
    )
    lowered = [float(np.mean(policy.predict(attack(policy, states), deterministic=True)[0] < 0)) for attack in attacks]
    assert len(states) > 50 and lowered[0] > 0.9 and min(lowered[1:]) > lowered[0] - 0.1, lowered
