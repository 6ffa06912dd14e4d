"""Publish through a middleware that may refuse."""

from rclpy.impl.implementation_singleton import rclpy_implementation


def send(publisher, msg) -> bool:
    """Publish a message; returns whether the middleware took it.

    Fast DDS refuses one for which it finds no room within 0.1 s, as may happen on a busy machine.
    rclpy makes that an exception, and out of a timer it would end the node.
    """
    try:
        publisher.publish(msg)
    except rclpy_implementation.RCLError:
        return False
    return True
