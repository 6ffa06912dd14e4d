"""A live view of the tracker in a browser (extra `live`): `python -m cotracker_ros.live`."""
