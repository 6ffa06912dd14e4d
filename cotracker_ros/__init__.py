"""Track any point of a live camera stream, on a robot."""
