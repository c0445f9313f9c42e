"""The entries of ``pa_atla_ppo.yml``, for ``--conf-file sb3_prune_robust.hyperparams.pa_atla_ppo``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("pa_atla_ppo")
