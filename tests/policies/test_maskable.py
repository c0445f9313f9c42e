"""LipschitzMaskableCategoricalPolicy in sb3-contrib's MaskablePPO."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_prune_robust.policies import LipschitzCategoricalPolicy, LipschitzMaskableCategoricalPolicy
from sb3_prune_robust.pruning import prune_policy, sparsity


class Masked(gym.Wrapper):
    """CartPole in which a push away from the middle is invalid where the cart is beyond it by much."""

    def action_masks(self):
        x = self.unwrapped.state[0]
        return np.array([x > -0.05, x < 0.05])


def new(policy, seed=0, **policy_kwargs):
    env = Masked(gym.make("CartPole-v1"))
    policy_kwargs |= dict(net_arch=[16, 16])
    return MaskablePPO(policy, env, seed=seed, n_steps=64, batch_size=32, learning_rate=1e-2, policy_kwargs=policy_kwargs)


def bound(policy):
    weights = [m.weight for m in [*policy.mlp_extractor.policy_net, policy.action_net] if isinstance(m, nn.Linear)]
    return math.prod(np.linalg.svd(w.detach().numpy().astype(np.float64), compute_uv=False)[0] for w in weights)


class Spy(BaseCallback):
    def __init__(self):
        super().__init__()
        self.after_steps, self.at_rollouts = [], []

    def _on_training_start(self):
        self.model.policy.optimizer.register_step_post_hook(lambda *_: self.after_steps.append(bound(self.model.policy)))

    def _on_rollout_start(self):
        self.at_rollouts.append(bound(self.model.policy))

    def _on_step(self):
        return True


def test_without_a_bound_training_is_bit_identical_to_mlp_policy():
    plain = new("MlpPolicy", seed=3).learn(128)
    model = new(LipschitzMaskableCategoricalPolicy, seed=3, lipschitz=None).learn(128)
    theirs, mine = plain.policy.state_dict(), model.policy.state_dict()
    assert list(theirs) == list(mine) and all(th.equal(theirs[key], mine[key]) for key in theirs)


def test_the_bound_holds_after_every_step_and_exactly_in_every_rollout():
    spy = Spy()
    model = new(LipschitzMaskableCategoricalPolicy, lipschitz=0.5).learn(320, callback=spy)
    assert len(spy.after_steps) >= 40 and 0.495 <= max(spy.after_steps) <= 0.5 * (1 + 1e-2)
    assert max(spy.at_rollouts) <= 0.5 * (1 + 1e-5)
    mask = np.array([[True, False]])
    assert model.predict(np.zeros((1, 4), np.float32), action_masks=mask)[0] == [0]
    assert bound(model.policy) <= 0.5 * (1 + 1e-5)


def test_save_load_continue_keeps_bound_and_zeros(tmp_path):
    model = new(LipschitzMaskableCategoricalPolicy, lipschitz=0.5).learn(128)
    prune_policy(model, 0.5)
    model.save(tmp_path / "model.zip")
    loaded = MaskablePPO.load(tmp_path / "model.zip", env=Masked(gym.make("CartPole-v1")))
    spy = Spy()
    loaded.learn(128, callback=spy)
    assert loaded.policy.lipschitz == 0.5 and max(spy.after_steps) <= 0.5 * (1 + 1e-2)
    assert sparsity(loaded)["actor"] == 0.5


def test_masked_logits_keep_the_bound():
    """A mask sets logits to a constant: the others change by no more than the network lets them."""
    policy = new(LipschitzMaskableCategoricalPolicy, lipschitz=0.5).learn(192).policy
    states = th.randn(200, 4)
    others = states + 0.01 * th.randn(200, 4)
    masks = np.tile([True, False], (200, 1))
    with th.no_grad():
        policy.set_training_mode(False)
        both = [policy.mlp_extractor.forward_actor(s) for s in (states, others)]
        change = (policy.action_net(both[0]) - policy.action_net(both[1])).norm(dim=1)
        assert bool((change <= 0.5 * (1 + 1e-4) * (states - others).norm(dim=1)).all()) and float(change.max()) > 0
        masked = [policy.get_distribution(s, masks).distribution.probs for s in (states, others)]
    assert th.equal(masked[0], masked[1])


def test_maskable_ppo_takes_no_other_policy_and_no_box_actions():
    with pytest.raises(ValueError, match=r"MaskableActorCriticPolicy"):
        new(LipschitzCategoricalPolicy)
    with pytest.raises(AssertionError, match=r"only supports .*Discrete.* as action spaces but Box"):
        MaskablePPO(LipschitzMaskableCategoricalPolicy, "Pendulum-v1")
    box = spaces.Box(-1, 1, (3,))
    with pytest.raises(ValueError, match=r"needs a Discrete or MultiDiscrete.*MaskablePPO takes no Box actions"):
        LipschitzMaskableCategoricalPolicy(box, box, lambda _: 1e-3)
    with pytest.raises(ValueError, match=r"no known Lipschitz constant"):
        LipschitzMaskableCategoricalPolicy(box, spaces.Discrete(2), lambda _: 1e-3, activation_fn=nn.Softsign)
