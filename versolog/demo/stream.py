"""The flights on their way into versolog: transactions in the order of time, tags in passing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from itertools import islice
from typing import NamedTuple
from zoneinfo import ZoneInfo

from versolog.demo.columns import NEW_YORK
from versolog.demo.flights import FIRST_DAY, FlightEvent
from versolog.demo.stage import Count
from versolog.schemas.outcome import Outcome
from versolog.streams.producer import Producer
from versolog.streams.sent import Sent
from versolog.streams.transaction import Transaction

IN_FLIGHT = 2_000
"""Transactions sent before the outcomes of those before them are asked for."""
OUTCOMES_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A time in New York that gets a tag, in every group that there is by then."""

    tag: str
    time: datetime


class Line(NamedTuple):
    """A transaction of the stream: an event's, or one that sets a tag."""

    time: datetime
    tx: Transaction
    is_event: bool


@dataclass(slots=True)
class Streamed:
    """What was sent and committed."""

    events: Counter[str] = field(default_factory=Counter)
    """Events by carrier."""
    tags: dict[str, Counter[str]] = field(default_factory=dict)
    """The events by carrier that had happened when the tag was set."""
    transactions: int = 0
    newest: dict[str, Outcome] = field(default_factory=dict)
    """The last outcome of each carrier."""


def moments(days: int) -> list[Moment]:
    """Half past eight on the first day, noon in the middle, and half past five on the last."""
    chosen = ((0, time(8, 30)), ((days - 1) // 2, time(12)), (days - 1, time(17, 30)))
    times = (datetime.combine(FIRST_DAY + timedelta(days=day), at, ZoneInfo(NEW_YORK)) for day, at in chosen)
    return [Moment(f"{moment:%b-%d-%H%M}".lower(), moment) for moment in times]


def stream(producer: Producer, happened: Iterable[FlightEvent], tagged: Sequence[Moment], count: Count) -> Streamed:
    """Send every event as a transaction, and tag the moments in passing. All are committed on return.

    Sending the next ones does not wait for the outcomes of the last ones. Raises the refusal of one that is refused.
    """
    done = Streamed()
    lines = _with_tags(happened, list(tagged), done)
    before: list[Sent] = []
    while batch := list(islice(lines, IN_FLIGHT)):
        sent = producer.send_many(line.tx for line in batch)
        _settle(producer, before, done)
        before = sent
        count.advance(sum(line.is_event for line in batch), batch[-1].time.astimezone(ZoneInfo(NEW_YORK)))
    _settle(producer, before, done)
    return done


def _with_tags(happened: Iterable[FlightEvent], ahead: list[Moment], done: Streamed) -> Iterator[Line]:
    for event in happened:
        while ahead and event.occurred_at > ahead[0].time:
            yield from _tags(ahead.pop(0), done)
        done.events[event.flight.carrier] += 1
        yield Line(event.occurred_at, event.transaction(), is_event=True)
    for moment in ahead:
        yield from _tags(moment, done)


def _tags(moment: Moment, done: Streamed) -> Iterator[Line]:
    done.tags[moment.tag] = done.events.copy()
    for carrier in done.events:
        tx = Transaction(carrier, id=f"demo/tag/{moment.tag}/{carrier}", author="demo", type="MomentTagged")
        yield Line(moment.time, tx.operation("tag", name=moment.tag, at=None, move=False), is_event=False)


def _settle(producer: Producer, sent: Sequence[Sent], done: Streamed) -> None:
    for outcome in producer.outcomes(sent, OUTCOMES_TIMEOUT_S):
        done.newest[outcome.raise_for_refusal().parts[0].group] = outcome
    done.transactions += len(sent)
