"""Point tracking of a live stream, numpy in and numpy out; needs neither torch nor ROS."""

from cotracker_ros.streaming.tracker import (
    MAX_INSTANCE,
    NEW,
    OUTSIDE,
    QUERY_FRAME,
    VISIBLE,
    LateFrame,
    StreamingTracker,
    Tracks,
    body_of,
    table,
)

__all__ = [
    'MAX_INSTANCE',
    'NEW',
    'OUTSIDE',
    'QUERY_FRAME',
    'VISIBLE',
    'LateFrame',
    'StreamingTracker',
    'Tracks',
    'body_of',
    'table',
]
