"""Transactions of every kind, and what must have come of them in the end."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tests.cluster import Cluster, WorkerProcess
from tests.history import History, LogReader
from versolog.schemas.errors import Unavailable, Undecided
from versolog.schemas.outcome import Outcome
from versolog.streams.producer import Producer
from versolog.streams.sent import Sent
from versolog.streams.transaction import Transaction

COUNTERS = [f"{number}/counter" for number in range(6)]
LARGE, VERSIONED, MERGED = "large", "versioned", "merged"
LARGE_ROW_BYTES = 350_000
GIVE_UP_S = 90.0
ASK_S = 1.0


@dataclass
class Traffic:
    """What was sent and what was acknowledged, wave after wave; the same for the same `seed`."""

    producer: Producer
    seed: int = 0
    sent: list[tuple[Transaction, Sent]] = field(default_factory=list)
    acknowledged: dict[str, Outcome] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)
    waves: int = 0

    def send_wave(self) -> list[Sent]:
        """Some dozens of transactions more."""
        random_ = random.Random(f"{self.seed}/{self.waves}")
        wave = list(_wave(self.waves, random_))
        self.waves += 1
        sents = []
        for tx in wave:
            sents.append(self.producer.send(tx))
            self.sent.append((tx, sents[-1]))
        # A retry while the first is under way, and an id that is used for something else.
        again = wave[random_.randrange(len(wave))]
        sents.append(self.producer.send(again))
        self.producer.send(Transaction(wave[0].home, id=wave[0].id, message="something else").put("t", "other", {}))
        self.reused.add(wave[0].id)
        return sents

    def acknowledge(self, outcomes: Iterable[Outcome]) -> None:
        """Note what a service was told; it may never be told anything else."""
        for outcome in outcomes:
            known = self.acknowledged.setdefault(outcome.transaction_id, outcome)
            assert known == outcome, "a transaction has two outcomes"

    def finish(self) -> None:
        """Send everything once more, and be told the same."""
        again = [self.producer.send(tx) for tx, _ in self.sent]
        self.acknowledge(self.producer.outcomes(again, GIVE_UP_S))

    def check(self, history: History) -> None:
        """The log is sound, holds all that was acknowledged, and adds up."""
        history.check(self.acknowledged.values())
        assert {tx.id for tx, _ in self.sent} == history.outcomes.keys()
        for transaction_id in self.reused:
            refused = [outcome.code for outcome in history.outcomes[transaction_id] if not outcome.committed]
            assert "id-reused" in refused
        for group in COUNTERS:
            committed = [tx for tx, _ in self.sent if group in tx.groups and self.acknowledged[tx.id].committed]
            rows = {place: json.loads(row) for place, row in history.rows(group).items()}
            assert len(history.commits[group]) == len(committed)
            assert rows["t", "count"] == {"n": sum(tx.type in ("Counted", "Spanned") for tx in committed)}
        assert any(commit.record["pieces"] > 1 for commit in history.commits[LARGE]), "a commit is in several pieces"
        merges = [commit.record for commit in history.commits[MERGED] if commit.record["operation"] == "merge"]
        asked = [tx for tx, _ in self.sent if tx.type == "Merged"]
        assert len(merges) == len(asked) == sum(self.acknowledged[tx.id].committed for tx in asked)
        assert all(merge["pieces"] > 1 for merge in merges), "a merge is in several pieces"


def _wave(number: int, random_: random.Random) -> Iterator[Transaction]:
    def new(group: str, kind: str) -> Transaction:
        return Transaction(group, id=f"{number}-{random_.getrandbits(64):x}", type=kind)

    for group in COUNTERS * 5:
        key = str(random_.randrange(10))
        tx = new(group, "Counted").add("t", "count", {"n": 1})
        match random_.randrange(6):
            case 0:
                yield tx
            case 1:
                yield tx.put("t", key, {"at": number, "é": "\x00"}).delete("t", str(random_.randrange(10)))
            case 2:
                yield tx.patch("u", key, {"a": {"b": number}}).put("u/ü", key, {})
            case 3:
                yield new(group, "Refused").put("t", key, {}).expect_head(10**9)
            case 4:
                yield new(group, "Refused").put("t", key, {}).expect("t", "count", 10**9)
            case _:
                yield new(group, "Written").put("t", key, {"wave": number, "x": random_.random()})
    for _ in range(8):
        tx = Transaction(None, id=f"{number}-{random_.getrandbits(64):x}", type="Spanned")
        for group in random_.sample(COUNTERS, random_.randint(2, 4)):
            tx.group(group).add("t", "count", {"n": 1})
        if not random_.randrange(4):
            tx.group(random_.choice(tx.groups)).expect("t", "count", 10**9)
        yield tx
    if number == 0:
        for key in "abc":
            yield new(LARGE, "Written").put("t", key, {"text": key * LARGE_ROW_BYTES})
    else:
        tx = new(LARGE, "Written")  # each row is small here and large in the commit
        for key in "abc":
            tx.patch("t", key, {"wave": number})
        yield tx
    yield from _merged(number, new)
    yield new(VERSIONED, "Written").put("t", str(number % 3), {"wave": number})
    yield new(VERSIONED, "Tagged").operation("tag", name=f"wave-{number}", at="main")
    if number:
        yield new(VERSIONED, "RolledBack").operation("rollback", to=f"wave-{number - 1}")


def _merged(number: int, new: Callable[[str, str], Transaction]) -> Iterator[Transaction]:
    """Both sides change each of some large rows, each a field of its own, and the sides are merged."""
    if number == 0:
        for key in "abc":
            yield new(MERGED, "Written").put("t", key, {"text": key * LARGE_ROW_BYTES})
        yield new(MERGED, "Branched").operation("create-branch", name="plan")
    ours, theirs = new(MERGED, "Written"), new(MERGED, "Written")
    theirs = Transaction(MERGED, id=theirs.id, type="Written", branch="plan")
    for key in "abc":
        ours.patch("t", key, {"ours": number})
        theirs.patch("t", key, {"theirs": number})
    yield ours
    yield theirs
    yield new(MERGED, "Merged").operation("merge", source="plan")


def outcomes_over_crashes(
    cluster: Cluster, traffic: Traffic, sents: list[Sent], worker: WorkerProcess
) -> WorkerProcess:
    """Acknowledge `sents`, starting the worker again, without failpoints, where it dies meanwhile."""
    for _ in range(int(GIVE_UP_S / ASK_S)):
        try:
            traffic.acknowledge(traffic.producer.outcomes(sents, ASK_S))
            return worker
        except (Undecided, Unavailable):
            if not worker.running:
                worker.died(0)
                worker = cluster.start(worker.name)
    raise AssertionError(f"not decided within {GIVE_UP_S:g} s: {worker.last_words()}")


def check_all(cluster: Cluster, traffic: Traffic, name: str = "w1") -> History:
    """After all workers have ended, `name` with all of the log: that, its store, the verifier and a replay say the
    same."""
    history = LogReader(cluster).history()
    traffic.check(history)
    found = cluster.verify(name)
    assert [finding for verified in found for finding in verified.findings] == []
    commits = sum(len(commits) for commits in history.commits.values())
    assert sum(verified.commits for verified in found) == commits
    replayed = cluster.replay(f"replayed-{name}")
    assert replayed.commits == commits
    assert cluster.groups(name) == cluster.groups(f"replayed-{name}")
    assert cluster.digest(name) == replayed.digest
    return history
