"""Which weights of a policy are whose, for every algorithm."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_prune_robust.anatomy import anatomy, optimizers_of

SMALL = dict(buffer_size=10)
ON_POLICY = ("mlp_extractor.policy_net.0 .2", "mlp_extractor.value_net.0 .2", "action_net value_net", "")
LATENT = ("actor.latent_pi.0 .2", "critic.qf0.0 .2 critic.qf1.0 .2", "actor.mu actor.log_std critic.qf0.4 critic.qf1.4")
MU = ("actor.mu.0 .2", "critic.qf0.0 .2 critic.qf1.0 .2", "actor.mu.4 critic.qf0.4 critic.qf1.4")
NORMED = ("actor.latent_pi.1 .4", "critic.qf0.1 .4 critic.qf1.1 .4", "actor.mu actor.log_std critic.qf0.7 critic.qf1.7")
#: of which networks of the policy there are targets; hidden layers of actor and critic, heads
EXPECTED = {
    PPO: ON_POLICY,
    A2C: ON_POLICY,
    TRPO: ON_POLICY,
    RecurrentPPO: ON_POLICY,
    MaskablePPO: ON_POLICY,
    SAC: (*LATENT, "critic"),
    TQC: (*LATENT, "critic"),
    TD3: (*MU, "actor critic"),
    DDPG: ("actor.mu.0 .2", "critic.qf0.0 .2", "actor.mu.4 critic.qf0.4", "actor critic"),
    CrossQ: (*NORMED, ""),
    DQN: ("q_net.q_net.0 .2", "", "q_net.q_net.4", "q_net"),
    QRDQN: ("quantile_net.quantile_net.0 .2", "", "quantile_net.quantile_net.4", "quantile_net"),
    ARS: ("action_net.0 .2", "", "action_net.4", ""),
}


def names(text):
    """``"a.0 .2"`` stands for ``a.0`` and ``a.2``."""
    found = []
    for word in text.split():
        found.append(found[-1].rpartition(".")[0] + word if word.startswith(".") else word)
    return found


def policy_of(algorithm, **policy_kwargs):
    discrete = algorithm in (DQN, QRDQN, MaskablePPO)
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    small = {} if algorithm in (PPO, A2C, TRPO, RecurrentPPO, MaskablePPO, ARS) else SMALL
    env = "CartPole-v1" if discrete else "Pendulum-v1"
    return algorithm(policy, env, policy_kwargs=dict(net_arch=[8, 8], **policy_kwargs), **small).policy


@pytest.mark.parametrize("algorithm", EXPECTED, ids=lambda algorithm: algorithm.__name__)
def test_whose_is_what(algorithm):
    actor, critic, heads, followed = EXPECTED[algorithm]
    policy = policy_of(algorithm)
    parts = anatomy(policy)
    assert list(parts.hidden("actor")) == names(actor) and list(parts.hidden("critic")) == names(critic)
    assert parts.heads == set(names(heads))
    assert parts.is_value_network == (algorithm in (DQN, QRDQN))
    recurrent = [f"lstm_{who}.weight_{what}_l0" for who in ("actor", "critic") for what in ("ih", "hh")]
    assert parts.recurrent == (set(recurrent) if algorithm is RecurrentPPO else set())
    assert set(parts.followers) == {name for name in parts.weights if name.split(".")[0] in followed.split()}
    parameters = dict(policy.named_parameters())
    for name, weight in parts.weights.items():
        assert weight is parameters[name if name in parts.recurrent else f"{name}.weight"]
    for name, followers in parts.followers.items():
        network, _, rest = name.partition(".")
        assert [id(one) for one in followers] == [id(parameters[f"{network}_target.{rest}.weight"])]


@pytest.mark.parametrize("algorithm", EXPECTED, ids=lambda algorithm: algorithm.__name__)
def test_every_weight_is_stepped_by_the_optimiser_of_its_target_and_no_other(algorithm):
    parts = anatomy(policy_of(algorithm))
    if algorithm is ARS:
        assert parts.optimizers == {}
        return
    for target in ("actor", "critic"):
        for optimizer in parts.optimizers.values():
            stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
            is_own = optimizer is parts.optimizers[target]
            assert all((id(weight) in stepped) == is_own for weight in parts.part(target).values())


class Image(gym.Env):
    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Box(-1, 1, (1,))


@pytest.mark.parametrize(
    ("algorithm", "share"), [(PPO, True), (PPO, False), (SAC, True), (SAC, False), (TD3, True), (TD3, False)]
)
def test_a_shared_features_extractor_is_the_actors_and_all_that_follow_it_are_known(algorithm, share):
    small = {} if algorithm is PPO else SMALL
    kwargs = dict(net_arch=[8], share_features_extractor=share)
    policy = algorithm("CnnPolicy", Image(), policy_kwargs=kwargs, **small).policy
    parts = anatomy(policy)
    convolutions = {target: [n for n, w in parts.hidden(target).items() if w.ndim == 4] for target in ("actor", "critic")}
    assert (len(convolutions["actor"]), len(convolutions["critic"])) == (3, 0 if share else 3)
    for name in convolutions["actor"]:
        # the targets' extractors: of SAC the critic's, if it follows the actor's; of TD3 each its own, or one for both
        expected = {PPO: 0, SAC: 1 if share else 0, TD3: 2 if share else 1}[algorithm]
        assert len(parts.followers.get(name, ())) == expected
    if share and algorithm is not PPO:
        follower = policy.critic_target.features_extractor.cnn[0].weight
        assert any(one is follower for one in parts.followers["actor.features_extractor.cnn.0"])


class Extractor(th.nn.Module):
    """A network of somebody's own, with layers that actor and critic share."""

    def __init__(self):
        super().__init__()
        self.shared_net = th.nn.Linear(3, 4)
        self.policy_net = th.nn.Sequential(th.nn.Linear(4, 5), th.nn.Tanh())
        self.value_net = th.nn.Sequential(th.nn.Linear(4, 6), th.nn.Tanh())
        self.latent_dim_pi, self.latent_dim_vf = 5, 6


class Custom(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = Extractor()


def test_other_peoples_on_policy_policies():
    parts = anatomy(PPO(Custom, "Pendulum-v1").policy)
    assert list(parts.hidden("actor")) == ["mlp_extractor.shared_net", "mlp_extractor.policy_net.0"]
    assert list(parts.hidden("critic")) == ["mlp_extractor.value_net.0"]


def test_gsde_has_its_head_in_a_sequence():
    parts = anatomy(SAC("MlpPolicy", "Pendulum-v1", use_sde=True, policy_kwargs=dict(net_arch=[8, 8]), **SMALL).policy)
    assert "actor.mu.0" in parts.heads and list(parts.hidden("actor")) == ["actor.latent_pi.0", "actor.latent_pi.2"]


def test_what_is_not_known_is_refused():
    with pytest.raises(TypeError, match=r"policy of class Linear is not one whose layers are known"):
        anatomy(th.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"policy of class str"):
        anatomy("MlpPolicy")


def test_optimisers_are_read_anew():
    policy = policy_of(DQN)
    policy.optimizer = th.optim.SGD(policy.q_net.parameters(), lr=0.1)
    assert optimizers_of(policy)["actor"] is policy.optimizer
