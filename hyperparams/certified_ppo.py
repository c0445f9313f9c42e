"""The entries of ``certified_ppo.yml``, for ``--conf-file sb3_prune_robust.hyperparams.certified_ppo``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("certified_ppo")
