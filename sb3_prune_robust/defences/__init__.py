"""
Robust training as SB3 algorithms: SA-PPO and its like for SAC, TD3 and DQN, certified training, RADIAL, WocaR, ATLA, PA-ATLA.
"""

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_prune_robust.defences.atla import ATLAPPO, PAATLAPPO
from sb3_prune_robust.defences.radial import RADIALPPO
from sb3_prune_robust.defences.state_adversarial import SADQN, SAPPO, SASAC, SATD3, CertifiedPPO
from sb3_prune_robust.defences.wocar import WocaRPPO

#: The algorithms by the names that RL Zoo and the command line know them by.
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "sappo": SAPPO,
    "certified_ppo": CertifiedPPO,
    "radial_ppo": RADIALPPO,
    "wocar_ppo": WocaRPPO,
    "atla_ppo": ATLAPPO,
    "pa_atla_ppo": PAATLAPPO,
    "sa_sac": SASAC,
    "sa_td3": SATD3,
    "sa_dqn": SADQN,
}

__all__ = ["ALGORITHMS", "ATLAPPO", "PAATLAPPO", "RADIALPPO", "SADQN", "SAPPO", "SASAC", "SATD3", "CertifiedPPO", "WocaRPPO"]
