"""What was used last, kept at hand beside a database that many threads read and one writes."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Container, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values used last. Many threads may read and add; one updates, after the change is in the database.

    A value that was read from the database before an update must not be added after it: `add` takes the count of
    `changes` from before the read, and adds nothing where there was one since. Between the change in the database and the
    `update` here a reader may meet the one and then the other: what `begin` was told of is not at hand meanwhile.
    """

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()
        self._changing: Container[K] = ()
        self.changes = 0

    def get(self, key: K) -> V | None:
        if key in self._changing:  # asked first: a value from before the change may be put out between the two
            return None
        value = self._values.get(key)
        if value is not None:
            with contextlib.suppress(KeyError):  # another thread has just put it out; the value is none the worse
                self._values.move_to_end(key)
        return value

    def add(self, key: K, value: V, since: int) -> None:
        with self._lock:
            if self.changes == since:
                self._keep(key, value)

    def begin(self, changing: Container[K]) -> None:
        """These may change in the database from now on, until `update`."""
        self._changing = changing

    def update(self, values: Mapping[K, V | None]) -> None:
        """Take in what has changed in the database."""
        with self._lock:
            self.changes += 1
            for key, value in values.items():
                if value is None:
                    self._values.pop(key, None)
                else:
                    self._keep(key, value)
        self._changing = ()

    def _keep(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size_max:
            self._values.popitem(last=False)
