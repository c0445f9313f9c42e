"""Evaluation: rollouts on fixed episodes, clean and attacked; the frontier over sparsities; the report."""

from sb3_prune_robust.evaluation.audit import Subject, audit, load_subjects, write_report
from sb3_prune_robust.evaluation.certificate_callback import CertificateCallback
from sb3_prune_robust.evaluation.clean_play import CleanPlay, play_clean
from sb3_prune_robust.evaluation.frontier import Agent, Settings, frontier, pruned_copies
from sb3_prune_robust.evaluation.held_out import HeldOut, Played, Watch
from sb3_prune_robust.evaluation.loading import load_model, make_env
from sb3_prune_robust.evaluation.return_certificate import (
    LargestEps,
    ReturnCertificate,
    certify_play,
    certify_return,
    largest_certified_eps,
)
from sb3_prune_robust.evaluation.rollouts import Episodes, NoAttackError, RewardRangeError, rollout
from sb3_prune_robust.evaluation.store import DamagedPieceWarning, Store
from sb3_prune_robust.evaluation.sweet_spots import Candidate, SweetSpot, sweet_spots
from sb3_prune_robust.evaluation.worst_case import WorstCase, worst_case

__all__ = [
    "Agent",
    "Candidate",
    "CertificateCallback",
    "CleanPlay",
    "DamagedPieceWarning",
    "Episodes",
    "HeldOut",
    "LargestEps",
    "NoAttackError",
    "Played",
    "ReturnCertificate",
    "RewardRangeError",
    "Settings",
    "Store",
    "Subject",
    "SweetSpot",
    "Watch",
    "WorstCase",
    "audit",
    "certify_play",
    "certify_return",
    "frontier",
    "largest_certified_eps",
    "load_model",
    "load_subjects",
    "make_env",
    "play_clean",
    "pruned_copies",
    "rollout",
    "sweet_spots",
    "worst_case",
    "write_report",
]
