#!/usr/bin/env bash
# Launch the tracker; arguments are those of tracker.launch.py.
set -e
source "/opt/ros/${ROS_DISTRO}/setup.bash"
source /ws/install/setup.bash
exec ros2 launch cotracker_ros tracker.launch.py "$@"
