"""The networks: CoTracker 1, 2 and 3, and the small real-time model."""

from cotracker_ros.model.checkpoint import load_checkpoint
from cotracker_ros.model.registry import build_model

__all__ = ['build_model', 'load_checkpoint']
