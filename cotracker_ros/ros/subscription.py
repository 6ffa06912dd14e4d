"""A subscription to images that hears every camera, and knows what it missed."""

import time
from collections.abc import Callable

from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions, QoSPolicyKind
from rclpy.subscription import Subscription

RELIABLE, BEST_EFFORT = QoSReliabilityPolicy.RELIABLE, QoSReliabilityPolicy.BEST_EFFORT
# Humble hands a callback the message alone; then losses cannot be counted, and a message counts
# as published when it arrives.
HAS_MESSAGE_INFO = hasattr(Subscription, 'CallbackType')


class MatchedSubscription:
    """Calls `callback(msg, lost, published)` with the newest image.

    lost: the number of images that never came since the last one; published: seconds, by the
    clock of the publisher, at which the image was handed to the middleware. Unlike the moment of
    the callback, this does not depend on how busy the receiver is.

    Its reliability is what the publishers offer. BEST_AVAILABLE of the middleware decides only
    once, when the subscription is made: reliable if no camera is there yet, and then a best-effort
    camera never connects. Hence `match`, to be called again and again. Users can choose under the
    key that ROS has for it, `qos_overrides.<topic>.subscription.reliability`.
    """

    def __init__(self, node, kind: type, topic: str, callback: Callable) -> None:
        """`topic` is the full name. Raises ValueError for a wrong override."""
        self._node, self._kind, self._callback = node, kind, callback
        self.topic = topic
        self._subscription = None
        key = f'qos_overrides.{topic}.subscription.reliability'
        if not node.has_parameter(key):
            node.declare_parameter(key, 'best_available')
        self._wanted = node.get_parameter(key).value
        if self._wanted not in ('best_available', 'reliable', 'best_effort'):
            raise ValueError(
                f'{key} must be best_available, reliable or best_effort, not {self._wanted!r}'
            )

    def open(self) -> None:
        """Subscribe."""
        self._reliability = self._offered()
        self._sequence = None
        qos = QoSProfile(
            depth=1, history=QoSHistoryPolicy.KEEP_LAST, reliability=self._reliability
        )  # the newest image or none: with a queue of 10 results are 10 steps old
        overrides = QoSOverridingOptions([QoSPolicyKind.DEPTH, QoSPolicyKind.HISTORY])
        callback = self._on_message if HAS_MESSAGE_INFO else self._on_bare_message
        self._subscription = self._node.create_subscription(
            self._kind, self.topic, callback, qos, qos_overriding_options=overrides
        )

    def close(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription = None

    def match(self) -> None:
        """Subscribe again if publishers have come or gone that call for another reliability."""
        if self._subscription is not None and self._offered() != self._reliability:
            self.close()
            self.open()

    def _offered(self) -> QoSReliabilityPolicy:
        """Return reliable, which loses no image, unless a publisher here offers less."""
        if self._wanted != 'best_available':
            return RELIABLE if self._wanted == 'reliable' else BEST_EFFORT
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        offers = {p.qos_profile.reliability for p in publishers}
        return BEST_EFFORT if BEST_EFFORT in offers else RELIABLE

    def _on_message(self, msg, info: dict) -> None:
        lost, number = 0, info.get('publication_sequence_number')
        if number:
            if self._sequence is not None and number > self._sequence + 1:
                lost = number - self._sequence - 1
            self._sequence = number
        published = info.get('source_timestamp')  # nanoseconds; 0: the middleware has none
        self._callback(msg, lost, published * 1e-9 if published else time.time())

    def _on_bare_message(self, msg) -> None:
        self._callback(msg, 0, time.time())
