"""Fairness between visitors: whoever asked first is next."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A lock that is given in the order in which it was asked for: of two runs that take it again and again, each gets
    every second turn."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()  # the first has the turn

    def __len__(self) -> int:
        """How many have the turn or ask for it."""
        return len(self._waiting)

    @contextmanager
    def turn(self) -> Iterator[None]:
        me = object()
        try:
            with self._changed:
                self._waiting.append(me)
                self._changed.wait_for(lambda: self._waiting[0] is me)
            yield
        finally:
            with self._changed:
                self._waiting.remove(me)
                self._changed.notify_all()
