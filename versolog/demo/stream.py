"""The flights on their way into versolog: transactions in the order of time, tags at moments of it."""

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

    def note(self, outcome: Outcome) -> int:
        """Count a commit of one group, and answer its version. Raises the refusal of one that was refused."""
        outcome.raise_for_refusal()
        self.commits += 1
        self.committed_at = max(self.committed_at, outcome.committed_at)
        return outcome.version


def moments(days: int) -> list[Moment]:
    """Half past eight on the first day, noon in the middle, and half past five on the last."""
    chosen = ((0, time(8, 30)), ((days - 1) // 2, time(12)), (days - 1, time(17, 30)))
    times = (datetime.combine(FIRST_DAY + timedelta(days=day), at, ZoneInfo(NEW_YORK)) for day, at in chosen)
    return [Moment(f"{moment:%b-%d-%H%M}".lower(), moment) for moment in times]


class Stream:
    """Sends events as transactions in their order, as far as it is told to; `done` says what came of it."""

    def __init__(self, happened: Iterable[FlightEvent], producer: Producer, client: Client) -> None:
        self.done = Streamed()
        self._ahead = iter(happened)
        self._next = next(self._ahead, None)
        self._producer, self._client = producer, client

    def until(self, moment: datetime | None, count: Count) -> None:
        """Send all that happened until `moment`, or to the end; all of it is committed on return.

        The next ones are sent while the last ones are decided. Raises the refusal of one that is refused.
        """
        sender = _Sender(self._producer, self.done, count)
        while self._next is not None and (moment is None or self._next.occurred_at <= moment):
            sender.send(self._next)
            self._next = next(self._ahead, None)
        sender.settle()

    def tag(self, moment: Moment) -> None:
        """Name what each carrier's group is at now."""
        self.done.tags[moment.tag] = self.done.events.copy()
        for carrier in self.done.events:
            self.done.note(self._client.tag(carrier, moment.tag))


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
