"""Workers that come, go, freeze and die at random, and a broker that dies, under traffic that never stops."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable

import pytest

from tests.cluster import Cluster, WorkerProcess
from tests.conftest import RealBroker
from tests.traffic import Traffic, check_all
from versolog.schemas.errors import Unavailable, Undecided
from versolog.streams.sent import Sent

SOON_S = 90.0
WAVE_EVERY_S = 0.2
WAVES_AHEAD_MAX = 30
"""Sent and not decided: the slowest machine comes through so many in time."""
NAMES = ("w1", "w2", "w3")


class Chaos:
    """Does something to a cluster, again and again."""

    def __init__(self, cluster: Cluster, broker: RealBroker, seed: int) -> None:
        self._cluster, self._broker = cluster, broker
        self._random = random.Random(seed)
        self.done: list[str] = []

    def do(self) -> None:
        running = self._cluster.running()
        absent = [name for name in NAMES if name not in {worker.name for worker in running}]
        choices: list[Callable[[], str]] = [self._kill_broker]
        if absent:
            choices += [lambda: self._start(self._random.choice(absent))] * 4
        if len(running) > 1:
            choices += [lambda: self._hurt(self._random.choice(running))] * 4
        self.done.append(self._random.choice(choices)())

    def end(self) -> None:
        """Have all workers run."""
        for name in NAMES:
            if name not in {worker.name for worker in self._cluster.running()}:
                self._cluster.start(name)

    def _start(self, name: str) -> str:
        self._cluster.start(name)
        return f"start {name}"

    def _hurt(self, worker: WorkerProcess) -> str:
        match self._random.randrange(3):
            case 0:
                worker.kill()
                return f"kill {worker.name}"
            case 1:
                # 70: it could not leave in order in time and ended itself, as when Kafka is away. -15: it hadn't begun.
                assert worker.stop(20) in (0, 70, -signal.SIGTERM), worker.last_words()
                return f"stop {worker.name}"
            case _:
                worker.freeze()
                time.sleep(self._random.uniform(0.5, 6.0))  # sometimes longer than its session
                worker.thaw()
                return f"freeze {worker.name}"

    def _kill_broker(self) -> str:
        self._broker.kill()
        self._broker.start()
        return "kill broker"


def send_until(over: threading.Event, traffic: Traffic) -> list[Sent]:
    """Wave after wave, each while those before it may still be undecided."""
    sents: list[Sent] = []
    ahead: deque[list[Sent]] = deque()
    while not over.wait(WAVE_EVERY_S):
        while ahead and are_decided(ahead[0]):
            ahead.popleft()
        if len(ahead) < WAVES_AHEAD_MAX:
            ahead.append(traffic.send_wave())
            sents += ahead[-1]
    return sents


def are_decided(wave: list[Sent]) -> bool:
    try:
        for sent in wave:
            sent.outcome(WAVE_EVERY_S)
    except (Undecided, Unavailable):
        return False
    return True


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seed", "for_s"), [(1, 10), *(pytest.param(seed, 120, marks=pytest.mark.slow) for seed in range(2, 6))]
)
def test_whatever_happens_the_log_adds_up_and_all_stores_agree(
    new_cluster: Callable[..., Cluster], own_broker: RealBroker, seed: int, for_s: float
) -> None:
    cluster = new_cluster(own_broker, partitions=4)
    chaos, over = Chaos(cluster, own_broker, seed), threading.Event()
    cluster.start("w1")
    cluster.owned()
    with cluster.producer() as producer:
        traffic = Traffic(producer, seed=seed)
        sents: list[Sent] = []
        sending = threading.Thread(target=lambda: sents.extend(send_until(over, traffic)))
        sending.start()
        deadline = time.monotonic() + for_s
        try:
            while time.monotonic() < deadline:
                chaos.do()
        finally:
            over.set()
            sending.join()
        chaos.end()
        try:
            traffic.acknowledge(producer.outcomes(sents, SOON_S))
        except (Undecided, Unavailable) as late:
            states = {worker.name: worker.partitions() for worker in cluster.running()}
            raise AssertionError(f"{late}; after {chaos.done}: {states}") from late
        traffic.finish()

    cluster.owned()
    try:
        cluster.level(SOON_S)
    except AssertionError as late:
        raise AssertionError(f"{late}; after {chaos.done}") from None
    cluster.stop()
    check_all(cluster, traffic, "w1")
    assert len({cluster.digest(name) for name in NAMES}) == 1
