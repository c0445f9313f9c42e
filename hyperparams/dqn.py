"""The entries of ``dqn.yml``, for ``--conf-file sb3_prune_robust.hyperparams.dqn``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("dqn")
