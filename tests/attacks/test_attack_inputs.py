"""Wrong input: an error that names the argument; networks that are not plain MLPs: the other engine, never nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy

from sb3_prune_robust.attacks import ATTACKS, MAD, PGD, RandomAttack, make_attack
from sb3_prune_robust.network import UnsupportedNetworkError

OBS = np.zeros((2, 5), np.float32)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(eps=-0.1), ValueError, "eps=-0.1"),
        (dict(eps=float("nan")), ValueError, "eps=nan"),
        (dict(eps=float("inf")), ValueError, "eps=inf"),
        (dict(eps=[0.1, -1.0]), ValueError, "eps"),
        (dict(eps="much"), TypeError, "eps='much'"),
        (dict(eps=None), ValueError, "eps=None"),
        (dict(eps=0.1, norm="l1"), ValueError, r"norm='l1'.*'l2', 'linf'"),
        (dict(eps=0.1, mask=[0, 1]), TypeError, "mask"),
        (dict(eps=0.1, mask=[False, False]), ValueError, "mask"),
        (dict(eps=0.1, steps=0), ValueError, "steps=0"),
        (dict(eps=0.1, restarts=1.5), ValueError, "restarts=1.5"),
        (dict(eps=0.1, step_size=0.0), ValueError, "step_size=0.0"),
        (dict(eps=0.1, step_size=float("nan")), ValueError, "step_size=nan"),
        (dict(eps=0.1, objective="damage"), ValueError, "objective='damage'.*'mad'.*'critic'"),
        (dict(eps=0.1, engine="fast"), ValueError, "engine='fast'.*'analytic'"),
        (dict(eps=0.1, engine="analytic", objective=lambda p, s, x: x.sum(1)), ValueError, "engine='analytic'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PGD(**arguments)


def test_unknown_attack_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'madd'.*'random', 'fgsm', 'pgd', 'mad', 'mad-sgld', 'critic'"):
        make_attack("madd", 0.1)


@pytest.mark.parametrize(
    "obs, error, message",
    [
        (np.zeros(5, np.float32), ValueError, r"shape \(5,\); expected \(n, 5\)"),
        (np.zeros((2, 4), np.float32), ValueError, r"\(2, 4\)"),
        (np.array([[0, 0, np.nan, 0, 0]], np.float32), ValueError, "obs has NaN"),
        (np.array([[0, 0, np.inf, 0, 0]], np.float32), ValueError, "obs has NaN"),
        (np.zeros((2, 5), np.uint8), TypeError, "uint8"),
        (th.zeros(2, 5, dtype=th.float16), TypeError, "float16"),
        ([[0.0] * 5], TypeError, "list"),
    ],
)
@pytest.mark.parametrize("name", list(ATTACKS))
def test_wrong_observations(policy: ActorCriticPolicy, name: str, obs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_attack(name, 0.1)(policy, obs)


def test_wrong_sizes_and_victims(policy: ActorCriticPolicy) -> None:
    with pytest.raises(ValueError, match=r"eps has shape \(4,\).*\(5,\)"):
        RandomAttack(np.full(4, 0.1))(policy, OBS)
    with pytest.raises(ValueError, match=r"mask has shape \(4,\).*\(5,\)"):
        RandomAttack(0.1, mask=[True] * 4)(policy, OBS)
    with pytest.raises(TypeError, match="policy must be an SB3 policy"):
        RandomAttack(0.1)("policy", OBS)
    with pytest.raises(ValueError, match="one value per row"):
        PGD(0.1, objective=lambda p, s, x: x.sum())(policy, OBS)
    with pytest.raises(ValueError, match="differentiable"):
        PGD(0.1, objective=lambda p, s, x: x.detach().sum(1))(policy, OBS)


def test_weights_that_are_nan_raise(make_policy: Callable[..., ActorCriticPolicy]) -> None:
    policy = make_policy()
    with th.no_grad():
        policy.action_net.weight[0, 0] = th.nan
    with pytest.raises(ValueError, match="weights finite"):
        MAD(0.1)(policy, OBS)


def test_an_objective_that_is_nan_raises(policy: ActorCriticPolicy) -> None:
    """Its gradient is finite, so a random start would pass for the result of a search."""
    with pytest.raises(ValueError, match="objective is NaN"):
        PGD(0.1, objective=lambda p, s, x: x.sum(1) * 0 + th.nan)(policy, OBS)


def test_recurrent_victims_are_refused() -> None:
    from sb3_contrib import RecurrentPPO

    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, device="cpu")
    with pytest.raises(UnsupportedNetworkError, match="RecurrentActorCriticPolicy"):
        MAD(0.1)(model, np.zeros((1, 4), np.float32))


def test_image_policies_go_through_autograd() -> None:
    space = spaces.Box(-1.0, 1.0, (3, 36, 36), dtype=np.float32)
    th.manual_seed(0)
    policy = ActorCriticCnnPolicy(space, spaces.Discrete(3), lambda _: 1e-3, normalize_images=False)
    obs = np.random.default_rng(0).uniform(-1, 1, size=(3, *space.shape)).astype(np.float32)
    with pytest.raises(UnsupportedNetworkError):
        MAD(0.05, engine="analytic")(policy, obs)
    attack = MAD(0.05, seed=0, steps=3, restarts=1)
    noise = RandomAttack(0.05, seed=0)(policy, obs)
    assert divergence(policy, obs, attack(policy, obs)) > 3 * divergence(policy, obs, noise)


def test_gsde_policies_go_through_autograd() -> None:
    th.manual_seed(0)
    model = PPO("MlpPolicy", "Pendulum-v1", use_sde=True, n_steps=8, device="cpu")
    obs = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    with pytest.raises(UnsupportedNetworkError):
        MAD(0.1, engine="analytic")(model, obs)
    noise = RandomAttack(0.1, seed=0)(model, obs)
    assert divergence(model.policy, obs, MAD(0.1, seed=0)(model, obs)) > 1.5 * divergence(model.policy, obs, noise)


def divergence(policy: Any, obs: Any, hat: Any) -> float:
    with th.no_grad():
        p, q = (policy.get_distribution(th.as_tensor(x)).distribution for x in (obs, hat))
    return float(th.distributions.kl_divergence(p, q).mean())
