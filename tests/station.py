"""Clients that go on whoever dies: each call is made again, of any worker that runs, until it is answered."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from typing import TypeVar

import httpx

from tests.cluster import Cluster, WorkerProcess, eventually
from tests.conftest import RealBroker
from tests.listappend import FIELD, TABLE, Key, Reading, Row
from versolog import Client, Outcome, Transaction
from versolog.client import Moment, Read
from versolog.schemas.errors import Unavailable, Undecided, VersologError

ANSWER_S = 5.0
GIVE_UP_S = 120.0

Answer = TypeVar("Answer")


class Station:
    """One client's way to the cluster. For one thread."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster, self._random = cluster, random.Random(seed)
        self._clients: dict[WorkerProcess, Client] = {}

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def send(self, tx: Transaction) -> Outcome:
        """The outcome, refused ones too."""
        try:
            return self.ask(lambda db: db.send(tx))
        except (Unavailable, Undecided):
            raise
        except VersologError:  # a refusal: its outcome is kept like any other
            return self.ask(lambda db: db.outcome(tx.id))

    def read(self, *reads: Read) -> Moment:
        return self.ask(lambda db: db.read(*reads))

    def lists(self, keys: Collection[Key]) -> Reading:
        """Lists as the checker of their history takes them."""
        ordered = list(keys)
        told = self.read(*(Read(key.group, TABLE, key.name) for key in ordered))
        rows = {}
        for place, key in enumerate(ordered):
            row = told.row(place)
            rows[key] = Row(0, ()) if row is None else Row(row.version, tuple(row.row[FIELD]))
        return Reading(rows, round(told.at.timestamp() * 1000))

    def ask(self, call: Callable[[Client], Answer]) -> Answer:
        """Raises what the last worker answered that could not tell in time."""
        deadline = time.monotonic() + GIVE_UP_S
        while True:
            try:
                return call(self._client())
            except (Unavailable, Undecided, httpx.TransportError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _client(self) -> Client:
        running = eventually(self._cluster.running, GIVE_UP_S, "a worker runs")
        worker = self._random.choice(running)
        if worker not in self._clients:
            for gone in [one for one in self._clients if one not in running]:
                self._clients.pop(gone).close()
            try:
                url = worker.url
            except AssertionError as died:
                raise Unavailable(str(died)) from died
            self._clients[worker] = Client(url, timeout_s=ANSWER_S, retry_for_s=0.01)
        return self._clients[worker]


class Faults:
    """Kills workers and the broker, now one and now another, every few seconds, and starts them again.

    In the thread that waits for the end: workers end with the thread that started them.
    """

    def __init__(self, cluster: Cluster, broker: RealBroker, seed: int) -> None:
        self._cluster, self._broker, self._random = cluster, broker, random.Random(seed)
        self._names = list(cluster.workers)
        self.done: list[str] = []

    def go_on(self, over: Callable[[], bool]) -> None:
        """One after the other until it is `over`. All workers run then."""
        while not over():
            self._start_who_ended()
            until = time.monotonic() + self._random.uniform(5.0, 9.0)
            while time.monotonic() < until and not over():
                time.sleep(0.1)
            self._hurt(self._random.choice([*self._names, *self._names, "broker"]))
        self._start_who_ended()

    def _start_who_ended(self) -> None:
        """As a supervisor would: a worker ends with an error where Kafka does not answer while it starts."""
        for name in self._names:
            if not self._cluster.workers[name].running:
                self._cluster.start(name)

    def _hurt(self, victim: str) -> None:
        if victim == "broker":
            self._broker.kill()
            self._broker.start()
        else:
            self._cluster.workers[victim].kill()
            self._cluster.start(victim)
        self.done.append(victim)
