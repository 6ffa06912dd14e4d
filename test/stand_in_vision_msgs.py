"""vision_msgs/msg of vision_msgs 4 (Humble and later), where it is not installed.

Fields, types and what a wrong type raises are those that rosidl generates with its checks on.
"""

import types

from geometry_msgs.msg import PoseWithCovariance
from std_msgs.msg import Header

_UNSET = object()


def _message(name: str, **fields):
    """Make a message class; a field is a type, or [type] for a sequence of them."""

    def __init__(self, **kwargs):
        unknown = kwargs.keys() - fields.keys()
        assert not unknown, (
            f'Invalid arguments passed to constructor: {", ".join(sorted(unknown))}'
        )
        for key, kind in fields.items():
            value = kwargs.get(key, _UNSET)
            setattr(
                self,
                key,
                value if value is not _UNSET else [] if isinstance(kind, list) else kind(),
            )

    def __setattr__(self, key, value):
        if key not in fields:
            raise AttributeError(f"'{name}' object has no attribute '{key}'")
        kind = fields[key]
        if isinstance(kind, list):
            assert isinstance(value, (list, tuple)), f"The '{key}' field must be a sequence"
            assert all(isinstance(item, kind[0]) for item in value), (
                f"The '{key}' field must be a sequence of {kind[0].__name__}"
            )
            value = list(value)
        else:
            assert type(value) is kind, f"The '{key}' field must be of type '{kind.__name__}'"
        object.__setattr__(self, key, value)

    return type(
        name, (), {'__slots__': tuple(fields), '__init__': __init__, '__setattr__': __setattr__}
    )


Point2D = _message('Point2D', x=float, y=float)
Pose2D = _message('Pose2D', position=Point2D, theta=float)
BoundingBox2D = _message('BoundingBox2D', center=Pose2D, size_x=float, size_y=float)
ObjectHypothesis = _message('ObjectHypothesis', class_id=str, score=float)
ObjectHypothesisWithPose = _message(
    'ObjectHypothesisWithPose', hypothesis=ObjectHypothesis, pose=PoseWithCovariance
)
Detection2D = _message(
    'Detection2D', header=Header, results=[ObjectHypothesisWithPose], bbox=BoundingBox2D, id=str
)
Detection2DArray = _message('Detection2DArray', header=Header, detections=[Detection2D])


def modules() -> dict[str, types.ModuleType]:
    """The modules by name, for sys.modules."""
    package, msg = types.ModuleType('vision_msgs'), types.ModuleType('vision_msgs.msg')
    package.msg = msg
    for kind in (Point2D, Pose2D, BoundingBox2D, ObjectHypothesis, ObjectHypothesisWithPose,
                 Detection2D, Detection2DArray):  # fmt: skip
        setattr(msg, kind.__name__, kind)
    return {'vision_msgs': package, 'vision_msgs.msg': msg}
