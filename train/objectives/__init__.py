"""Objectives: what a network learns, by the name that a run's YAML gives."""

from train.objectives.base import Objective
from train.objectives.contrastive import ContrastiveObjective
from train.objectives.distillation import DistillationObjective
from train.objectives.realtime import RealtimeObjective
from train.objectives.windowed import WindowedObjective

OBJECTIVES: dict[str, type[Objective]] = {
    'contrastive': ContrastiveObjective,
    'distillation': DistillationObjective,
    'realtime': RealtimeObjective,
    'windowed': WindowedObjective,
}
