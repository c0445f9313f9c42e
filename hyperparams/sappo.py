"""The entries of ``sappo.yml``, for ``--conf-file sb3_prune_robust.hyperparams.sappo``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("sappo")
