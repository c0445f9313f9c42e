"""Pruning with every algorithm of SB3 and sb3-contrib."""

import math

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from gymnasium import spaces
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.sac.policies import SACPolicy

from sb3_prune_robust.anatomy import anatomy
from sb3_prune_robust.layers import weight_masks
from sb3_prune_robust.pruning import PruningCallback, SaliencyScore, callback, prune_policy, sparsity

ON_POLICY = dict(n_steps=16, batch_size=16)
OFF_POLICY = dict(learning_starts=10, batch_size=8, buffer_size=300)
VALUES = dict(OFF_POLICY, train_freq=2, target_update_interval=4)
#: policy, environment, arguments
ALGORITHMS = {
    "PPO": ("MlpPolicy", "Pendulum-v1", dict(ON_POLICY, n_epochs=2)),
    "A2C": ("MlpPolicy", "Pendulum-v1", dict(n_steps=16)),
    "TRPO": ("MlpPolicy", "Pendulum-v1", ON_POLICY),
    "RecurrentPPO": ("MlpLstmPolicy", "Pendulum-v1", dict(ON_POLICY, n_epochs=2)),
    "MaskablePPO": ("MlpPolicy", "CartPole-v1", dict(ON_POLICY, n_epochs=2)),
    "SAC": ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    "TD3": ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    "DDPG": ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    "TQC": ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    "CrossQ": ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    "DQN": ("MlpPolicy", "CartPole-v1", VALUES),
    "QRDQN": ("MlpPolicy", "CartPole-v1", VALUES),
}
ONE_NETWORK = ("DQN", "QRDQN")


def find(name):
    return getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)


def make(name, policy=None, env=None, policy_kwargs=None, **kwargs):
    default_policy, default_env, arguments = ALGORITHMS[name]
    if name == "MaskablePPO":
        env = ActionMasker(gym.make(default_env), lambda env: np.ones(2, dtype=bool))
    network = dict(net_arch=[16, 16]) | (dict(lstm_hidden_size=8) if name == "RecurrentPPO" else {}) | (policy_kwargs or {})
    return find(name)(policy or default_policy, env or default_env, seed=0, policy_kwargs=network, **{**arguments, **kwargs})


def targets(name):
    return ("actor",) if name in ONE_NETWORK else ("actor", "critic")


def size(weights):
    return sum(weight.numel() for weight in weights.values())


def exact(model, target, share):
    n = size(anatomy(model.policy).hidden(target))
    return round(share * n) / n


class Watch(BaseCallback):
    """After every step of every optimiser: no zero has come back, in weights or moments; after every train, in targets."""

    def __init__(self):
        super().__init__()
        self.looks = self.at_rollouts = 0

    def _on_training_start(self):
        self.anatomy, self.zeros = anatomy(self.model.policy), {}
        for optimizer in {id(o): o for o in self.anatomy.optimizers.values()}.values():
            optimizer.register_step_post_hook(self._look)

    def _look(self, optimizer, *_):
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, weight in self.anatomy.weights.items():
            zeros = weight.detach() == 0
            assert not bool((self.zeros.get(name, zeros) & ~zeros).any()), f"a zero of {name} has come back"
            self.zeros[name] = zeros
            for value in optimizer.state.get(weight, {}).values() if id(weight) in stepped else ():
                assert value.shape != weight.shape or not bool(value[zeros].any()), f"a moment of {name} is alive"
        self.looks += 1

    def _on_rollout_start(self):
        for name, weight in self.anatomy.weights.items():
            for follower in self.anatomy.followers.get(name, ()):
                assert not bool(follower[weight == 0].any()), f"{name} has target weights that are not zero"
        self.at_rollouts += 1

    def _on_training_end(self):
        self._on_rollout_start()

    def _on_step(self):
        return True


@pytest.mark.parametrize("schedule", ["polynomial", "micro"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_exact_zeros_after_every_step_and_the_sparsity_asked_for(name, schedule):
    model, watch = make(name), Watch()
    model.learn(96, callback=[PruningCallback(0.77, schedule=schedule, targets=targets(name)), watch])
    shares = sparsity(model)
    assert shares["actor"] == exact(model, "actor", 0.77) > 0.76
    assert shares["critic"] == (shares["actor"] if name in ONE_NETWORK else exact(model, "critic", 0.77))
    assert all(shares["layers"][head] == 0.0 for head in anatomy(model.policy).heads)
    assert watch.looks >= 6 and watch.at_rollouts >= 7


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_pruned_model_loads_in_plain_sb3_and_goes_on(name, tmp_path):
    model = make(name)
    model.learn(64, callback=PruningCallback(0.6, targets=targets(name)))
    model.save(tmp_path / "model")
    loaded = find(name).load(tmp_path / "model", env=model.env)
    assert not hasattr(loaded.policy, "_weight_masks")
    observation = model.observation_space.sample()
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    zeros = {n: w == 0 for n, w in anatomy(loaded.policy).weights.items()}
    watch = Watch()
    loaded.learn(48, callback=[PruningCallback(0.8, targets=targets(name)), watch], reset_num_timesteps=False)
    assert watch.looks > 0 and loaded.num_timesteps >= 112
    assert all(bool((w[zeros[n]] == 0).all()) for n, w in anatomy(loaded.policy).weights.items())
    assert sparsity(loaded)["actor"] == exact(loaded, "actor", 0.8)


class MaskedSACPolicy(SACPolicy):
    """What our policies do, without their Lipschitz bound."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        weight_masks(self)


@pytest.mark.parametrize("name", ["SAC", "DQN"])
def test_zeros_stay_after_loading_without_the_callback(name, tmp_path):
    """Of a policy with masks of its own; without, plain SB3 knows nothing of them, and all but those of dead units go."""
    masked = MaskedSACPolicy if name == "SAC" else None
    make(name, masked).learn(64, callback=PruningCallback(0.6, targets=targets(name))).save(tmp_path / "model")
    model = find(name).load(tmp_path / "model", env=gym.make(ALGORITHMS[name][1]))
    before = sparsity(model)["actor"]
    assert before == exact(model, "actor", 0.6)
    if masked is None:
        weight_masks(model.policy)
    watch = Watch()
    model.learn(48, callback=watch, reset_num_timesteps=False)
    assert watch.looks > 0 and sparsity(model)["actor"] == before


class Image(gym.Env):
    """Black and white noise; NatureCNN wants 36 x 36 at least."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(np.sum(action)), False, False, {}


@pytest.mark.parametrize(
    ("name", "policy_kwargs"),
    [
        ("PPO", {}),
        ("PPO", dict(share_features_extractor=False)),
        ("SAC", {}),
        ("SAC", dict(share_features_extractor=True)),
        ("TD3", dict(share_features_extractor=True)),
        ("DQN", {}),
    ],
)
def test_convolutions(name, policy_kwargs):
    space = spaces.Discrete(2) if name in ONE_NETWORK else spaces.Box(-1, 1, (1,))
    model, watch = (
        make(name, "CnnPolicy", Image(space), policy_kwargs, **({} if name == "PPO" else dict(batch_size=2))),
        Watch(),
    )
    model.learn(20, callback=[PruningCallback(0.9, targets=targets(name), start=0.3), watch])
    shares, hidden = sparsity(model)["layers"], anatomy(model.policy).hidden("actor")
    convolutions = {n: w for n, w in hidden.items() if w.ndim == 4}
    assert len(convolutions) == 3 and all(shares[n] > 0.5 for n in list(convolutions)[1:])
    assert sparsity(model)["actor"] == exact(model, "actor", 0.9)
    assert watch.looks >= 2


def test_lstm_weights_on_request():
    model, watch = make("RecurrentPPO"), Watch()
    model.learn(48, callback=[PruningCallback(0.5, layers=["lstm_actor.*"], distribution="uniform"), watch])
    shares = sparsity(model)
    assert shares["layers"]["lstm_actor.weight_ih_l0"] == shares["layers"]["lstm_actor.weight_hh_l0"] == 0.5
    assert shares["actor"] == shares["layers"]["lstm_critic.weight_hh_l0"] == 0.0
    n_lstm, parts = size({n: w for n, w in anatomy(model.policy).actor.items() if "lstm" in n}), anatomy(model.policy)
    assert shares["total"] == pytest.approx(0.5 * n_lstm / size(parts.weights))


def test_the_total_leaves_out_target_networks():
    model = make("TD3")
    prune_policy(model, 0.5, targets=("actor", "critic"))
    parts = anatomy(model.policy)
    n_zeros = sum(int((weight == 0).sum()) for weight in parts.weights.values())
    assert sparsity(model)["total"] == n_zeros / size(parts.weights) > 0.3


class Count(SaliencyScore):
    def __init__(self):
        super().__init__()
        self.counts = {}

    def observe(self, name, weight):
        self.counts[name] = self.counts.get(name, 0) + 1
        super().observe(name, weight)


class Poison(BaseCallback):
    """What one optimiser's step leaves in the gradients of all weights must not reach the score of the other's."""

    def _on_training_start(self):
        for optimizer in anatomy(self.model.policy).optimizers.values():
            optimizer.register_step_post_hook(self._poison)

    def _poison(self, *_):
        for weight in self.model.policy.parameters():
            if weight.grad is not None:
                weight.grad.fill_(math.nan)

    def _on_step(self):
        return True


@pytest.mark.parametrize(("name", "delay"), [("SAC", 1), ("TQC", 1), ("TD3", 2), ("CrossQ", 3), ("DDPG", 1)])
@pytest.mark.parametrize("schedule", ["linear", "micro"])
def test_a_gradient_is_seen_at_the_step_of_its_own_optimiser(name, delay, schedule):
    score = Count()
    model = make(name, learning_starts=9)
    model.learn(40, callback=[Poison(), PruningCallback(0.5, schedule, score, targets=("actor", "critic"))])
    parts = anatomy(model.policy)
    assert {score.counts[n] for n in parts.hidden("critic")} == {31}
    assert {score.counts[n] for n in parts.hidden("actor")} == {31 // delay}
    assert all(bool(total.isfinite().all()) for total in score._sums.values())
    assert sparsity(model)["actor"] == exact(model, "actor", 0.5)


def events(name="SAC", n=100, **kwargs):
    arguments = {
        key: kwargs.pop(key) for key in ("learning_starts", "train_freq", "gradient_steps", "policy_delay") if key in kwargs
    }
    pruning, model = PruningCallback(**kwargs), make(name, **arguments)
    model.learn(n, callback=pruning)
    return pruning.events, model


def test_one_shot_fires_at_its_step():
    (event,), model = events(final_sparsity=0.5, schedule="one_shot", start=0.33)
    assert event.timestep == 33 and event.sparsity == exact(model, "actor", 0.5)


def test_off_policy_prunes_follow_the_schedule_and_are_not_too_small():
    found, model = events(n=400, learning_starts=1000, final_sparsity=0.8, schedule="linear", start=0.1, end=0.9)
    n_actor = size(anatomy(model.policy).hidden("actor"))
    increments = np.diff([0.0, *(event.sparsity for event in found)])
    assert increments[:-1].min() >= 0.005 * 0.8 - 1 / n_actor and 100 < len(found) <= 200
    for event in found:
        assert event.sparsity == round(0.8 * min(event.timestep / 400 - 0.1, 0.8) / 0.8 * n_actor) / n_actor
    assert found[-1].timestep == 360 and found[-1].sparsity == exact(model, "actor", 0.8)


@pytest.mark.parametrize(("train_freq", "gradient_steps", "n_steps"), [(10, 5, 5), (10, -1, 10), (1, 1, 1)])
def test_micro_pruning_takes_a_sliver_at_each_gradient_step(train_freq, gradient_steps, n_steps):
    found, model = events(
        n=100, learning_starts=0, train_freq=train_freq, gradient_steps=gradient_steps, final_sparsity=0.8, schedule="micro"
    )
    n_actor = size(anatomy(model.policy).hidden("actor"))
    slivers = np.diff([0.0, *(event.sparsity for event in found)])
    # 60 of 100 steps of the environment lie between start and end
    assert slivers.max() <= 0.8 * train_freq / n_steps / 60 + 1.5 / n_actor
    assert abs(len(found) - 60 * n_steps / train_freq) <= 1


def test_micro_pruning_of_an_actor_that_is_stepped_less_often():
    found, model = events(
        "TD3", n=100, learning_starts=0, train_freq=12, gradient_steps=12, final_sparsity=0.6, schedule="micro"
    )
    slivers = np.diff([0.0, *(event.sparsity for event in found)])
    assert 27 <= len(found) <= 31  # every second of 60
    assert slivers.max() <= 0.6 * 2 / 60 + 1.5 / size(anatomy(model.policy).hidden("actor"))


class Recorder(KVWriter):
    def __init__(self):
        self.rows, self.true = [], []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))
        self.true.append(sparsity(self.model))


def test_zeros_are_counted_once_a_line_of_the_log_and_the_log_is_true(monkeypatch):
    counted = []
    monkeypatch.setattr(callback, "sparsity", lambda policy: counted.append(1) or sparsity(policy))
    model, recorder = make("SAC", env=gym.make("Pendulum-v1", max_episode_steps=25)), Recorder()
    recorder.model = model
    model.set_logger(Logger(None, [recorder]))
    pruning = PruningCallback(0.5, schedule="periodic", targets=("actor", "critic"))
    model.learn(300, callback=pruning, log_interval=2)
    assert len(recorder.rows) == 6 and len(counted) <= len(recorder.rows) + len(pruning.events) + 1 <= 18
    for row, true in zip(recorder.rows, recorder.true, strict=True):
        assert (row["prune/actor"], row["prune/critic"], row["prune/total_sparsity"]) == (
            true["actor"],
            true["critic"],
            true["total"],
        )
        assert row["prune/critic.qf1.2"] == true["layers"]["critic.qf1.2"]
    assert recorder.rows[-1]["prune/target"] == pytest.approx(0.5, abs=1e-3) and recorder.rows[0]["prune/target"] == 0.0


def test_the_network_of_values_is_the_actor():
    for name in ONE_NETWORK:
        with pytest.raises(ValueError, match=rf"targets: a {name}Policy has no critic.*use targets=\('actor',\)"):
            make(name).learn(10, callback=PruningCallback(0.5, targets=("actor", "critic")))


def test_ars_is_pruned_after_training_only(tmp_path):
    model = sb3_contrib.ARS(
        "MlpPolicy", "CartPole-v1", seed=0, n_delta=1, zero_policy=False, policy_kwargs=dict(net_arch=[16, 16])
    )
    with pytest.raises(TypeError, match=r"cannot prune the ARSPolicy while it learns: .*prune_policy\(model, ...\) after"):
        model.learn(10, callback=PruningCallback(0.5))
    model.learn(10)
    prune_policy(model, 0.7)
    assert sparsity(model)["actor"] == exact(model, "actor", 0.7) and sparsity(model)["critic"] == 0.0
    assert sparsity(model)["layers"]["action_net.4"] == 0.0
    model.save(tmp_path / "model")
    assert sparsity(sb3_contrib.ARS.load(tmp_path / "model")) == sparsity(model)
    with pytest.raises(ValueError, match="ARSPolicy has no critic beside its actor: it has no gradients"):
        prune_policy(model, 0.5, targets=("critic",))


def test_what_is_no_policy_of_sb3_is_refused():
    for function in (sparsity, lambda policy: prune_policy(policy, 0.5)):
        with pytest.raises(TypeError, match="policy of class Linear is not one whose layers are known: of PPO, A2C, TRPO"):
            function(th.nn.Linear(2, 2))


def test_a_typing_error_in_a_key_names_the_key():
    with pytest.raises(TypeError, match="final_sparsty"):
        PruningCallback(final_sparsty=0.7)
    with pytest.raises(TypeError, match="distributon"):
        PruningCallback(final_sparsity=0.7, distributon="erk")


def test_a_model_that_is_not_pruned_after_all_is_told_of():
    model = stable_baselines3.SAC("MlpPolicy", "Pendulum-v1", learning_starts=1000, buffer_size=100, device="cpu")
    with pytest.warns(UserWarning, match=r"the actor was pruned to 0\.0000 only, not to 0\.5"):
        model.learn(20, callback=PruningCallback(0.5, scores="saliency"))
