"""`copy_policy` on the policies of every algorithm of SB3 and sb3-contrib."""

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

from sb3_prune_robust.policies import (
    LipschitzCategoricalPolicy,
    LipschitzDQNPolicy,
    LipschitzGaussianPolicy,
    LipschitzMaskableCategoricalPolicy,
    LipschitzSACPolicy,
    LipschitzTD3Policy,
    copy_policy,
)
from sb3_prune_robust.pruning import prune_policy, sparsity


class Masked(gym.Wrapper):
    """CartPole with both actions valid."""

    def action_masks(self):
        return np.array([True, True])


ON: dict[str, Any] = dict(n_steps=32, policy_kwargs=dict(net_arch=[8]))
PPO_LIKE: dict[str, Any] = {**ON, "batch_size": 16, "n_epochs": 2}
OFF: dict[str, Any] = dict(learning_starts=8, batch_size=8, buffer_size=200, policy_kwargs=dict(net_arch=[8, 8]))
LSTM: dict[str, Any] = dict(net_arch=[8], lstm_hidden_size=6)


def with_kwargs(settings, **policy_kwargs):
    return {**settings, "policy_kwargs": {**settings["policy_kwargs"], **policy_kwargs}}


PENDULUM, CARTPOLE = "Pendulum-v1", "CartPole-v1"
CASES = {
    "PPO": (PPO, "MlpPolicy", PENDULUM, PPO_LIKE),
    "PPO-two-extractors": (PPO, "MlpPolicy", CARTPOLE, with_kwargs(PPO_LIKE, share_features_extractor=False)),
    "PPO-sde": (PPO, "MlpPolicy", PENDULUM, {**PPO_LIKE, "use_sde": True}),
    "PPO-ours": (PPO, LipschitzGaussianPolicy, PENDULUM, with_kwargs(PPO_LIKE, lipschitz=0.5)),
    "A2C": (A2C, "MlpPolicy", CARTPOLE, ON),
    "A2C-ours": (A2C, LipschitzCategoricalPolicy, CARTPOLE, with_kwargs(ON, lipschitz=0.5)),
    "TRPO": (TRPO, "MlpPolicy", CARTPOLE, {**ON, "batch_size": 16}),
    "RecurrentPPO": (RecurrentPPO, "MlpLstmPolicy", CARTPOLE, {**PPO_LIKE, "policy_kwargs": LSTM}),
    "RecurrentPPO-shared": (
        RecurrentPPO,
        "MlpLstmPolicy",
        CARTPOLE,
        {**PPO_LIKE, "policy_kwargs": LSTM | dict(shared_lstm=True, enable_critic_lstm=False, n_lstm_layers=2)},
    ),
    "MaskablePPO": (MaskablePPO, "MlpPolicy", CARTPOLE, PPO_LIKE),
    "MaskablePPO-ours": (
        MaskablePPO,
        LipschitzMaskableCategoricalPolicy,
        CARTPOLE,
        with_kwargs(PPO_LIKE, lipschitz=0.5, share_features_extractor=False),
    ),
    "SAC": (SAC, "MlpPolicy", PENDULUM, OFF),
    "SAC-shared": (SAC, "MlpPolicy", PENDULUM, with_kwargs(OFF, share_features_extractor=True, n_critics=1)),
    "SAC-sde": (SAC, "MlpPolicy", PENDULUM, {**OFF, "use_sde": True}),
    "SAC-ours": (SAC, LipschitzSACPolicy, PENDULUM, with_kwargs(OFF, lipschitz=0.5)),
    "TD3": (TD3, "MlpPolicy", PENDULUM, OFF),
    "TD3-ours": (TD3, LipschitzTD3Policy, PENDULUM, with_kwargs(OFF, lipschitz=0.5, critic_lipschitz=0.7)),
    "DDPG": (DDPG, "MlpPolicy", PENDULUM, OFF),
    "DQN": (DQN, "MlpPolicy", CARTPOLE, OFF),
    "DQN-ours": (DQN, LipschitzDQNPolicy, CARTPOLE, with_kwargs(OFF, lipschitz=0.5)),
    "TQC": (TQC, "MlpPolicy", PENDULUM, with_kwargs(OFF, n_quantiles=5, n_critics=3)),
    "QRDQN": (QRDQN, "MlpPolicy", CARTPOLE, with_kwargs(OFF, n_quantiles=5)),
    "CrossQ": (CrossQ, "MlpPolicy", PENDULUM, OFF),
    "ARS": (
        ARS,
        "MlpPolicy",
        PENDULUM,
        dict(n_delta=2, policy_kwargs=dict(net_arch=[8], with_bias=False, squash_output=False)),
    ),
    "ARS-linear": (ARS, "LinearPolicy", CARTPOLE, dict(n_delta=2)),
    "ARS-linear-bias": (
        ARS,
        "LinearPolicy",
        PENDULUM,
        dict(n_delta=2, policy_kwargs=dict(with_bias=True, squash_output=True)),
    ),
}


def trained(case):
    algo, policy, env, kwargs = copy.deepcopy(CASES[case])  # SB3 writes into policy_kwargs
    return algo(policy, Masked(gym.make(env)) if algo is MaskablePPO else env, seed=0, device="cpu", **kwargs).learn(64)


def optimizers(policy):
    owners = [policy, getattr(policy, "actor", None), getattr(policy, "critic", None)]
    return [owner.optimizer for owner in owners if isinstance(getattr(owner, "optimizer", None), th.optim.Optimizer)]


def tensors(policy):
    found = dict(th.nn.Module.state_dict(policy))
    for i, optimizer in enumerate(optimizers(policy)):
        for j, state in optimizer.state_dict()["state"].items():
            found |= {f"optimizer {i} {j} {key}": value for key, value in state.items() if isinstance(value, th.Tensor)}
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_copy_is_equal_and_independent(case):
    policy = trained(case).policy
    if "PPO-ours" in case or "A2C-ours" in case:
        policy.set_training_mode(False)  # a copy of an on-policy policy of ours is projected exactly
    random_state = th.get_rng_state()
    clone = copy_policy(policy)
    assert th.equal(random_state, th.get_rng_state()) and type(clone) is type(policy) and not clone.training
    theirs, mine = tensors(policy), tensors(clone)
    assert list(theirs) == list(mine) and all(th.equal(theirs[key], mine[key]) for key in theirs)
    assert not {v.data_ptr() for v in theirs.values() if v.numel()} & {v.data_ptr() for v in mine.values() if v.numel()}
    settings = [
        [{k: v for k, v in g.items() if k != "params"} for o in optimizers(p) for g in o.param_groups] for p in (policy, clone)
    ]
    assert settings[0] == settings[1] and len(settings[0]) == (
        0 if "ARS" in case else 2 if hasattr(policy, "critic_target") or case == "CrossQ" else 1
    )
    observations = np.random.default_rng(0).normal(size=(16, *policy.observation_space.shape)).astype(np.float32)
    assert np.array_equal(*(p.predict(observations, deterministic=True)[0] for p in (policy, clone)))
    before = {key: value.clone() for key, value in theirs.items()}
    for parameter in clone.parameters():
        parameter.data.add_(1.0)
    assert all(th.equal(value, before[key]) for key, value in tensors(policy).items())


OURS = [case for case in CASES if case.endswith("ours")]


def unpickled(policy):
    return pickle.loads(pickle.dumps(policy))


@pytest.mark.parametrize("copier", [copy.deepcopy, unpickled])
@pytest.mark.parametrize("case", OURS)
def test_copies_of_ours_keep_zeros_and_bound(case, copier):
    policy = trained(case).policy
    prune_policy(policy, 0.5, targets=("actor",))
    clone = copier(policy)
    assert sparsity(clone)["actor"] == sparsity(policy)["actor"] > 0.4
    zeros = {name: p == 0 for name, p in clone.named_parameters() if p.dim() == 2 and bool((p == 0).any())}
    before = {name: p.detach().clone() for name, p in clone.named_parameters()}
    for optimizer in optimizers(clone):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for _ in range(5):
            sum((1e3 * p).sum() for p in parameters).neg().backward()  # every weight is to grow
            optimizer.step()
    after = dict(clone.named_parameters())
    assert all(bool((after[name][where] == 0).all()) for name, where in zeros.items())
    assert any(not th.equal(after[name], before[name]) for name in before)
    for _, projection in clone._projections:
        norms = [float(np.linalg.norm(w.detach().numpy(), 2)) for w in projection.weights]
        assert np.prod(norms) <= projection.bound * (1 + 1e-2)
    assert clone._projections


def test_a_copy_in_the_midst_of_training_plays_as_the_original_does():
    policy = trained("SAC-ours").policy
    product = np.prod([np.linalg.norm(w.detach().numpy(), 2) for w in policy._projections[0][1].weights])
    policy.actor.mu.weight.data.mul_(1.008 * 0.5 / product)  # within what a step may leave, beyond the exact bound
    mine = copy_policy(policy).actor.mu.weight
    assert th.equal(mine, policy.actor.mu.weight)


@pytest.mark.parametrize("case", OURS)
def test_a_copied_algorithm_trains_the_policy_that_it_plays(case):
    model = trained(case)
    model.policy.set_training_mode(False)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    clone = copy.deepcopy(model)
    names = [name for name in ("actor", "critic", "q_net", "critic_target", "q_net_target") if hasattr(model, name)]
    assert all(getattr(clone, name) is getattr(clone.policy, name) for name in names)
    clone.learn(64)
    actor = [name for name in before if "target" not in name and "critic" not in name and "value" not in name]
    assert any(not th.equal(dict(clone.policy.named_parameters())[name], before[name]) for name in actor)
    assert all(th.equal(p, before[name]) for name, p in model.policy.named_parameters())
