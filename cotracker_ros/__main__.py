"""Run the tracker node: `python -m cotracker_ros --ros-args --params-file config/tracker.yaml`."""

import sys

from cotracker_ros.ros.node import main

sys.exit(main())
