"""What a worker measures, for Prometheus: HTTP answers as they go out, partitions as they stand when asked."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from versolog.streams.decide import Decision

ROLES = ("owner", "follower", "recovering", "idle", "stopped")

_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.08, 0.15, 0.3, 1.0, 5.0, 30.0)


class PartitionState(NamedTuple):
    """How one partition stands on this worker."""

    number: int
    role: str
    error: str | None
    """Why it stopped."""
    next_commit_offset: int
    lag_offsets: int | None
    """Records of `commits` and `outcomes` not folded yet; None while the ends of the log aren't known."""
    lag_s: float | None
    """For how long what is here may be behind the log; None while that isn't known."""
    undecided_offsets: int | None
    """Transactions in the log that are not known here to be decided."""
    held_up_offsets: int | None
    """Transactions that can't be decided before a service ends its own Kafka transaction."""
    waiting: int
    """Transactions that were taken in here and are not decided: they wait for votes, or for those that do."""
    waiting_s: float
    """How long the first of them has."""
    awaited: Mapping[int, int]
    """By partition, how many of them wait for its vote."""
    store_bytes: int
    """What its store takes on the disk."""


class Counted:
    """What committers decide and commit (`committer.Tally`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._decided = Counter(
            "versolog_decided_total",
            "Transactions decided by this worker, by how they ended: committed, repeated, or the code of the refusal.",
            ["partition", "outcome"],
            registry=registry,
        )
        self._commits = Counter(
            "versolog_commits_total", "Commits made by this worker.", ["partition"], registry=registry
        )
        self._commit_seconds = Histogram(
            "versolog_commit_seconds",
            "From a batch's last decision to its place in log and store.",
            ["partition"],
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._batch_transactions = Histogram(
            "versolog_batch_transactions",
            "Transactions in one batch.",
            ["partition"],
            buckets=(1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000),
            registry=registry,
        )

    def decided(self, partition: int, decisions: Sequence[Decision]) -> None:
        """Count how transactions ended."""
        ends = collections.Counter(
            "repeated" if decision.repeated else decision.code or "committed" for decision in decisions
        )
        for outcome, count in ends.items():
            self._decided.labels(partition, outcome).inc(count)
        self._commits.labels(partition).inc(sum(len(decision.commits) for decision in decisions))

    def committed(self, partition: int, transactions: int, commit_s: float) -> None:
        """Measure one batch."""
        self._commit_seconds.labels(partition).observe(commit_s)
        self._batch_transactions.labels(partition).observe(transactions)


class HttpMetrics:
    """How HTTP requests were answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "versolog_http_requests_total", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "versolog_http_request_seconds",
            "From the first byte asked to the last byte answered.",
            ["method", "route"],
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._outcomes = Counter(
            "versolog_http_transactions_total", "Transactions sent through this node, by how they ended.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self._under_way = Gauge(
            "versolog_http_transactions_under_way", "Transactions that wait for their outcome here.", registry=registry
        )
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._known_outcomes: dict[str, Counter] = {}

    def watch(self, under_way: Callable[[], int]) -> None:
        """Ask `under_way` for the number of transactions that wait."""
        self._under_way.set_function(under_way)

    def answered(self, route: str, method: str, status: int, took_s: float) -> None:
        """Count one answer."""
        found = self._known.get((route, method, status))
        if found is None:  # labels() costs more than counting, so its answers are kept
            counter, histogram = self._requests.labels(method, route, status), self._seconds.labels(method, route)
            found = self._known[route, method, status] = counter, histogram
        found[0].inc()
        found[1].observe(took_s)

    def decided(self, outcome: str) -> None:
        """Count one transaction: committed, undecided, or the code of its refusal."""
        counter = self._known_outcomes.get(outcome)
        if counter is None:
            counter = self._known_outcomes[outcome] = self._outcomes.labels(outcome)
        counter.inc()


class PartitionMetrics(Collector):
    """The partitions' roles and lags at the time of asking."""

    def __init__(self, states: Callable[[], Iterable[PartitionState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """The gauges, one sample for each partition (and role); none for what isn't known."""
        states = list(self._states())
        role = GaugeMetricFamily(
            "versolog_partition_role", "1 for what this worker is to the partition.", labels=["partition", "role"]
        )
        for state in states:
            for name in ROLES:
                role.add_metric([str(state.number), name], 1.0 if state.role == name else 0.0)
        yield role
        for name, help_text, value_of in _GAUGES:
            gauge = GaugeMetricFamily(f"versolog_partition_{name}", help_text, labels=["partition"])
            for state in states:
                if (value := value_of(state)) is not None:
                    gauge.add_metric([str(state.number)], value)
            yield gauge
        awaited = GaugeMetricFamily(
            "versolog_partition_votes_awaited", "Transactions that wait for a vote of the participant.",
            labels=["partition", "participant"],
        )  # fmt: skip
        for state in states:
            for participant, transactions in state.awaited.items():
                awaited.add_metric([str(state.number), str(participant)], transactions)
        yield awaited


_GAUGES: tuple[tuple[str, str, Callable[[PartitionState], float | None]], ...] = (
    ("lag_offsets", "Records of the log not folded here yet.", lambda state: state.lag_offsets),
    ("lag_seconds", "How old what is here may be.", lambda state: state.lag_s),
    (
        "undecided_offsets",
        "Transactions in the log not known here to be decided.",
        lambda state: state.undecided_offsets,
    ),
    (
        "held_up_offsets",
        "Transactions that wait for a service to end its own Kafka transaction.",
        lambda state: state.held_up_offsets,
    ),
    ("waiting", "Transactions taken in that wait for votes, or for others that do.", lambda state: state.waiting),
    ("waiting_seconds", "How long the first of these has waited.", lambda state: state.waiting_s),
    ("store_bytes", "What its store takes on the disk.", lambda state: state.store_bytes),
    ("next_commit_offset", "The next record of commits to fold here.", lambda state: state.next_commit_offset),
)
