"""What must be true of the logs in the end, said without the code that is judged: one order of all transactions, and a
plain dict that carries them out in it, one after the other."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

from tests.nothing import NOTHING
from tests.simulator.intents import ACCOUNTS, PLACES, Intent
from tests.simulator.world import Decided, World, asked_of, recording
from versolog.schemas import codec
from versolog.schemas.codec import Record
from versolog.schemas.topics import partition_of
from versolog.schemas.written import commit_body
from versolog.streams.chain import commit_hash
from versolog.streams.decide import COMMIT, OUTCOME, Decision
from versolog.streams.overlay import Overlay
from versolog.streams.shares import Vote
from versolog.streams.state import Level

Key = tuple[int, int]
"""A transaction: its partition and offset, or SPANNING and G."""

SPANNING = -1
NO_HASH = bytes(32)


@dataclass
class Case:
    """One transaction, and where it was decided."""

    intent: Intent
    offsets: dict[int, int] = field(default_factory=dict)
    """By partition, where it or its share stands in the log."""
    ends: dict[int, Decided] = field(default_factory=dict)
    """By partition, what was decided."""


def judge(world: World) -> None:
    """Raises AssertionError for whatever is wrong."""
    cases = _cases(world)
    for partition in range(world.partitions):
        _check_chains(world, partition)
        _check_decided_again(world, partition)
    order = _serial_order(world, cases)
    model = Model(world)
    for key in order:
        model.execute(key, cases[key])
    _check_rows(world, model)
    _check_totals(world)


def _cases(world: World) -> dict[Key, Case]:
    """All transactions, each decided exactly once by each of its partitions."""
    cases: dict[Key, Case] = {}
    due: list[list[int]] = [[] for _ in range(world.partitions)]
    for place, intent in enumerate(world.sequence):
        cases[SPANNING, place] = Case(intent)
        for partition in _participants(intent, world.partitions):
            due[partition].append(place)
    for partition, log in enumerate(world.transactions):
        wanted = iter(due[partition])
        number: int | None = next(wanted, None)
        by_offset: dict[int, Case] = {}
        for offset, entry in enumerate(log):
            if entry.intent is not None:
                case = cases[partition, offset] = Case(entry.intent)
            elif entry.share is not None and entry.share["sequence_offset"] == number:
                case = cases[SPANNING, entry.share["sequence_offset"]]
                number = next(wanted, None)
            else:
                continue
            by_offset[offset] = case
            case.offsets[partition] = offset
        assert number is None, f"partition {partition} never got its share of G {number}"
        for batch in world.durable[partition]:
            for decided in batch.decided:
                assert decided.offset in by_offset, (
                    f"partition {partition} decided @{decided.offset}, which asks nothing"
                )
                case = by_offset[decided.offset]
                assert partition not in case.ends, f"partition {partition} decided @{decided.offset} twice"
                case.ends[partition] = decided
        for offset, case in by_offset.items():
            assert partition in case.ends, f"partition {partition} never decided @{offset}"
    return cases


def _participants(intent: Intent, partitions: int) -> list[int]:
    if intent.record is None or not intent.record["parts"]:
        return [0]
    return sorted({partition_of(part["group"], partitions) for part in intent.record["parts"]})


def _check_chains(world: World, partition: int) -> None:
    """Versions without gaps, hashes that follow, offsets and times that never fall."""
    newest: dict[str, tuple[Record, bytes]] = {}
    for batch in world.durable[partition]:
        for _, decision in batch.decided:
            for sealed in decision.commits:
                whole, pieces, hash_ = sealed.whole, sealed.pieces, sealed.hash
                group = whole["group"]
                assert partition_of(group, world.partitions) == partition, f"{group} is not of partition {partition}"
                body = commit_body(whole)
                assert len(pieces) == 1
                assert (pieces[0].body, hash_) == (body, commit_hash(COMMIT.fingerprint, body))
                before, hash_before = newest.get(group, ({"version": 0}, NO_HASH))
                where = f"{group}~{whole['version']} of partition {partition}"
                assert whole["version"] == before["version"] + 1, f"{where} follows on {before['version']}"
                assert whole["previous_hash"] == hash_before, f"{where} does not name the hash before it"
                for name in ("transaction_offset", "committed_at") if before["version"] else ():
                    assert whole[name] >= before[name], f"{name} falls at {where}: {before[name]} to {whole[name]}"
                newest[group] = whole, hash_


def _check_decided_again(world: World, partition: int) -> None:
    """Whoever reads the whole log again, with all that was voted, comes to the same outcomes and hashes."""
    participant = recording(world.protocol.participant)(Overlay(NOTHING), partition, world.partitions, None)
    found: dict[int, Decision] = {}

    def take_turn() -> None:
        turn = participant.turn()
        found.update(zip(participant.offsets, turn.decisions, strict=True))
        participant.offsets.clear()
        for ballot in turn.ballots:
            participant.cast(ballot.vote.sequence_offset)
        if turn.ballots:
            take_turn()

    for offset, votes in enumerate(world.votes[partition]):
        for vote in votes["votes"]:
            participant.hear(Vote.of(votes["partition"], vote), offset)
    for offset, entry in enumerate(world.transactions[partition]):
        clock = participant.place(offset, entry.timestamp)
        assert clock is not None
        if (asked := asked_of(entry, offset, clock)) is not None:
            participant.take(asked)
            take_turn()
    made = {decided.offset: decided.decision for batch in world.durable[partition] for decided in batch.decided}
    assert set(found) == set(made), f"decided again, partition {partition} leaves out {sorted(set(made) - set(found))}"
    for offset, decision in made.items():
        again = found[offset]
        assert again.outcome == decision.outcome, f"decided again, @{offset} of partition {partition} ends differently"
        hashes = [[sealed.hash for sealed in one.commits] for one in (decision, again)]
        assert hashes[0] == hashes[1], f"decided again, @{offset} of partition {partition} has other hashes"


def _serial_order(world: World, cases: dict[Key, Case]) -> list[Key]:
    """One order of all that keeps the order of sequence, and the order of each log where a group or an id is shared."""
    key_at = {(partition, offset): key for key, case in cases.items() for partition, offset in case.offsets.items()}
    after: dict[Key, set[Key]] = defaultdict(set)
    for number in range(len(world.sequence) - 1):
        after[SPANNING, number].add((SPANNING, number + 1))
    for partition, batches in enumerate(world.durable):
        last: dict[Any, Key] = {}
        for batch in batches:
            for decided in batch.decided:
                key = key_at[partition, decided.offset]
                for name in _names(cases[key].intent, partition, world.partitions):
                    if name in last:
                        after[last[name]].add(key)
                        before_it = cases[last[name]].offsets[partition]
                        assert before_it < decided.offset, f"@{before_it} of partition {partition} was overtaken"
                    last[name] = key
    before = Counter(key for keys in after.values() for key in keys)
    free = [key for key in cases if not before[key]]
    heapify(free)
    order: list[Key] = []
    while free:
        order.append(key := heappop(free))
        for follower in after[key]:
            before[follower] -= 1
            if not before[follower]:
                heappush(free, follower)
    assert len(order) == len(cases), f"no serial order: a cycle among {sorted(set(cases) - set(order))}"
    return order


def _names(intent: Intent, partition: int, partitions: int) -> set[tuple[str, str]]:
    if intent.record is None:
        return set()
    groups = {part["group"] for part in intent.record["parts"]}
    own = {("group", group) for group in groups if partition_of(group, partitions) == partition}
    return own | {("id", intent.record["id"])}


class Verdict(NamedTuple):
    """What a partition would make of its parts by itself."""

    code: str
    clock: int
    again: bool = False
    """The id was decided before: the first outcome stands."""
    known: bytes | None = None
    """That outcome, where the content is the same."""


class Model:
    """The rows as a dict, and one transaction after the other."""

    def __init__(self, world: World) -> None:
        self.partitions = world.partitions
        self.seen = world.seen
        self.rows: dict[tuple[str, str, str], tuple[int, dict[str, Any]]] = {}
        """By group, table and key: the version that last changed it, and the row."""
        self.heads: dict[str, int] = Counter()
        self.written_at: dict[str, int] = Counter()
        self.touched_at: dict[str, int] = Counter()
        """By group, the greatest committed_at that changed it, and that changed or read it."""
        self.first: dict[tuple[int, str], tuple[bytes, bytes]] = {}
        """By partition and id, the content and the outcome that were first."""
        self.clocks = [_running_max(entry.timestamp for entry in log) for log in world.transactions]

    def execute(self, key: Key, case: Case) -> None:
        """Carry it out, and compare with what was decided, by each of its partitions."""
        spans = key[0] == SPANNING
        parts = self._parts(case, spans)
        changed: dict[tuple[str, str, str], dict[str, Any] | None] = {}
        verdicts = {
            partition: self._verdict(case.intent, partition, parts[partition], self.clocks[partition][offset], changed)
            for partition, offset in sorted(case.offsets.items())
        }
        decided_at = max(verdict.clock for verdict in verdicts.values())
        codes = [verdict.code for verdict in verdicts.values() if verdict.code]
        code = "id-reused" if "id-reused" in codes else next(iter(codes), "")
        fresh = [partition for partition, verdict in verdicts.items() if verdict.known is None]
        assert code or len(fresh) in (0, len(verdicts)), f"{key} was committed before, and not by {fresh}"
        versions: dict[str, int] = {}
        if fresh and not code:
            versions = self._commit(parts, changed, decided_at)
        for partition, verdict in verdicts.items():
            found = case.ends[partition].decision
            where = f"{'G ' if spans else ''}{key[1]} in partition {partition}"
            if verdict.known is not None:
                assert found.outcome == verdict.known, f"{where} did not get its first outcome"
                assert not found.commits, f"{where} was committed again"
                continue
            self._compare(where, case, found, code, decided_at, versions)
            if case.intent.record is not None and case.intent.record["id"] and code != "id-reused":
                assert (partition, case.intent.record["id"]) not in self.first, f"{where} replaced the first outcome"
                self.first[partition, case.intent.record["id"]] = (case.intent.hash, found.outcome)
        self._count(spans, code, verdicts, versions)

    def _parts(self, case: Case, spans: bool) -> dict[int, list[Record]]:
        parts: list[Record] = [] if case.intent.record is None else case.intent.record["parts"]
        if not spans:
            return dict.fromkeys(case.offsets, parts)
        return {
            partition: [part for part in parts if partition_of(part["group"], self.partitions) == partition]
            for partition in case.offsets
        }

    def _verdict(
        self, intent: Intent, partition: int, parts: list[Record], clock: int,
        changed: dict[tuple[str, str, str], dict[str, Any] | None],
    ) -> Verdict:  # fmt: skip
        if intent.record is None:
            return Verdict("malformed", clock)
        if not intent.record["id"]:
            return Verdict("invalid", clock)
        first = self.first.get((partition, intent.record["id"]))
        if first is not None and first[0] == intent.hash:
            return Verdict(codec.decode(OUTCOME, first[1])["code"], clock, again=True, known=first[1])
        if first is not None:
            return Verdict("id-reused", clock, again=True)
        code = self._fault(partition, parts)
        if code:
            return Verdict(code, clock)
        for part in parts:
            code = code or self._precondition(part)
        for part in parts:
            code = code or self._change(part, changed)
        if code:
            return Verdict(code, clock)
        least = [self.touched_at[part["group"]] for part in parts]
        return Verdict("", max(clock, *least))

    def _fault(self, partition: int, parts: list[Record]) -> str:
        groups = [part["group"] for part in parts]
        if not parts or len(set(groups)) < len(groups):
            return "invalid"
        for part in parts:
            if partition_of(part["group"], self.partitions) != partition:
                return "wrong-partition"
            if any(change["table"].startswith("$") for change in part["changes"]):
                return "invalid"
            if not part["changes"] and not part["expect"] and part["expect_head"] is None:
                return "invalid"
        return ""

    def _precondition(self, part: Record) -> str:
        group = part["group"]
        if part["expect_head"] not in (None, self.heads[group]):
            return "head-mismatch"
        for row in part["expect"]:
            if self.rows.get((group, row["table"], row["key"]), (0, None))[0] != row["version"]:
                return "version-mismatch"
        return ""

    def _change(self, part: Record, changed: dict[tuple[str, str, str], dict[str, Any] | None]) -> str:
        for change in part["changes"]:
            place = (part["group"], change["table"], change["key"])
            row = changed[place] if place in changed else self.rows.get(place, (0, None))[1]
            if change["op"] == "delete":
                if row is not None:
                    changed[place] = None
                continue
            argument = json.loads(change["row"])
            if change["op"] == "add":
                if any(not isinstance((row or {}).get(name, 0), int) for name in argument):
                    return "not-a-number"
                argument = {name: (row or {}).get(name, 0) + amount for name, amount in argument.items()}
            changed[place] = argument if change["op"] == "put" else {**(row or {}), **argument}
        return ""

    def _commit(
        self, parts: dict[int, list[Record]], changed: dict[tuple[str, str, str], dict[str, Any] | None], at: int
    ) -> dict[str, int]:
        """Every group's version, 0 where it was only read."""
        versions: dict[str, int] = {}
        for part in (part for own in parts.values() for part in own):
            group = part["group"]
            if part["changes"]:
                assert at >= self.touched_at[group], (
                    f"{group} is changed at {at}, read or changed before at a later time"
                )
                self.heads[group] += 1
                self.written_at[group] = at
            assert at >= self.written_at[group], f"{group} is read at {at}, and what is read is of a later time"
            self.touched_at[group] = max(at, self.touched_at[group])
            versions[group] = self.heads[group] if part["changes"] else 0
        for (group, table, key), row in changed.items():
            if row is None:
                self.rows.pop((group, table, key), None)
            else:
                self.rows[group, table, key] = (versions[group], row)
        return versions

    def _compare(self, where: str, case: Case, found: Any, code: str, at: int, versions: dict[str, int]) -> None:
        outcome = codec.decode(OUTCOME, found.outcome)
        end = (outcome["outcome"], outcome["code"], outcome["committed_at"])
        expected = ("refused" if code else "committed", code, at)
        assert end == expected, f"{where} ended as {end}; {expected} was expected"
        assert outcome["intent_hash"] == case.intent.hash
        told = {part["group"]: part["version"] for part in outcome["parts"]}
        if code:
            assert not found.commits, f"{where} was refused and committed"
            assert not any(told.values()), f"{where} was refused and has made {told}"
            record = case.intent.record
            groups = {part["group"] for part in record["parts"]} if record is not None and record["id"] else set()
            assert told.keys() == groups, (
                f"{where} was refused, and tells of {sorted(told)}; it was to tell of {groups}"
            )
            return
        assert told == versions, f"{where} made {told}; {versions} were expected"
        made = {group: version for group, version in versions.items() if version}
        for sealed in found.commits:
            whole, group = sealed.whole, sealed.whole["group"]
            assert (whole["version"], whole["committed_at"]) == (made[group], at), where
            others = {other["group"]: other["version"] for other in whole["others"]}
            assert others == {name: version for name, version in made.items() if name != group}, where
            (named,) = (part["hash"] for part in outcome["parts"] if part["group"] == group)
            assert named == sealed.hash, where

    def _count(self, spans: bool, code: str, verdicts: dict[int, Verdict], versions: dict[str, int]) -> None:
        kind = "spanning" if spans and len(verdicts) > 1 else "single"
        again = any(verdict.known is not None for verdict in verdicts.values())
        self.seen[f"{kind} {'again' if again else code or 'committed'}"] += 1
        if versions and not all(versions.values()):
            self.seen[f"{kind} committed with a part that only reads"] += 1


def _check_rows(world: World, model: Model) -> None:
    """What stands in the stores is what the model has."""
    found: dict[tuple[str, str, str], tuple[int, dict[str, Any]]] = {}
    for owner in world.owners:
        assert owner is not None
        for group in model.heads:
            branch = owner.store.branch(group, "main")
            for table, key in PLACES if branch is not None else ():
                assert branch is not None
                row = owner.store.row(group, Level(branch.id, branch.head), table, key)
                if row is not None and row.text is not None:
                    found[group, table, key] = (row.version, json.loads(row.text))
    assert found == model.rows, f"the rows are {found}; {model.rows} were expected"


def _check_totals(world: World) -> None:
    """Transfers conserve the total, as of every time."""
    commits = [
        sealed.whole for batches in world.durable for batch in batches
        for _, decision in batch.decided for sealed in decision.commits
    ]  # fmt: skip
    balances: dict[tuple[str, str], int] = {}
    total, time = 0, 0
    for commit in sorted(commits, key=lambda commit: (commit["committed_at"], commit["group"], commit["version"])):
        if commit["committed_at"] > time:
            assert total == 0, f"the total is {total} as of {time}"
            time = commit["committed_at"]
        for change in commit["changes"]:
            if change["table"] == ACCOUNTS:
                place = (commit["group"], change["key"])
                balance = json.loads(change["row"])["balance"]
                total += balance - balances.get(place, 0)
                balances[place] = balance
    assert total == 0, f"the total is {total} in the end"


def _running_max(numbers: Any) -> list[int]:
    greatest, running = 0, []
    for number in numbers:
        greatest = max(greatest, number)
        running.append(greatest)
    return running
