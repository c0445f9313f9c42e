"""The entries of ``sac.yml``, for ``--conf-file sb3_prune_robust.hyperparams.sac``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("sac")
