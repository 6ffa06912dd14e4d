"""Hand the newest image of each camera from the executor to the worker."""

import threading
from collections.abc import Hashable
from typing import Any


class Mailbox:
    """One slot for each key; a newer item replaces one that was not taken.

    `take` serves the key that has waited longest, so a fast camera cannot starve a slow one.
    """

    def __init__(self) -> None:
        self._items: dict[Hashable, Any] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, key: Hashable, item: object) -> bool:
        """Store `item`; returns whether it replaced one that nobody took."""
        with self._changed:
            replaced = key in self._items
            self._items[key] = item  # a dict keeps the place of a key that it has
            self._changed.notify()
            return replaced

    def take(self) -> tuple[Hashable, Any] | None:
        """Wait for an item and remove it; None once the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            if self._closed:
                return None
            key = next(iter(self._items))
            return key, self._items.pop(key)

    def close(self) -> None:
        """Drop what is left and end every `take`."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
