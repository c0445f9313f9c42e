"""The entries of ``atla_ppo.yml``, for ``--conf-file sb3_prune_robust.hyperparams.atla_ppo``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("atla_ppo")
