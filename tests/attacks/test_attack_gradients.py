"""The two engines agree, the weights are the current ones, and each attack raises what it says it maximises."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from scipy.special import log_softmax, softmax
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn.utils import prune

from sb3_prune_robust.attacks import FGSM, MAD, PGD, SGLDMAD, CriticAttack, GradientAttack, RandomAttack
from sb3_prune_robust.attacks.engines import NetworkReader
from sb3_prune_robust.attacks.objectives import analytic_objective, autograd_objective
from sb3_prune_robust.network import UnsupportedNetworkError

MakePolicy = Callable[..., ActorCriticPolicy]
ACTIVATIONS = [nn.Tanh, nn.ReLU, nn.ELU, nn.SiLU, nn.GELU]


def batch(n: int = 64, dtype: Any = np.float32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, 5)).astype(dtype)


def value(policy: ActorCriticPolicy, obs: Any, hat: Any, name: str, deterministic: bool = False) -> Any:
    return analytic_objective(policy, obs, name, deterministic, NetworkReader()).value(hat)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["mad", "critic", "action-difference"])
@pytest.mark.parametrize("actions", ["gaussian", "categorical", "multi"])
def test_engines_agree(make_policy: MakePolicy, actions: str, name: str, deterministic: bool, norm: str) -> None:
    same, total = 0, 0  # l_inf: equal to the bit; l_2, where rounding grows from step to step: to half a percent of eps
    for seed, activation in enumerate(ACTIVATIONS):
        policy = make_policy(actions, activation, seed)
        obs = batch(256, seed=seed)
        fast, slow = (
            PGD(0.1, norm, None, seed, deterministic, objective=name, steps=10, restarts=1, engine=engine)(policy, obs)
            for engine in ("analytic", "autograd")
        )
        same += int(np.isclose(fast, slow, rtol=0, atol=0 if norm == "linf" else 5e-4).sum())
        total += fast.size
        found = [value(policy, obs, hat, name, deterministic) for hat in (fast, slow)]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert same >= 0.998 * total  # where a search has settled, the sign of the gradient is a matter of rounding


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["mad", "critic", "action-difference"])
@pytest.mark.parametrize("actions", ["gaussian", "categorical", "multi"])
def test_gradients_are_derivatives(make_policy: MakePolicy, actions: str, name: str, deterministic: bool) -> None:
    """Against central differences of the value, in float64."""
    policy = make_policy(actions).double()
    obs, hat = batch(8, np.float64), batch(8, np.float64, seed=1)
    objective = analytic_objective(policy, obs, name, deterministic, NetworkReader())
    _, gradient = objective.value_and_gradient(hat)
    for i, direction in enumerate(np.eye(5) * 1e-6):
        slope = (objective.value(hat + direction) - objective.value(hat - direction)) / 2e-6
        np.testing.assert_allclose(gradient[:, i], slope, rtol=1e-5, atol=1e-6)


def test_objectives_by_their_formulas(make_policy: MakePolicy) -> None:
    obs, hat = batch(6), batch(6, seed=1)
    policy = make_policy("gaussian")
    with th.no_grad():
        mean, moved = (policy.get_distribution(th.as_tensor(x)).distribution.mean.numpy() for x in (obs, hat))
        values = policy.predict_values(th.as_tensor(hat)).numpy()[:, 0]
    sigma = np.exp([-1.0, 0.0, 0.5])
    both = [
        ("mad", False, (((moved - mean) / sigma) ** 2).sum(1) / 2),
        ("mad", True, ((moved - mean) ** 2).sum(1) / 2),
        ("action-difference", False, (((moved - mean) * sigma.mean() / sigma) ** 2).sum(1)),
        ("critic", False, -values),
    ]
    for name, deterministic, expected in both:
        np.testing.assert_allclose(value(policy, obs, hat, name, deterministic), expected, rtol=1e-4)
        autograd = autograd_objective(policy, obs, name, deterministic).value(hat)
        np.testing.assert_allclose(autograd, expected, rtol=1e-4)

    policy = make_policy("multi")
    with th.no_grad():
        logits = [policy.action_net(policy.mlp_extractor.forward_actor(th.as_tensor(x))).numpy() for x in (obs, hat)]
    kl, margin = np.zeros(6), np.zeros(6)
    for group in (slice(0, 3), slice(3, 5), slice(5, 9)):
        p, q = logits[0][:, group], logits[1][:, group]
        kl += (softmax(p, axis=1) * (log_softmax(p, axis=1) - log_softmax(q, axis=1))).sum(1)
        for row in range(6):
            top = p[row].argmax()
            margin[row] += np.delete(q[row], top).max() - q[row, top]
    np.testing.assert_allclose(value(policy, obs, hat, "mad"), kl, rtol=1e-4)
    np.testing.assert_allclose(value(policy, obs, hat, "mad", True), margin, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(autograd_objective(policy, obs, "mad", True).value(hat), margin, rtol=1e-4, atol=1e-5)


STRENGTH = [
    (FGSM(0.1, seed=0), "mad", False, 1.3),
    (PGD(0.1, seed=0), "mad", False, 1.8),
    (MAD(0.1, seed=0), "mad", False, 1.8),
    (MAD(0.1, "l2", seed=0), "mad", False, 1.8),
    (MAD(0.1, seed=0, deterministic=True), "mad", True, 1.8),
    (SGLDMAD(0.1, seed=0), "mad", False, 1.5),
]


@pytest.mark.parametrize("actions", ["gaussian", "categorical", "multi"])
@pytest.mark.parametrize("attack, name, deterministic, factor", STRENGTH)
def test_divergence_rises_above_noise(
    make_policy: MakePolicy, actions: str, attack: GradientAttack, name: str, deterministic: bool, factor: float
) -> None:
    policy, obs = make_policy(actions), batch(256)
    noise = value(policy, obs, RandomAttack(0.1, attack.norm, seed=1)(policy, obs), name, deterministic)
    found = value(policy, obs, attack(policy, obs), name, deterministic)
    if deterministic and actions != "gaussian":  # margins are negative: they are to rise, not to multiply
        assert (found >= value(policy, obs, obs, name, True) - 1e-4).all() and found.mean() > noise.mean() + 0.1
    else:
        assert found.mean() > factor * noise.mean()


def test_the_references_form_drowns_in_its_noise_where_gradients_are_small(make_policy: MakePolicy) -> None:
    """In l_2 it climbs the steep objective of a Gaussian, not the flat one of a categorical; MAD climbs both."""
    obs, gains = batch(256), {}
    for actions in ("gaussian", "categorical"):
        policy = make_policy(actions)
        noise, sgld, strong = (
            value(policy, obs, attack(policy, obs), "mad").mean()
            for attack in (RandomAttack(0.1, "l2", seed=1), SGLDMAD(0.1, "l2", seed=0), MAD(0.1, "l2", seed=0))
        )
        gains[actions] = (sgld / noise, strong / noise)
    assert gains["gaussian"][0] > 1.5 and gains["categorical"][0] < 1.0
    assert min(strong for _, strong in gains.values()) > 1.8


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_critic_attack_lowers_the_value(make_policy: MakePolicy, norm: str) -> None:
    policy, obs = make_policy(), batch(256)
    clean = -value(policy, obs, obs, "critic")
    attacked = -value(policy, obs, CriticAttack(0.1, norm, seed=0)(policy, obs), "critic")
    noise = -value(policy, obs, RandomAttack(0.1, norm, seed=0)(policy, obs), "critic")
    assert (attacked <= clean + 1e-4).all() and attacked.mean() < noise.mean() - 0.05


def test_restarts_and_steps_only_help(make_policy: MakePolicy) -> None:
    policy, obs = make_policy(), batch(256)
    once = value(policy, obs, MAD(0.3, seed=0, restarts=1, steps=5)(policy, obs), "mad")
    more = value(policy, obs, MAD(0.3, seed=0, restarts=8, steps=5)(policy, obs), "mad")
    assert more.mean() > once.mean() and np.mean(more >= once - 1e-5) > 0.9


def test_best_point_is_kept(make_policy: MakePolicy) -> None:
    """Steps as long as the ball is wide jump from corner to corner: the last point is not the best."""
    policy, obs = make_policy(), batch(256)
    seen: list[Any] = []

    def record(policy: Any, true: th.Tensor, hat: th.Tensor) -> th.Tensor:
        distributions = [policy.get_distribution(x).distribution for x in (true, hat)]
        divergence = th.distributions.kl_divergence(*distributions).sum(dim=1)
        seen.append(divergence.detach().numpy())
        return divergence

    hat = PGD(0.5, seed=0, objective=record, steps=6, restarts=1, step_size=2.0)(policy, obs)
    best = np.max(seen, axis=0)
    np.testing.assert_allclose(value(policy, obs, hat, "mad"), best, rtol=1e-3, atol=1e-5)
    assert (seen[-1] < best - 1e-3).any()


def change_in_place(policy: ActorCriticPolicy) -> None:
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(-1.5)


def change_by_state_dict(policy: ActorCriticPolicy) -> None:
    policy.load_state_dict({name: tensor * -1.5 for name, tensor in policy.state_dict().items()})


def change_storage(policy: ActorCriticPolicy) -> None:
    for parameter in policy.parameters():
        parameter.data = parameter.data * -1.5


def change_modules(policy: ActorCriticPolicy) -> None:
    for name in ("action_net", "value_net"):
        old = getattr(policy, name)
        new = nn.Linear(old.in_features, old.out_features)
        new.load_state_dict({key: tensor * -1.5 for key, tensor in old.state_dict().items()})
        setattr(policy, name, new)


def change_log_std(policy: ActorCriticPolicy) -> None:
    with th.no_grad():
        policy.log_std.copy_(policy.log_std.flip(0))


CHANGES = [change_in_place, change_by_state_dict, change_storage, change_modules, change_log_std]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["mad", "critic"])
def test_changed_weights_are_seen(make_policy: MakePolicy, change: Callable[[ActorCriticPolicy], None], name: str) -> None:
    policy, obs = make_policy(), batch()
    reader = NetworkReader()
    before = analytic_objective(policy, obs, name, False, reader).value(obs + 0.1)
    change(policy)
    after = analytic_objective(policy, obs, name, False, reader).value(obs + 0.1)
    np.testing.assert_allclose(after, autograd_objective(policy, obs, name, False).value(obs + 0.1), rtol=1e-3, atol=1e-4)
    assert (name == "critic" and change is change_log_std) or not np.allclose(before, after)


def test_a_layer_pruned_by_torch_is_not_read_from_memory(make_policy: MakePolicy) -> None:
    """A parametrised layer is outside the analytic engine; an old reading of it must not be used."""
    policy, obs = make_policy(), batch()
    attack = MAD(0.1, seed=0, engine="analytic")
    attack(policy, obs)
    prune.l1_unstructured(policy.action_net, "weight", amount=0.5)
    with pytest.raises(UnsupportedNetworkError):
        attack(policy, obs)


def test_copies_do_not_hold_stale_weights(make_policy: MakePolicy) -> None:
    policy, obs = make_policy(), batch()
    attack = MAD(0.1, seed=0)
    attack(policy, obs)
    for other in (copy.deepcopy(attack), pickle.loads(pickle.dumps(attack))):
        change_in_place(policy)
        unread = copy.deepcopy(attack)
        assert not unread._reader._known and attack._reader._known
        np.testing.assert_array_equal(other(policy, obs), unread(policy, obs))


def test_attacks_leave_gradients_and_mode_alone(make_policy: MakePolicy) -> None:
    policy = make_policy()
    policy.set_training_mode(True)
    MAD(0.1, seed=0, engine="autograd")(policy, batch())
    assert policy.training and all(parameter.grad is None for parameter in policy.parameters())


def test_float64_observations_are_attacked_as_float32_ones(make_policy: MakePolicy) -> None:
    policy, obs = make_policy(), batch(dtype=np.float64)
    fast, slow = (MAD(0.1, seed=0, engine=engine)(policy, obs) for engine in ("analytic", "autograd"))
    assert fast.dtype == np.float64
    assert np.isclose(fast, slow, rtol=0, atol=1e-9).mean() >= 0.999
