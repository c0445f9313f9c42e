"""Deployment: smaller models, other run-times, and files to share."""

from sb3_prune_robust.deployment.export import export_onnx
from sb3_prune_robust.deployment.hub import card_section, save_for_hub
from sb3_prune_robust.deployment.shrink import shrink

__all__ = ["card_section", "export_onnx", "save_for_hub", "shrink"]
