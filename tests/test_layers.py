"""Masks and the Lipschitz projection on plain linear layers."""

import math

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_prune_robust.anatomy import optimizers_of
from sb3_prune_robust.layers import LipschitzProjection, WeightMasks, spectral_norm, weight_masks

OPTIMIZERS = {
    "adam": lambda p: th.optim.Adam(p, lr=1e-2),
    "adam with weight decay": lambda p: th.optim.Adam(p, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: th.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "rmsprop": lambda p: th.optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True, weight_decay=0.1),
    "sgd": lambda p: th.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
}


def make(optimizer="adam", shape=(6, 5)):
    th.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0])
    optimizer = OPTIMIZERS[optimizer](layer.parameters())
    return layer, optimizer, WeightMasks({"layer": layer.weight}, [optimizer])


def step(layer, optimizer):
    optimizer.zero_grad()
    (layer(th.randn(4, layer.in_features)) ** 2).sum().backward()
    optimizer.step()


def half(layer):
    return th.arange(layer.weight.numel()).view_as(layer.weight) % 2 == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_and_moments_are_exactly_zero_after_each_step(name):
    layer, optimizer, masks = make(name)
    for _ in range(5):
        step(layer, optimizer)  # moments that would revive the weights
    pruned = half(layer)
    masks.prune({"layer": pruned})
    for _ in range(20):
        before = layer.weight.detach().clone()
        step(layer, optimizer)
        assert bool((layer.weight[pruned] == 0).all()) and not bool(th.signbit(layer.weight[pruned]).any())
        assert bool((layer.weight[~pruned] != before[~pruned]).all())
        for value in optimizer.state[layer.weight].values():
            if isinstance(value, th.Tensor) and value.shape == layer.weight.shape:
                assert bool((value[pruned] == 0).all())


def test_pruned_gradients_do_not_enter_clipping_nor_autograd_grad():
    layer, _, masks = make()
    masks.prune({"layer": half(layer)})
    loss = (layer(th.ones(1, 5)) * 100).sum()
    (gradient,) = th.autograd.grad(loss, layer.weight, retain_graph=True)  # as TRPO does
    assert bool((gradient[half(layer)] == 0).all()) and bool((gradient[~half(layer)] == 100).all())
    loss.backward()
    assert th.nn.utils.clip_grad_norm_([layer.weight], 1.0) == pytest.approx(100 * math.sqrt(15))


def test_zeroing_survives_an_optimiser_that_ignores_the_gradient_mask():
    layer, optimizer, masks = make("sgd")
    masks.prune({"layer": half(layer)})
    layer.weight.grad = th.ones_like(layer.weight)  # set past the hooks
    optimizer.step()
    assert bool((layer.weight[half(layer)] == 0).all())


def test_masks_only_grow_and_are_read_back_from_zeros():
    layer, optimizer, masks = make()
    first, second = th.zeros(6, 5, dtype=th.bool), th.zeros(6, 5, dtype=th.bool)
    first[0], second[1] = True, True
    masks.prune({"layer": first})
    masks.prune({"layer": second})
    assert masks.n_pruned(["layer"]) == 10 and bool((layer.weight[:2] == 0).all())
    fresh = WeightMasks({"layer": layer.weight}, [optimizer])
    assert fresh.n_pruned(["layer"]) == 0
    fresh.rearm()
    assert th.equal(fresh.pruned["layer"], first | second)


def test_a_layer_of_zeros_is_an_initialisation_not_a_mask():
    layer, optimizer, masks = make()
    nn.init.zeros_(layer.weight)
    masks.rearm()
    step(layer, optimizer)
    layer.weight.grad = th.ones_like(layer.weight)
    optimizer.step()
    assert bool((layer.weight != 0).all())


def test_targets_are_zeroed_with_the_weights_and_averages_keep_them_so():
    layer, optimizer, _ = make()
    targets = [nn.Parameter(layer.weight.detach().clone()) for _ in range(2)]
    masks = WeightMasks({"layer": layer.weight}, [optimizer], {"layer": targets})
    masks.prune({"layer": half(layer)})
    for _ in range(3):
        step(layer, optimizer)
        for target in targets:
            polyak_update([layer.weight], [target], 0.3)
            assert bool((target[half(layer)] == 0).all()) and bool((target[~half(layer)] != 0).all())
    targets[0].data.fill_(1.0)  # loaded from a file in which they were dense
    masks.rearm()
    assert th.equal(targets[0] == 0, half(layer))


def test_nothing_is_written_to_but_what_is_pruned_and_what_is_stepped():
    """SAC steps its critic while the actor's weights wait in a graph; one write to them and torch refuses the backward."""
    layers = {name: nn.Linear(5, 6) for name in ("actor", "critic")}
    optimizers = {name: th.optim.Adam(layer.parameters()) for name, layer in layers.items()}
    masks = WeightMasks({name: layer.weight for name, layer in layers.items()}, list(optimizers.values()))
    masks.prune({name: half(layer) for name, layer in layers.items()})
    waiting = layers["actor"](th.randn(4, 5)).square() @ layers["actor"].weight
    step(layers["critic"], optimizers["critic"])
    masks.prune({"critic": ~half(layers["critic"])})
    waiting.sum().backward()
    assert layers["actor"].weight.grad is not None


@pytest.mark.parametrize("algorithm", [PPO, SAC, DQN])
def test_a_policy_has_one_object_of_masks_on_each_of_its_optimisers(algorithm):
    small = {} if algorithm is PPO else dict(buffer_size=10)
    policy = algorithm("MlpPolicy", "CartPole-v1" if algorithm is DQN else "Pendulum-v1", **small).policy
    masks = weight_masks(policy)
    assert weight_masks(policy) is masks
    optimizers = {id(one): one for one in optimizers_of(policy).values()}.values()
    assert [len(one._optimizer_step_post_hooks) for one in optimizers] == [1] * (2 if algorithm is SAC else 1)
    owner = policy.critic if algorithm is SAC else policy
    owner.optimizer = th.optim.SGD(owner.parameters(), lr=0.1)  # takes the place of the one hooked
    weight_masks(policy)
    weight_masks(policy)
    assert len(owner.optimizer._optimizer_step_post_hooks) == 1


def test_masks_are_read_anew_when_a_policy_is_loaded_targets_too():
    policy = DQN("MlpPolicy", "CartPole-v1", buffer_size=10).policy
    masks, state = weight_masks(policy), {name: value.clone() for name, value in policy.state_dict().items()}
    assert masks.n_pruned(masks.weights) == 0
    state["q_net.q_net.2.weight"][:32] = 0.0
    policy.load_state_dict(state)
    assert masks.n_pruned(masks.weights) == masks.n_pruned(["q_net.q_net.2"]) == 32 * 64
    assert bool((policy.q_net_target.q_net[2].weight[:32] == 0).all())


def chain(*sizes, scale=1.0):
    generator = th.Generator().manual_seed(sum(sizes))
    pairs = zip(sizes[1:], sizes, strict=False)
    return [nn.Parameter(scale * th.randn(n_out, n_in, generator=generator)) for n_out, n_in in pairs]


def product(weights):
    return math.prod(np.linalg.svd(w.detach().numpy().astype(np.float64), compute_uv=False)[0] for w in weights)


def test_spectral_norm_is_not_below_the_largest_singular_value():
    for weight in chain(3, 7, 64, 2, 1):
        exact = np.linalg.svd(weight.detach().numpy().astype(np.float64), compute_uv=False)[0]
        assert exact <= spectral_norm(weight) <= exact * (1 + 1e-9)


@pytest.mark.parametrize("bound", [0.01, 1.0, 50.0])
def test_projection_meets_the_bound_and_wastes_none_of_it(bound):
    weights = chain(11, 64, 64, 3)
    assert product(weights) > bound
    LipschitzProjection(weights, bound).project()
    assert bound * (1 - 1e-5) <= product(weights) <= bound * (1 + 1e-5)


def test_projection_leaves_weights_within_the_bound_alone_and_never_enlarges_one():
    weights = chain(4, 8, 2)
    before = [w.detach().clone() for w in weights]
    LipschitzProjection(weights, 2 * product(weights)).project()
    assert all(th.equal(a, b) for a, b in zip(weights, before, strict=True))
    LipschitzProjection(weights, product(weights) / 2).project()
    assert all(bool((a.abs() <= b.abs()).all()) for a, b in zip(weights, before, strict=True))


def test_projection_sees_every_kind_of_change():
    weights = chain(4, 8, 2)
    projection = LipschitzProjection(weights, 1.0)
    projection.project()
    changes = [
        lambda w: w.data.mul_(3.0),  # no version counter sees this one
        lambda w: setattr(w, "data", w.data * 3.0),  # TRPO's line search
        lambda w: w.detach().mul_(3.0),
    ]
    for change in changes:
        change(weights[0])
        assert product(weights) > 2
        projection.project()
        assert product(weights) <= 1 + 1e-5


@pytest.mark.parametrize(("lr", "n_hidden"), [(3e-4, 64), (1e-2, 64), (0.3, 16), (3e-3, 256)])
def test_the_product_stays_within_one_percent_after_every_step(lr, n_hidden):
    """Steps that push all singular values up, at small and absurd learning rates, with crossings of the top ones."""
    weights = chain(5, n_hidden, n_hidden, 2, scale=0.1)
    projection = LipschitzProjection(weights, 2.0)
    projection.project()
    optimizer = th.optim.Adam(weights, lr=lr)
    optimizer.register_step_post_hook(projection.after_step)
    th.manual_seed(0)
    for _ in range(100 if n_hidden <= 64 else 20):
        for weight in weights:
            weight.grad = -weight.detach() + 0.3 * th.randn_like(weight)
        optimizer.step()
        assert product(weights) <= 2.0 * (1 + 1e-2)
    projection.project()
    assert product(weights) <= 2.0 * (1 + 1e-5)


def test_masks_follow_a_policy_to_another_device():
    layer, _, masks = make()
    masks.prune({"layer": layer.weight > 0})
    masks.weights["layer"] = layer.weight.detach().to("meta")  # in place of a GPU, where parameters are moved in place
    masks.follow()
    assert masks.pruned["layer"].device == masks._keep["layer"].device == th.device("meta")


def test_what_was_measured_on_another_device_is_not_exact():
    weights = chain(4, 8, 2)
    projection = LipschitzProjection(weights, bound=1.0)
    projection.project()
    assert projection.is_exact()
    projection._reference = [known.to("meta") for known in projection._reference]  # comparing them is an error of torch
    assert not projection.is_exact()


def test_diverged_weights_are_reported():
    weights = chain(4, 8, 2)
    projection = LipschitzProjection(weights, 1.0)
    projection.project()
    weights[0].data[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        projection.after_step()
