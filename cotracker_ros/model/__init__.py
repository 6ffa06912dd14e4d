"""The networks: CoTracker 1, 2 and 3, and the small real-time model."""

from cotracker_ros.model.checkpoint import build_model, load_checkpoint

__all__ = ['build_model', 'load_checkpoint']
