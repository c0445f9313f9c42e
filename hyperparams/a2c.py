"""The entries of ``a2c.yml``, for ``--conf-file sb3_prune_robust.hyperparams.a2c``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("a2c")
