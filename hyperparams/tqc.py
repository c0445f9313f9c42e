"""The entries of ``tqc.yml``, for ``--conf-file sb3_prune_robust.hyperparams.tqc``."""

from sb3_prune_robust.hyperparams import module_attributes

__getattr__ = module_attributes("tqc")
