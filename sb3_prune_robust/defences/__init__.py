"""Robust training as SB3 algorithms: SA-PPO and its like for SAC, TD3 and DQN, certified training."""

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_prune_robust.defences.state_adversarial import SADQN, SAPPO, SASAC, SATD3, CertifiedPPO

#: The algorithms by the names that RL Zoo and the command line know them by.
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "sappo": SAPPO,
    "certified_ppo": CertifiedPPO,
    "sa_sac": SASAC,
    "sa_td3": SATD3,
    "sa_dqn": SADQN,
}

__all__ = ["ALGORITHMS", "SADQN", "SAPPO", "SASAC", "SATD3", "CertifiedPPO"]
