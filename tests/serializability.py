"""Is a history of transactions serializable, in an order that agrees with real time? If not: who contradicts whom.

After Elle (Kingsbury and Alvaro, VLDB 2020). Every value is appended once, so a list that was read tells whose appends
were there, and in which order. From these follows which transaction comes before which; where that goes round in a
circle there is no order. What is found is wrong for certain. What no read could show is not found, so a workload has
to read what it appends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import inf
from typing import Literal

from tests.cycles import Graph

Key = Hashable
Value = Hashable
Values = tuple[Value, ...]
Outcome = Literal["committed", "refused", "unknown"]
Written = tuple[int, Value]
"""Who appended, by place in the history, and what."""


@dataclass(frozen=True, slots=True)
class Append:
    """`value` was put at the end of the list `key`. Nobody else may append the same value there."""

    key: Key
    value: Value


@dataclass(frozen=True, slots=True)
class Read:
    """The list `key` was `values`."""

    key: Key
    values: Values


@dataclass(frozen=True, slots=True)
class Observed:
    """A transaction as its client saw it. Without times it says nothing of real time."""

    id: str
    operations: tuple[Append | Read, ...]
    outcome: Outcome = "committed"
    """An unknown one counts, reads and all, once an append of it is seen. The reads of a refused one don't count."""
    started: float = -inf
    ended: float = inf
    """When its outcome was known, on the clock of `started`. An unknown one has no end, whatever is said here."""
    versions: Mapping[str, int] = field(default_factory=dict)
    """The version that it made of each group."""
    moment: int | None = None
    """On the store's clock: when it was committed; of one that only reads, the time that it read at, if it did."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What a correct store does not do.

    - Cycles, by the least that they need: G0 (ww), G1c (ww, wr), G-single (one rw), G2 (several rw). With `-realtime`
      behind it, it takes real time to close the cycle.
    - lost-update: several read the same list and appended to it. It needs no real time.
    - G1a: an append that was refused is read. G1b: one is read without a later one of the same transaction.
    - internal: a transaction does not see its own appends, sees them too early, or reads a list in two ways.
    - incompatible-order, duplicate, garbage: reads of a list of which neither begins with the other; a value that is
      there twice; one that nobody appended.
    - lost-append, resurrected: at the end a committed append is not there, or a refused one is.
    - version-reused: two made the same version of a group. wrong-moment: a read at a time does not hold just what was
      committed at or before it, or committed_at falls along a list.
    """

    kind: str
    transactions: tuple[str, ...]
    explanation: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.explanation}"


def check(history: Sequence[Observed], final: Mapping[Key, Sequence[Value]] | None = None) -> list[Anomaly]:
    """All that contradicts a serial order; of cycles a short one for each knot of transactions and each kind.

    `final` is what each list was after everything had ended. Without it an append that is lost can't be told from one
    that nobody has read yet. Raises ValueError where an id, or a value of a list, is used twice.
    """
    return _Check(history, {key: tuple(values) for key, values in (final or {}).items()}).anomalies()


UNSEEN_MAX = 8
"""To how many appends that nobody saw a read of the whole list is held: those that ended first."""

WW, WR, REAL_TIME, RW = 1, 2, 4, 8
_NAMES = {WW: "ww", WR: "wr", REAL_TIME: "real time", RW: "rw"}
_SEARCHES = (
    (WW, WW),
    (WR, WW | WR),
    (RW, WW | WR),
    (RW, WW | WR | RW),
    (WW, WW | REAL_TIME),
    (WR, WW | WR | REAL_TIME),
    (RW, WW | WR | REAL_TIME),
    (RW, WW | WR | REAL_TIME | RW),
)
"""A cycle's first edge and the others: the gravest kinds first."""


@dataclass(slots=True)
class _List:
    """What the history tells of one list."""

    appends: list[Written] = field(default_factory=list)
    """By anyone, refused ones too."""
    reads: list[tuple[int, Values]] = field(default_factory=list)
    """By those that took effect, without what the reader had appended itself."""
    longest: Values = ()
    odd: list[Values] = field(default_factory=list)
    """Reads that were seen not to fit to the longest one."""
    chain: list[Written] = field(default_factory=list)
    """The appends in the longest read, in order: those of transactions that took effect."""
    counted: list[int] = field(default_factory=lambda: [0])
    """By the length of a read, how much of the chain it holds."""
    unseen: list[Written] = field(default_factory=list)
    """Appends that took effect and are not in the longest read: they came after all that is."""

    def note(self, values: Values) -> None:
        shorter, longer = sorted((values, self.longest), key=len)
        if longer[: len(shorter)] != shorter:
            self.odd.append(shorter)
        self.longest = longer

    def shows(self, value: Value) -> bool:
        return any(value in values for values in (self.longest, *self.odd))


class _Check:
    def __init__(self, history: Sequence[Observed], final: Mapping[Key, Values]) -> None:
        self._history = history
        self._final = final
        self._anomalies: list[Anomaly] = []
        self._lists: dict[Key, _List] = defaultdict(_List)
        self._writers: dict[tuple[Key, Value], int] = {}
        self._live: set[int] = set()
        self._graph = Graph(len(history), transitive=REAL_TIME)
        self._reasons: dict[tuple[int, int, int], tuple[object, ...]] = {}
        self._told: dict[int, list[tuple[frozenset[int], int]]] = defaultdict(list)
        """By transaction, the anomalies it is in: their transactions, and how many make a cycle the same story."""

    def anomalies(self) -> list[Anomaly]:
        self._index()
        self._find_live()
        for key, list_ in self._lists.items():
            self._find_order(key, list_)
            self._check_longest(key, list_)
            self._check_reads(key, list_)
            self._check_updates(key, list_)
            self._check_moments(key, list_)
            self._check_end(key, list_)
            self._link(key, list_)
        self._link_versions()
        self._link_real_time()
        self._find_cycles()
        return self._anomalies

    def _report(self, kind: str, transactions: Iterable[int], explanation: str) -> None:
        self._anomalies.append(Anomaly(kind, tuple(map(self._id, transactions)), explanation))

    def _id(self, index: int) -> str:
        return self._history[index].id

    def _names(self, indexes: Iterable[int]) -> str:
        return " and ".join(map(self._id, indexes))

    # Which transactions there are

    def _index(self) -> None:
        if len({one.id for one in self._history}) < len(self._history):
            raise ValueError("two transactions of the history have the same id")
        for index, one in enumerate(self._history):
            if one.ended < one.started:
                raise ValueError(f"{one.id} ended at {one.ended}, before it started at {one.started}")
            for operation in one.operations:
                if isinstance(operation, Append):
                    key, value = operation.key, operation.value
                    if (key, value) in self._writers:
                        raise ValueError(f"{value!r} is appended to {key!r} twice; make each value unique")
                    self._writers[key, value] = index
                    self._lists[key].appends.append((index, value))
        for key, values in self._final.items():
            self._lists[key].note(values)

    def _find_live(self) -> None:
        """Those that took effect: the committed ones, and the unknown ones whose appends these, or the end, show."""
        unknown = {index for index, one in enumerate(self._history) if one.outcome == "unknown"}
        fresh = [index for index, one in enumerate(self._history) if one.outcome == "committed"]
        while fresh:
            self._live.update(fresh)
            for index in fresh:
                for key, values in self._reads_of_others(index):
                    self._lists[key].reads.append((index, values))
                    self._lists[key].note(values)
            unknown -= self._live
            fresh = [index for index in sorted(unknown) if self._is_seen(index)]

    def _is_seen(self, index: int) -> bool:
        appends = (each for each in self._history[index].operations if isinstance(each, Append))
        return any(self._lists[each.key].shows(each.value) for each in appends)

    def _reads_of_others(self, index: int) -> Iterator[tuple[Key, Values]]:
        """What it read, without what it had appended itself until then."""
        before: dict[Key, Values] = {}
        own: dict[Key, Values] = {}
        for operation in self._history[index].operations:
            key = operation.key
            if isinstance(operation, Append):
                own[key] = (*own.get(key, ()), operation.value)
                continue
            values, mine = operation.values, own.get(key, ())
            others = values[: max(0, len(values) - len(mine))]
            if values[len(others) :] == mine and before.setdefault(key, others) == others:
                yield key, others
            else:
                wanted = (*before[key], *mine) if key in before else ("…", *mine)
                self._report(
                    "internal",
                    [index],
                    f"{self._id(index)} read {_list(key, values)}; by what it had read and appended before, it must "
                    f"read {_list(key, wanted)}",
                )

    # What each list tells by itself

    def _find_order(self, key: Key, list_: _List) -> None:
        placed: dict[Value, int] = {}
        for place, value in enumerate(list_.longest):
            writer = self._writers.get((key, value))
            if writer is not None and writer in self._live and value not in placed:
                list_.chain.append((writer, value))
            placed.setdefault(value, place)
            list_.counted.append(len(list_.chain))
        list_.unseen = [written for written in list_.appends if written[0] in self._live and written[1] not in placed]
        for (writer, value), (again, following) in pairwise(list_.appends):
            if writer == again and placed.get(value, -1) > placed.get(following, inf):
                self._report("internal", [writer], f"{self._id(writer)} appended {value!r} to {key} and then "
                             f"{following!r}, which stands before it")  # fmt: skip

    def _check_longest(self, key: Key, list_: _List) -> None:
        """Values that can't be there: in the longest read, and so in others, and in those that don't fit to it."""
        found: set[tuple[str, Value]] = set()
        for values in (list_.longest, *list_.odd):
            for kind, value, length in self._wrong_values(key, values):
                if (kind, value) in found:
                    continue
                found.add((kind, value))
                reader = next((reader for reader, read in list_.reads if read[:length] == values[:length]), None)
                if reader is not None:
                    self._report_value(kind, key, value, reader)

    def _wrong_values(self, key: Key, values: Values) -> Iterator[tuple[str, Value, int]]:
        """What is wrong, with which value, and how much of the list shows it."""
        seen: set[Value] = set()
        for length, value in enumerate(values, 1):
            writer = self._writers.get((key, value))
            if writer is None:
                yield "garbage", value, length
            elif value in seen:
                yield "duplicate", value, length
            elif self._history[writer].outcome == "refused":
                yield "G1a", value, length
            seen.add(value)

    def _report_value(self, kind: str, key: Key, value: Value, reader: int) -> None:
        read = f"{self._id(reader)} read {value!r} in {key}"
        if kind == "garbage":
            self._report(kind, [reader], f"{read}, which nobody appended")
            return
        writer = self._writers[key, value]
        if kind == "duplicate":
            self._report(kind, [writer, reader], f"{read} twice, which {self._id(writer)} appended once")
        else:
            self._report(kind, [writer, reader], f"{read}, which {self._id(writer)} appended; that was refused")

    def _check_reads(self, key: Key, list_: _List) -> None:
        odd: dict[Values, list[int]] = defaultdict(list)
        for reader, values in list_.reads:
            if list_.longest[: len(values)] != values:
                odd[values].append(reader)
        for values, readers in odd.items():
            self._report("incompatible-order", readers, f"{self._names(readers)} read {_list(key, values)}, "
                         f"and another read was {_list(key, list_.longest)}")  # fmt: skip
        if odd:
            list_.reads = [(reader, values) for reader, values in list_.reads if values not in odd]
        last = dict(list_.appends)
        own = {writer: place for place, (writer, _) in reversed([*enumerate(list_.chain, 1)])}
        for reader, values in list_.reads:
            count = list_.counted[len(values)]
            if own.get(reader, inf) <= count:
                self._report("internal", [reader], f"{self._id(reader)} read {_list(key, values)} with what it "
                             f"appended only later")  # fmt: skip
            elif count and last[list_.chain[count - 1][0]] != list_.chain[count - 1][1]:
                writer = list_.chain[count - 1][0]
                self._tell("G1b", [writer, reader], 2, f"{self._id(reader)} read {_list(key, values)}, without the "
                           f"{last[writer]!r} that {self._id(writer)} appended as well")  # fmt: skip

    def _check_updates(self, key: Key, list_: _List) -> None:
        appended = {writer for writer, _ in list_.appends}
        updates: dict[int, dict[int, None]] = defaultdict(dict)
        for reader, values in list_.reads:
            if reader in appended:
                updates[len(values)][reader] = None
        for length, readers in updates.items():
            if len(readers) > 1:
                self._tell("lost-update", readers, 2, f"{self._names(readers)} each read "
                           f"{_list(key, list_.longest[:length])} and appended to it")  # fmt: skip

    def _check_moments(self, key: Key, list_: _List) -> None:
        """What was committed by a moment, and nothing else, is in a read at that moment."""
        chain = [(self._history[writer].moment, writer) for writer, _ in list_.chain]
        unseen = [self._history[writer].moment for writer, _ in list_.unseen]
        latest = [-inf, *accumulate((-inf if at is None else at for at, _ in chain), max)]
        last = min((at for at in unseen if at is not None), default=inf)
        times_back = (inf if at is None else at for at, _ in reversed(chain))
        earliest = [*accumulate(times_back, min, initial=last)][::-1]
        for before, (at, writer), (_, value) in zip(latest, chain, list_.chain, strict=False):
            if at is not None and at < before:
                self._report("wrong-moment", [writer], f"{self._id(writer)} was committed at {at} and its {value!r} "
                             f"stands in {key} behind what was committed at {before}")  # fmt: skip
        for reader, values in list_.reads:
            at, count = self._history[reader].moment, list_.counted[len(values)]
            if at is None or any(isinstance(each, Append) for each in self._history[reader].operations):
                continue
            if latest[count] > at:
                self._report("wrong-moment", [reader], f"{self._id(reader)} read {_list(key, values)} as of {at}, "
                             f"with what was committed at {latest[count]}")  # fmt: skip
            if earliest[count] <= at:
                self._report("wrong-moment", [reader], f"{self._id(reader)} read {_list(key, values)} as of {at}, "
                             f"without what was committed at {earliest[count]}")  # fmt: skip

    def _check_end(self, key: Key, list_: _List) -> None:
        if key not in self._final:
            return
        final = self._final[key]
        if list_.longest[: len(final)] != final:
            self._report("incompatible-order", [], f"at the end there was {_list(key, final)}, and another read was "
                         f"{_list(key, list_.longest)}")  # fmt: skip
        there = set(final)
        if len(there) < len(final):
            self._report("duplicate", [], f"at the end a value was there twice: {_list(key, final)}")
        for value in final:
            if (key, value) not in self._writers:
                self._report("garbage", [], f"at the end there was {value!r} in {key}, which nobody appended")
        for writer, value in list_.appends:
            one = self._history[writer]
            if one.outcome == "refused" and value in there:
                self._report(
                    "resurrected", [writer], f"{one.id} was refused, and at the end its {value!r} was in {key}"
                )
            elif writer in self._live and value not in there:
                known = "was committed" if one.outcome == "committed" else "took effect, as another append of it shows"
                self._report(
                    "lost-append", [writer], f"{one.id} {known}, and at the end its {value!r} was not in {key}"
                )

    def _tell(self, kind: str, transactions: Collection[int], same: int, explanation: str) -> None:
        """Report it, and no cycle any more in which `same` of its transactions are."""
        told = frozenset(transactions), same
        for index in told[0]:
            self._told[index].append(told)
        self._report(kind, transactions, explanation)

    # What comes before what

    def _edge(self, before: int, after: int, kind: int, *reason: object) -> None:
        self._graph.link(before, after, kind)
        self._reasons.setdefault((before, after, kind), reason)

    def _link(self, key: Key, list_: _List) -> None:
        chain, unseen = list_.chain, sorted(list_.unseen, key=lambda written: self._history[written[0]].ended)
        for (before, value), (after, following) in pairwise(chain):
            self._edge(before, after, WW, key, value, following)
        for after, following in unseen if chain else ():
            self._edge(chain[-1][0], after, WW, key, chain[-1][1], following)
        for reader, values in list_.reads:
            count = list_.counted[len(values)]
            if count:
                writer, value = chain[count - 1]
                self._edge(writer, reader, WR, key, value)
            for writer, value in chain[count : count + 1] or unseen[:UNSEEN_MAX]:
                self._edge(reader, writer, RW, key, value)

    def _link_versions(self) -> None:
        """A group's versions are the order of its commits, as the order of a list is that of its appends."""
        groups: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for index in sorted(self._live):
            for group, version in self._history[index].versions.items():
                groups[group].append((version, index))
        for group, made in groups.items():
            for (version, before), (following, after) in pairwise(sorted(made)):
                if version == following:
                    self._report("version-reused", [before, after], f"{self._id(before)} and {self._id(after)} both "
                                 f"made version {version} of {group}")  # fmt: skip
                else:
                    self._edge(before, after, WW, group, version, following, "version")

    def _link_real_time(self) -> None:
        """What had ended comes before what started later: of these edges, those that don't follow from others.

        A transaction that ended is in front until one ends that started after it, and leads on from there. So there
        are no more edges than transactions times how many of them overlap.
        """
        moments = []
        for index in self._live:
            one = self._history[index]
            moments.append((one.started, 0, index))
            if one.outcome == "committed" and one.ended < inf:
                moments.append((one.ended, 1, index))
        front: dict[int, None] = {}
        behind: dict[int, list[int]] = {}
        for _, ends, index in sorted(moments):
            if not ends:
                behind[index] = list(front)
                for before in front:
                    self._graph.link(before, index, REAL_TIME)
            else:
                for before in behind.pop(index):
                    front.pop(before, None)
                front[index] = None

    # Where it goes round in a circle

    def _find_cycles(self) -> None:
        every = WW | WR | REAL_TIME | RW
        tangled = {index for knot in self._graph.knots(every, self._live) for index in knot}
        for first, rest in _SEARCHES:
            for knot in self._graph.knots(first | rest, tangled):
                cycle = self._graph.cycle(knot, first, rest, self._is_told)
                if cycle is not None:
                    self._tell_cycle(cycle, first, rest)

    def _is_told(self, cycle: Sequence[int]) -> bool:
        return any(len(told.intersection(cycle)) >= same for index in cycle for told, same in self._told.get(index, ()))

    def _tell_cycle(self, cycle: list[int], first: int, rest: int) -> None:
        kinds, lines = [], []
        for at, (before, after) in enumerate(pairwise([*cycle, cycle[0]])):
            has = self._graph.kinds(before, after) & (rest if at else first) or REAL_TIME
            kind = next(kind for kind in _NAMES if has & kind)
            kinds.append(kind)
            lines.append(f"  {self._id(before)} before {self._id(after)} ({_NAMES[kind]}): "
                         f"{self._reason(before, after, kind)}")  # fmt: skip
        names = " → ".join(map(self._id, [*cycle, cycle[0]]))
        self._tell(_cycle_kind(kinds), cycle, len(cycle), "\n".join([f"{names}, each before the next", *lines]))

    def _reason(self, before: int, after: int, kind: int) -> str:
        former, latter = self._history[before], self._history[after]
        if kind == REAL_TIME:
            return f"{former.id} had ended at {former.ended}, {latter.id} started at {latter.started}"
        key, value, *following = self._reasons[before, after, kind]
        if kind == WR:
            return f"{latter.id} read {key} with the {value!r} that {former.id} appended"
        if kind == RW:
            return f"{former.id} read {key} without the {value!r} that {latter.id} appended"
        if len(following) > 1:
            return f"{former.id} made version {value} of {key}, {latter.id} version {following[0]}"
        return f"{former.id} appended {value!r} to {key}, {latter.id} {following[0]!r} behind it"


def _cycle_kind(kinds: Sequence[int]) -> str:
    against = kinds.count(RW)
    plain = "G2" if against > 1 else "G-single" if against else "G1c" if WR in kinds else "G0"
    return plain + ("-realtime" if REAL_TIME in kinds else "")


def _list(key: Key, values: Values) -> str:
    shown = [repr(value) if value != "…" else "…" for value in values]
    return f"{key} as [{', '.join(shown if len(shown) <= 8 else ['…', *shown[-7:]])}]"
