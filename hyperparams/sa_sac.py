"""The entries of ``sa_sac.yml``, for ``--conf-file sb3_prune_robust.hyperparams.sa_sac``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("sa_sac")
