"""Pruning inside real trainings."""

import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_prune_robust.network import action_network
from sb3_prune_robust.policies import LipschitzGaussianPolicy
from sb3_prune_robust.pruning import SCORES, MovementScore, PruningCallback, RandomScore, SaliencyScore, prune_policy, sparsity

ENV = "InvertedPendulum-v5"
N_ACTOR = 4 * 64 + 64 * 64


def make(algo=PPO, policy="MlpPolicy", **kwargs):
    kwargs |= dict(n_steps=16) if algo is A2C else dict(n_steps=64, batch_size=32)
    if algo is PPO:
        kwargs.setdefault("n_epochs", 2)
    return algo(policy, ENV, seed=0, **kwargs)


def weights(model):
    return {n: p for n, p in model.policy.named_parameters() if p.ndim == 2}


class Watch(BaseCallback):
    """After every optimiser step: zeros and moments under the masks, and whether a zero has come back."""

    def __init__(self):
        super().__init__()
        self.sparsities, self.revived, self.moments = [], 0, 0.0

    def _on_training_start(self):
        self.zeros = {}
        self.model.policy.optimizer.register_step_post_hook(self._look)

    def _look(self, optimizer, *_):
        for name, weight in weights(self.model).items():
            zeros = weight.detach() == 0
            if name in self.zeros:
                self.revived += int((self.zeros[name] & ~zeros).sum())
            self.zeros[name] = zeros
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, th.Tensor) and value.shape == weight.shape:
                    self.moments = max(self.moments, float(value[zeros].abs().sum()))
        self.sparsities.append(sparsity(self.model)["actor"])

    def _on_step(self):
        return True


@pytest.mark.parametrize("algo", [PPO, A2C, TRPO])
@pytest.mark.parametrize("schedule", ["one_shot", "polynomial", "linear", "periodic", "constant", "micro"])
def test_the_sparsity_asked_for_is_reached_and_nothing_returns(algo, schedule):
    model, watch = make(algo), Watch()
    callback = PruningCallback(0.77, schedule=schedule, targets=("actor", "critic"))
    model.learn(512, callback=[callback, watch])
    assert sparsity(model)["actor"] == sparsity(model)["critic"] == round(0.77 * N_ACTOR) / N_ACTOR
    assert watch.revived == 0 and watch.moments == 0.0
    assert sparsity(model)["layers"]["action_net"] == sparsity(model)["layers"]["value_net"] == 0.0
    increments = np.diff([event.sparsity for event in callback.events])
    assert (increments > 0).all()
    assert (
        len(callback.events) == callback.n_mask_updates == (1 if schedule in ("one_shot", "constant") else len(increments) + 1)
    )


def test_micro_pruning_takes_a_sliver_at_each_optimiser_step():
    model, callback, watch = make(n_epochs=10), PruningCallback(0.8, schedule="micro", start=0.25, end=0.75), Watch()
    model.learn(1024, callback=[callback, watch])
    # 16 rollouts of 20 optimiser steps, half of them between start and end
    assert 158 <= len(callback.events) <= 162
    slivers = np.diff([0.0, *(event.sparsity for event in callback.events)])
    assert slivers.max() <= 0.8 / 160 + 1.5 / N_ACTOR
    assert len({event.timestep for event in callback.events}) <= 9  # SB3's counter stands still within train()


def test_the_target_follows_the_schedule_at_rollout_starts():
    model, callback = make(), PruningCallback(0.6, schedule="linear", start=0.25, end=0.75)
    model.learn(1024, callback=callback)
    for event in callback.events:
        asked = 0.6 * min(max(event.timestep / 1024 - 0.25, 0) / 0.5, 1)
        assert event.sparsity == round(asked * N_ACTOR) / N_ACTOR


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
def test_every_score_and_distribution_reaches_the_sparsity(scores, distribution):
    model = make().learn(512, callback=PruningCallback(0.55, scores=scores, distribution=distribution))
    shares = sparsity(model)
    assert shares["actor"] == round(0.55 * N_ACTOR) / N_ACTOR and shares["critic"] == 0.0
    first, second = (shares["layers"][f"mlp_extractor.policy_net.{i}"] for i in (0, 2))
    if distribution == "uniform":
        assert first == pytest.approx(second, abs=2 / 256)
    if distribution == "erk":
        assert first == 0.0  # 68 : 128 of what is kept is more than the first layer has


def test_a_schedule_to_the_very_end_is_completed():
    model = make().learn(512, callback=PruningCallback(0.5, schedule="linear", start=0.0, end=1.0))
    assert sparsity(model)["actor"] == 0.5


def test_targets_may_have_sparsities_of_their_own_and_layers_are_chosen_by_name():
    model = make().learn(512, callback=PruningCallback({"actor": 0.9, "critic": 0.3}, targets=("actor", "critic")))
    assert sparsity(model)["actor"] == pytest.approx(0.9, abs=1e-4) and sparsity(model)["critic"] == pytest.approx(
        0.3, abs=1e-4
    )
    model = make().learn(512, callback=PruningCallback(0.5, layers=["*policy_net.2", "action_net"], distribution="uniform"))
    layers = sparsity(model)["layers"]
    assert layers["action_net"] == layers["mlp_extractor.policy_net.2"] == 0.5 and layers["mlp_extractor.policy_net.0"] == 0.0


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("policy", ["MlpPolicy", LipschitzGaussianPolicy])
def test_continuing_from_a_pruned_model_keeps_what_is_pruned(policy, reset, tmp_path):
    make(policy=policy).learn(512, callback=PruningCallback(0.5)).save(tmp_path / "model")
    model = PPO.load(tmp_path / "model", env=gym.make(ENV))
    zeros = {name: weight.detach() == 0 for name, weight in weights(model).items()}
    watch, callback = Watch(), PruningCallback(0.8, schedule="linear")
    model.learn(512, callback=[callback, watch], reset_num_timesteps=reset)
    assert watch.sparsities[0] >= 0.5 and watch.revived == 0
    assert all(bool((weight[zeros[name]] == 0).all()) for name, weight in weights(model).items())
    assert sparsity(model)["actor"] == round(0.8 * N_ACTOR) / N_ACTOR


def test_a_second_callback_on_the_same_model_does_not_double_the_hooks():
    model = make()
    model.learn(256, callback=PruningCallback(0.5))
    model.learn(256, callback=PruningCallback(0.5))
    assert len(model.policy.optimizer._optimizer_step_post_hooks) == 1


@pytest.mark.parametrize("schedule", ["polynomial", "micro"])
def test_bound_a_falls_or_stays_at_every_prune_of_a_real_training(schedule):
    """Theorem 1 where it is used: the absolute path product, projections and optimiser steps in between."""

    def bound_a(policy):
        network = action_network(policy).astype(np.float64)
        return np.linalg.multi_dot([np.abs(w) for w in reversed(network.weights)])

    model = make(policy=LipschitzGaussianPolicy, policy_kwargs=dict(lipschitz=1.0), learning_rate=3e-3)
    callback = PruningCallback(0.9, schedule=schedule, start=0.1, end=0.9, probe=bound_a)
    model.learn(1024, callback=callback)
    assert len(callback.events) >= 10
    for event in callback.events:
        assert (event.after <= event.before * (1 + 1e-12)).all()
    assert any((event.after < event.before).any() for event in callback.events)
    between = [b.before.max() > a.after.max() for a, b in zip(callback.events, callback.events[1:], strict=False)]
    assert any(between)  # training may raise it, and does: the claim is about prunes only


class Recorder(KVWriter):
    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))


def test_what_is_logged():
    model, recorder = make(), Recorder()
    model.set_logger(Logger(None, [recorder]))
    model.learn(512, callback=PruningCallback(0.5, end=0.6))
    last = recorder.rows[-1]
    assert last["prune/target"] == last["prune/sparsity"] == 0.5
    n_total = 2 * N_ACTOR + 2 * 64
    assert last["prune/total_sparsity"] == pytest.approx(0.5 * N_ACTOR / n_total)
    assert last["prune/mask_updates"] >= 2
    assert last["prune/mlp_extractor.policy_net.2"] == sparsity(model)["layers"]["mlp_extractor.policy_net.2"] > 0.5


def test_sb3s_own_table_prints_with_the_callback(capsys):
    make(verbose=1).learn(256, callback=PruningCallback(0.5, verbose=1))
    printed = capsys.readouterr().out
    assert "mask_updates" in printed and "Pruned to a sparsity of 0.5" in printed


def test_events_hold_what_the_probe_returned():
    model = make()
    callback = PruningCallback(0.5, schedule="one_shot", probe=lambda policy: sparsity(policy)["actor"])
    model.learn(256, callback=callback)
    (event,) = callback.events
    assert (event.before, event.after, event.sparsity) == (0.0, 0.5, 0.5) and event.timestep == 64


def test_ties_are_broken_to_the_single_weight():
    policy = make().policy
    for layer in (policy.mlp_extractor.policy_net[0], policy.mlp_extractor.policy_net[2]):
        th.nn.init.constant_(layer.weight, 0.5)
    for asked, distribution in ((0.1234, "uniform"), (0.5, "erk"), (0.777, "global")):
        prune_policy(policy, asked, distribution=distribution)
        assert sparsity(policy)["actor"] == round(asked * N_ACTOR) / N_ACTOR


def test_magnitude_takes_the_smallest_and_random_does_not():
    policy = make().policy
    before = policy.mlp_extractor.policy_net[2].weight.detach().abs().clone()
    prune_policy(policy, 0.5, distribution="uniform")
    pruned = policy.mlp_extractor.policy_net[2].weight == 0
    assert before[pruned].max() <= before[~pruned].min()
    other = make().policy
    prune_policy(other, 0.5, distribution="uniform", scores=RandomScore(seed=1))
    assert 0.4 < float((pruned == (other.mlp_extractor.policy_net[2].weight == 0)).float().mean()) < 0.6


def test_saliency_and_movement_by_hand():
    weight = th.nn.Parameter(th.tensor([[2.0, -1.0, 0.5]]))
    weight.grad = th.tensor([[1.0, 3.0, -2.0]])
    saliency, movement = SaliencyScore(), MovementScore()
    for score in (saliency, movement):
        score.observe("layer", weight)
    assert saliency("layer", weight).tolist() == [[2.0, 3.0, 1.0]]
    assert movement("layer", weight).tolist() == [[-2.0, 3.0, 1.0]]
    weight.grad = th.tensor([[-2.0, 0.0, 0.0]])
    for score in (saliency, movement):
        score.observe("layer", weight)
    assert movement("layer", weight).tolist() == [[2.0, 3.0, 1.0]]
    assert saliency("layer", weight)[0, 0] == pytest.approx(2 * abs(0.5**0.01 - 2))


def test_a_layer_is_never_emptied():
    policy = make().policy
    with th.no_grad():
        policy.mlp_extractor.policy_net[0].weight.mul_(1e-6)
    prune_policy(policy, 0.99, distribution="global")
    assert int((policy.mlp_extractor.policy_net[0].weight != 0).sum()) == 1
    assert sparsity(policy)["actor"] == round(0.99 * N_ACTOR) / N_ACTOR


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(final_sparsity=1.0), r"final_sparsity must be a number in \[0, 1\), got 1.0"),
        (dict(final_sparsity=-0.1), "final_sparsity"),
        (dict(final_sparsity=math.nan), "final_sparsity"),
        (dict(final_sparsity=0.5, start=0.8, end=0.2), "start < end"),
        (dict(final_sparsity=0.5, schedule="cosine"), "schedule='cosine'.*known: one_shot"),
        (dict(final_sparsity=0.5, scores="size"), "scores='size'.*known: magnitude, random, unit, saliency, movement"),
        (dict(final_sparsity=0.5, distribution="er"), "distribution='er'.*known: uniform, erk, global"),
        (dict(final_sparsity=0.5, targets=("actors",)), "targets"),
        (dict(final_sparsity=0.5, targets="actor"), "targets"),
        (dict(final_sparsity=0.5, targets=()), "targets"),
        (dict(final_sparsity=0.5, targets=5), "targets"),
        (dict(final_sparsity=0.5, start="0.2"), "start < end"),
        (dict(final_sparsity=0.5, schedule=["linear"]), "schedule="),
        (dict(final_sparsity=0.5, scores=["magnitude"]), "scores="),
        (dict(final_sparsity=0.5, layers="*policy_net*"), "layers must be a list of patterns"),
        (dict(final_sparsity=0.5, probe=3), "probe must be a function"),
        (dict(final_sparsity={"actor": 0.5}, targets=("actor", "critic")), "must be the same"),
    ],
)
def test_bad_arguments_are_refused_at_once(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PruningCallback(**kwargs)


def test_what_only_the_model_can_tell_is_refused_before_training():
    with pytest.raises(ValueError, match=r"layers: the actor has no layer that matches \['policy'\]; its layers: mlp"):
        make().learn(64, callback=PruningCallback(0.5, layers=["policy"]))
    with pytest.raises(ValueError, match="the actor has no hidden layer"):
        make(policy_kwargs=dict(net_arch=[])).learn(64, callback=PruningCallback(0.5))
    with pytest.raises(ValueError, match="TRPO moves the actor"):
        make(TRPO).learn(256, callback=PruningCallback(0.5, scores="saliency"))
    with pytest.raises(ValueError, match="fewer than one weight each"):
        prune_policy(make().policy, 0.99999)
    with pytest.raises(ValueError, match="needs training"):
        prune_policy(make().policy, 0.5, scores="movement")
    with pytest.raises(ValueError, match=r"sparsity must be a number in \[0, 1\), got 1.5"):
        prune_policy(make().policy, 1.5)


def test_a_sparsity_that_leaves_nothing_is_refused_before_training():
    model = make()
    with pytest.raises(ValueError, match=r"final_sparsity=0.9999 leaves 2 layers of \d+ weights fewer than one weight each"):
        model.learn(640, callback=PruningCallback(0.9999))
    assert model.num_timesteps == 0


@pytest.mark.parametrize("around", [lambda c: EveryNTimesteps(64, c), lambda c: EveryNTimesteps(64, CallbackList([c]))])
def test_a_place_where_it_would_never_prune_is_refused(around):
    with pytest.raises(ValueError, match=r"PruningCallback was given to EveryNTimesteps.*; give it to learn\(\) itself"):
        make().learn(128, callback=around(PruningCallback(0.5)))


def test_a_frozen_layer_is_named_as_frozen():
    model = make()
    model.policy.mlp_extractor.policy_net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"policy_net.0 has no gradient .* \(its requires_grad is False"):
        model.learn(256, callback=PruningCallback(0.5, scores="saliency"))


def test_a_ramp_that_lies_behind_a_continued_training_is_warned_of():
    model = make().learn(1280)
    with pytest.warns(UserWarning, match=r"training starts at 0.83 .* prunes the actor from 0.0000 to 0.8000 at once"):
        model.learn(256, callback=PruningCallback(0.8), reset_num_timesteps=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither what is pruned already, nor what is asked for at once anyway
        model.learn(256, callback=PruningCallback(0.8), reset_num_timesteps=False)
        model.learn(256, callback=PruningCallback(0.9, schedule="one_shot"), reset_num_timesteps=False)
    assert sparsity(model)["actor"] == pytest.approx(0.9, abs=1e-3)


def test_a_loaded_plain_policy_keeps_its_zeros_with_a_callback_that_asks_for_no_more(tmp_path):
    make().learn(256, callback=PruningCallback(0.8)).save(tmp_path / "model")
    for callback, expected in ((None, 0.0), (PruningCallback(0.0), 0.8)):
        model = PPO.load(tmp_path / "model", env=gym.make(ENV)).learn(128, callback=callback)
        assert sparsity(model)["actor"] == pytest.approx(expected, abs=1e-3)


def test_the_end_of_a_training_that_never_started_hides_no_error():
    """The zoo calls ``on_training_end`` of its first callback whatever happened."""
    model, callback = make(), PruningCallback(0.5, layers=["policy"])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"layers: the actor has no layer that matches"):
            try:
                model.learn(64, callback=callback)
            finally:
                callback.on_training_end()


def test_zeros_made_by_hand_beside_the_masks_are_kept_too():
    model = make()
    prune_policy(model, 0.2)
    weight = model.policy.mlp_extractor.policy_net[2].weight
    weight.data[:8] = 0.0
    model.learn(64, callback=PruningCallback(0.1))
    assert bool((weight[:8] == 0).all()) and bool((weight[8:] != 0).any())


def test_micro_pruning_keeps_to_its_schedule_when_updates_are_cut_short():
    model = make(learning_rate=1e-3, n_epochs=10, target_kl=0.001)
    callback, watch = PruningCallback(0.9, schedule="micro", start=0.2, end=0.8), Watch()
    model.learn(2048, callback=[callback, watch])
    for event in callback.events:
        asked = 0.9 * min(max((event.timestep - 64) / 2048 - 0.2, 0) / 0.6, 1)  # at the beginning of the update
        assert event.sparsity >= asked - 1 / N_ACTOR
    assert watch.sparsities[-1] == round(0.9 * N_ACTOR) / N_ACTOR


def test_a_target_is_never_logged_below_what_is_pruned_and_the_last_prune_is_logged():
    model, recorder = make(), Recorder()
    model.learn(256, callback=PruningCallback(0.5))
    model.set_logger(Logger(None, [recorder]))
    model.learn(256, callback=PruningCallback(0.8, schedule="linear", start=0.0, end=1.0))
    assert all(row["prune/target"] >= row["prune/sparsity"] - 1e-3 for row in recorder.rows)
    assert recorder.rows[-1]["prune/sparsity"] == recorder.rows[-1]["prune/actor"] == round(0.8 * N_ACTOR) / N_ACTOR


def test_one_callback_for_two_models_starts_afresh():
    callback = PruningCallback(0.5, scores="movement")
    make().learn(256, callback=callback)
    other = PPO("MlpPolicy", "CartPole-v1", seed=1, n_steps=64, batch_size=32).learn(256, callback=callback)
    assert sparsity(other)["actor"] == 0.5 and callback.events[0].sparsity < 0.5


def test_a_training_that_was_interrupted_leaves_no_hooks_behind():
    class Stop(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 100:
                raise KeyboardInterrupt
            return True

    class Count(BaseCallback):
        def _on_step(self):
            optimizer = self.model.policy.optimizer
            hooks = len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)
            assert hooks == (1, 2)  # the score's; the masks' and micro-pruning's
            return True

    model, callback = make(), PruningCallback(0.5, schedule="micro", scores="movement")
    with pytest.raises(KeyboardInterrupt):
        model.learn(256, callback=[callback, Stop()])
    model.learn(256, callback=[callback, Count()])
    optimizer = model.policy.optimizer
    assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == (0, 1)


def test_random_pruning_differs_between_seeds_of_training():
    masks = []
    for seed in (0, 1):
        model = PPO("MlpPolicy", ENV, seed=seed, n_steps=64, batch_size=32)
        model.learn(128, callback=PruningCallback(0.5, scores="random", schedule="constant"))
        masks.append(model.policy.mlp_extractor.policy_net[2].weight == 0)
    assert not th.equal(*masks)


def test_numbers_of_numpy_are_numbers_and_no_steps_are_no_error():
    make().learn(0, callback=PruningCallback(np.float32(0.5), start=np.float64(0.1)))
    assert sparsity(make().learn(128, callback=PruningCallback(np.float32(0.5))))["actor"] == 0.5


def test_units_are_pruned_whole():
    model = make()
    with th.no_grad():  # orthogonal initialisation gives all units the same norm
        for layer in model.policy.mlp_extractor.policy_net[::2]:
            layer.weight.normal_(generator=th.Generator().manual_seed(0))
    norms = [layer.weight.detach().norm(dim=1) for layer in model.policy.mlp_extractor.policy_net[::2]]
    prune_policy(model, 0.75, scores="unit", distribution="uniform")
    for layer, norm in zip(model.policy.mlp_extractor.policy_net[::2], norms, strict=True):
        alive = (layer.weight != 0).sum(dim=1)
        assert sorted(alive.tolist()) == [0] * 48 + [layer.in_features] * 16  # of 64 units
        assert norm[alive > 0].min() > norm[alive == 0].max()
