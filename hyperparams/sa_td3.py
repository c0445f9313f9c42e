"""The entries of ``sa_td3.yml``, for ``--conf-file sb3_prune_robust.hyperparams.sa_td3``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("sa_td3")
