"""Point tracking of a live stream, numpy in and numpy out; needs neither torch nor ROS."""

from cotracker_ros.streaming.tracker import (
    NEW,
    OUTSIDE,
    QUERY_FRAME,
    VISIBLE,
    LateFrame,
    StreamingTracker,
    Tracks,
)

__all__ = ['NEW', 'OUTSIDE', 'QUERY_FRAME', 'VISIBLE', 'LateFrame', 'StreamingTracker', 'Tracks']
