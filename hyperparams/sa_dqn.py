"""The entries of ``sa_dqn.yml``, for ``--conf-file sb3_prune_robust.hyperparams.sa_dqn``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("sa_dqn")
