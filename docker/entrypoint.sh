#!/usr/bin/env bash
# Launch the tracker with arguments of tracker.launch.py (`image_topic:=/camera/image_raw`), or run
# another command in the same environment (`cotracker-echo`, `bash`).
set -e
source "/opt/ros/${ROS_DISTRO}/setup.bash"
source /ws/install/setup.bash
case "${1:-}" in
  ''|*:=*|--show-args) exec ros2 launch cotracker_ros tracker.launch.py "$@" ;;
  *) exec "$@" ;;
esac
