"""The entries of ``wocar_ppo.yml``, for ``--conf-file sb3_prune_robust.hyperparams.wocar_ppo``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("wocar_ppo")
