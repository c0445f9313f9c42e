"""The entries of ``ppo.yml``, for ``--conf-file sb3_prune_robust.hyperparams.ppo``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("ppo")
