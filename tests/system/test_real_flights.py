"""Real events in, and every answer about the past held against a straight computation from the CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest

from tests.cluster import Cluster
from versolog import Client
from versolog.demo.flights import FIRST_DAY, events
from versolog.demo.straight import Straight

START = FIRST_DAY


class Moment:
    """A point in the stream: how many events were in, and how it can be named in each group."""

    def __init__(self, sent: int, versions: dict[str, int], time: datetime) -> None:
        self.sent, self.versions, self.time = sent, versions, time

    def refs(self, carrier: str) -> Iterator[tuple[Any, str]]:
        yield self.versions[carrier], "version"
        yield f"after-{self.sent}", "tag"
        yield self.time, "time"


@pytest.mark.parametrize(
    ("days", "limit", "moments"),
    [
        pytest.param(2, 5_000, 5, id="5,000 events"),
        pytest.param(40, 100_000, 20, id="100,000 events", marks=[pytest.mark.slow, pytest.mark.timeout(1_800)]),
    ],
)
def test_the_past_is_what_the_csv_says(
    new_cluster: Callable[..., Cluster], broker: Any, days: int, limit: int, moments: int
) -> None:
    cluster = new_cluster(broker, partitions=8)
    worker = cluster.start("w1")
    cluster.owned()
    straight = Straight(start=START, days=days)
    stream = islice(events(start=START, days=days), limit)
    with cluster.producer() as producer, Client(worker.url, timeout_s=60) as client:
        passed = list(_streamed(stream, limit // moments, producer, client))
        assert passed[-1].sent == limit
        for moment in passed:
            expected = straight.after(moment.sent)
            assert moment.versions.keys() == expected.keys()
            for carrier, tables in expected.items():
                for at, kind in moment.refs(carrier):
                    assert _tables(client, carrier, at) == tables, (carrier, moment.sent, kind)
        _check_counts_and_histories(client, straight, passed[-1])


def _streamed(stream: Iterator[Any], each: int, producer: Any, client: Client) -> Iterator[Moment]:
    """Send `each` events at a time; between, when nothing is under way, give the moment a tag and a time."""
    sent, versions = 0, Counter[str]()
    while some := [event.transaction() for event in islice(stream, each)]:
        decided = [one.outcome(timeout_s=60) for one in [producer.send(tx) for tx in some]]
        for outcome in decided:
            outcome.raise_for_refusal()
            versions[outcome.parts[0].group] = outcome.version
        sent += len(some)
        moment = Moment(sent, dict(versions), _closed(max(outcome.committed_at for outcome in decided)))
        for carrier in versions:
            client.tag(carrier, f"after-{sent}")
        yield moment


def _closed(committed_at: int) -> datetime:
    """The moment of the last commit: everything after it has a later time, or the same and a test that must fail."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=committed_at)


def _tables(client: Client, carrier: str, at: Any) -> dict[str, dict[str, Any]]:
    return {
        table: {row.key: row.row for row in client.rows(carrier, table, at, page=1_000)}
        for table in ("flights", "carriers")
    }


def _check_counts_and_histories(client: Client, straight: Straight, last: Moment) -> None:
    expected = straight.after(last.sent)
    for carrier, tables in expected.items():
        counted = client.group(carrier, count=True)
        assert counted.tables == {table: len(rows) for table, rows in tables.items()}
        for key in islice(sorted(tables["flights"]), 0, None, max(1, len(tables["flights"]) // 5)):
            past = list(client.history(carrier, "flights", key))
            assert past[0].row == tables["flights"][key]
            assert past[-1].type == "FlightScheduled"
            before = [client.row(carrier, "flights", key, at=entry.version).row for entry in past]
            assert before == [entry.row for entry in past]
