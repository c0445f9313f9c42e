"""The entries of ``radial_ppo.yml``, for ``--conf-file sb3_prune_robust.hyperparams.radial_ppo``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("radial_ppo")
