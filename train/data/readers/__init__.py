"""Readers of the tracking data sets, each in its published format; numpy and OpenCV only.

Every reader yields `Clip`s or raises DataError with one message that names the file and what is
wrong with it.
"""

from train.data.readers.davis import badja, davis_masks
from train.data.readers.dynamic_replica import dynamic_replica
from train.data.readers.held_out import held_out, people
from train.data.readers.kubric import kubric
from train.data.readers.posetrack import posetrack
from train.data.readers.tapvid import tapvid

__all__ = [
    'badja',
    'davis_masks',
    'dynamic_replica',
    'held_out',
    'kubric',
    'people',
    'posetrack',
    'tapvid',
]
