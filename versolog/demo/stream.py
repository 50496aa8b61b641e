"""The flights on their way into versolog: transactions in the order of time, tags in passing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from versolog import Client, Outcome, Producer
from versolog.demo.columns import NEW_YORK
from versolog.demo.flights import FIRST_DAY, FlightEvent
from versolog.demo.stage import Count
from versolog.streams.sent import Sent

BATCH_TRANSACTIONS = 2_000
OUTCOMES_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A time in New York that gets a tag, in every group that there is by then."""

    tag: str
    time: datetime


@dataclass(slots=True)
class Streamed:
    """What was sent and committed."""

    events: Counter[str] = field(default_factory=Counter)
    """Events by carrier."""
    tags: dict[str, Counter[str]] = field(default_factory=dict)
    """The events by carrier that had happened when the tag was set."""
    commits: int = 0
    committed_at: int = 0
    """The latest of all, in milliseconds."""

    def note(self, outcome: Outcome) -> None:
        """Count a commit. Raises the refusal of one that was refused."""
        outcome.raise_for_refusal()
        self.commits += 1
        self.committed_at = max(self.committed_at, outcome.committed_at)


def moments(days: int) -> list[Moment]:
    """Half past eight on the first day, noon in the middle, and half past five on the last."""
    chosen = ((0, time(8, 30)), ((days - 1) // 2, time(12)), (days - 1, time(17, 30)))
    times = (datetime.combine(FIRST_DAY + timedelta(days=day), at, ZoneInfo(NEW_YORK)) for day, at in chosen)
    return [Moment(f"{moment:%b-%d-%H%M}".lower(), moment) for moment in times]


def stream(
    happened: Iterable[FlightEvent], tagged: Sequence[Moment], producer: Producer, client: Client, count: Count
) -> Streamed:
    """Send every event as a transaction, and tag the moments in passing. All are committed on return.

    The next ones are sent while the last ones are decided. Raises the refusal of one that is refused.
    """
    done, ahead = Streamed(), list(tagged)
    sender = _Sender(producer, done, count)
    for event in happened:
        while ahead and event.occurred_at > ahead[0].time:
            sender.settle()
            _tag(ahead.pop(0), client, done)
        sender.send(event)
    sender.settle()
    for moment in ahead:
        _tag(moment, client, done)
    return done


def _tag(moment: Moment, client: Client, done: Streamed) -> None:
    """Name what each carrier's group is at now."""
    done.tags[moment.tag] = done.events.copy()
    for carrier in done.events:
        done.note(client.tag(carrier, moment.tag))


class _Sender:
    """Sends events in batches, and asks for a batch's outcomes once the next one is on its way."""

    def __init__(self, producer: Producer, done: Streamed, count: Count) -> None:
        self._producer, self._done, self._count = producer, done, count
        self._before: list[Sent] = []
        self._sent: list[Sent] = []
        self._reached: datetime | None = None

    def send(self, event: FlightEvent) -> None:
        self._sent.append(self._producer.send(event.transaction()))
        self._done.events[event.flight.carrier] += 1
        self._reached = event.occurred_at
        if len(self._sent) == BATCH_TRANSACTIONS:
            self._wait_for(self._before)
            self._before, self._sent = self._sent, []
            self._advance(BATCH_TRANSACTIONS)

    def settle(self) -> None:
        """Return once all is committed."""
        self._wait_for(self._before)
        self._wait_for(self._sent)
        self._advance(len(self._sent))
        self._before, self._sent = [], []

    def _advance(self, by: int) -> None:
        if self._reached is not None:
            self._count.advance(by, self._reached.astimezone(ZoneInfo(NEW_YORK)))

    def _wait_for(self, sent: Sequence[Sent]) -> None:
        for outcome in self._producer.outcomes(sent, OUTCOMES_TIMEOUT_S):
            self._done.note(outcome)
