"""The entries of ``trpo.yml``, for ``--conf-file sb3_prune_robust.hyperparams.trpo``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("trpo")
