"""A bounded queue between the thread that reads frames and those that compute, with a policy for when it is full."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

__all__ = ["Inbox", "Policy"]

T = TypeVar("T")
Policy = Literal["drop-oldest", "drop-newest", "block"]


class Inbox(Generic[T]):
    """What was put and not yet taken, at most `size` items, in order.

    Args:
        size: how many items it holds, at least 1.
        policy: what `put` does where it is full: throw away the item that waits longest (`drop-oldest`), or the new one
            (`drop-newest`), or wait until there is room (`block`).
        on_change: called, without a lock, after every item and after `close`.

    Attributes:
        dropped: items thrown away.

    Raises:
        ValueError: a size below 1 or an unknown policy.
    """

    def __init__(self, size: int, policy: Policy, on_change: Callable[[], None] | None = None) -> None:
        if size < 1 or policy not in ("drop-oldest", "drop-newest", "block"):
            raise ValueError(
                f"expected a size of at least 1 and a policy drop-oldest, drop-newest or block, got {size}, {policy!r}"
            )
        self.dropped = 0
        self._size, self._policy, self._on_change = size, policy, on_change
        self._items: deque[T] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Add an item as the policy says; after `close` nothing is added."""
        with self._changed:
            if self._policy == "block":
                self._changed.wait_for(lambda: len(self._items) < self._size or self._closed)
            if self._closed:
                return
            if len(self._items) == self._size:
                self.dropped += 1
                if self._policy == "drop-newest":
                    return
                self._items.popleft()
            self._items.append(item)
            self._changed.notify_all()
        self._tell()

    def take(self, timeout_s: float = 0.0) -> T | None:
        """The item that waits longest; None where there is none in this time, or ever again."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout_s)
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self, *, empty: bool = False) -> None:
        """Nothing more comes; what is in can still be taken, unless it is to be emptied. Ends a `put` that waits."""
        with self._changed:
            self._closed = True
            if empty:
                self._items.clear()
            self._changed.notify_all()
        self._tell()

    @property
    def finished(self) -> bool:
        """Whether it is closed and empty."""
        with self._changed:
            return self._closed and not self._items

    def __len__(self) -> int:
        return len(self._items)

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change()
