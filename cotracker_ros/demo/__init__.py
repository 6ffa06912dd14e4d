"""Camera, tracker and recorder as processes over real ROS 2: `python -m cotracker_ros.demo`."""
