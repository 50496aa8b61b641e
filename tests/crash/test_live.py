"""A bank and a history of lists, over many groups, partitions and clients, while workers and the broker are killed."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from tests.listappend import Recorder, plans
from tests.station import Faults, Station
from versolog import Outcome, Transaction
from versolog.client import Read

PARTITIONS = 8
DECIDED_WITHIN_S = 30.0
BANKS = [f"bank-{number}" for number in range(24)]
ACCOUNTS = ("ann", "bob", "cy")
BALANCE = 40
TOTAL = BALANCE * len(BANKS) * len(ACCOUNTS)


@pytest.fixture
def cluster(new_cluster: Callable[..., Cluster], own_broker: RealBroker) -> Cluster:
    made = new_cluster(own_broker, partitions=PARTITIONS)
    made.start("w1")
    made.start("w2")
    made.owned()
    return made


class Bank:
    """Accounts in many groups; a transfer leaves a receipt in each of its groups, and none may be overdrawn."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.outcomes: dict[str, tuple[list[str], Outcome]] = {}
        """By id: the groups of a transfer, and its outcome."""
        self.audits = 0

    def open(self) -> None:
        station = Station(self._cluster, 0)
        covered = {"covered": {"range": "balance", "min": 0}}
        for bank in BANKS:
            tx = Transaction(bank)
            for account in ACCOUNTS:
                tx.put("accounts", account, {"balance": BALANCE})
            station.send(tx).raise_for_refusal()
            tx = Transaction(bank).operation("set-checks", table="accounts", checks=covered)
            station.send(tx).raise_for_refusal()
        station.close()

    def transfer(self, seed: int, over: threading.Event) -> None:
        chance, station = random.Random(seed), Station(self._cluster, seed)
        while not over.is_set():
            banks = chance.sample(BANKS, chance.choice((1, 2, 2, 3, 4)))
            amount = chance.randint(1, 15)
            tx = Transaction(None, author=f"teller {seed}")
            for bank in banks:
                tx.group(bank).put("receipts", tx.id, {"amount": amount})
            if len(banks) == 1:
                one, other = chance.sample(ACCOUNTS, 2)
                tx.group(banks[0]).add("accounts", one, {"balance": -amount})
                tx.group(banks[0]).add("accounts", other, {"balance": amount})
            else:
                tx.group(banks[0]).add("accounts", chance.choice(ACCOUNTS), {"balance": -amount * (len(banks) - 1)})
                for bank in banks[1:]:
                    tx.group(bank).add("accounts", chance.choice(ACCOUNTS), {"balance": amount})
            self.outcomes[tx.id] = (banks, station.send(tx))
        station.close()

    def audit(self, seed: int, over: threading.Event) -> None:
        station = Station(self._cluster, seed)
        while not over.is_set():
            assert self._total(station) == TOTAL
            self.audits += 1
        station.close()

    def check(self) -> None:
        """The total, and a receipt in all of a transfer's groups, or in none."""
        station = Station(self._cluster, 0)
        assert self._total(station) == TOTAL
        committed: dict[str, set[str]] = {bank: set() for bank in BANKS}
        for transaction_id, (banks, outcome) in self.outcomes.items():
            assert outcome.committed or outcome.code == "check-failed", outcome
            if outcome.committed:
                assert not outcome.missing
                for bank in banks:
                    committed[bank].add(transaction_id)
        for bank, expected in committed.items():
            found = station.ask(lambda db, bank=bank: {row.key for row in db.rows(bank, "receipts")})
            assert found == expected
        station.close()

    def _total(self, station: Station) -> int:
        told = station.read(*(Read(bank, "accounts") for bank in BANKS))
        rows = [row for place in range(len(BANKS)) for row in told.range(place).rows]
        assert len(rows) == len(BANKS) * len(ACCOUNTS)
        assert all(row.row["balance"] >= 0 for row in rows)
        return sum(row.row["balance"] for row in rows)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("for_s", "clients"), [(20, 8), pytest.param(180, 32, marks=pytest.mark.slow)])
def test_the_bank_adds_up_at_every_moment(cluster: Cluster, own_broker: RealBroker, for_s: float, clients: int) -> None:
    bank, over = Bank(cluster), threading.Event()
    bank.open()
    faults = Faults(cluster, own_broker, seed=1)
    with ThreadPoolExecutor(clients + 2) as threads:
        working = [threads.submit(bank.transfer, seed, over) for seed in range(clients)]
        working += [threads.submit(bank.audit, seed, over) for seed in range(2)]
        try:
            deadline = time.monotonic() + for_s
            faults.go_on(lambda: time.monotonic() > deadline or any(work.done() for work in working))
            cluster.owned()
        finally:
            over.set()
        for work in working:
            work.result()
    _none_waits(cluster)
    bank.check()
    _say(f"{len(bank.outcomes):,} transfers, {bank.audits:,} audits, killed: {faults.done}")
    assert any(not outcome.committed for _, outcome in bank.outcomes.values())
    _all_agree(cluster)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("count", "clients"), [(300, 8), pytest.param(20_000, 32, marks=pytest.mark.slow)])
def test_lists_in_many_groups_have_one_history(
    cluster: Cluster, own_broker: RealBroker, count: int, clients: int
) -> None:
    recorder, planned, lock = Recorder(), islice(plans(1, [f"lists-{n}" for n in range(16)]), count), threading.Lock()

    def work(seed: int) -> None:
        station = Station(cluster, seed)
        while True:
            with lock:
                plan = next(planned, None)
            if plan is None:
                return station.close()
            recorder.run(plan, station.lists, station.send)

    faults = Faults(cluster, own_broker, seed=2)
    with ThreadPoolExecutor(clients) as threads:
        working = [threads.submit(work, seed) for seed in range(clients)]
        faults.go_on(lambda: all(work.done() for work in working))
        for done in working:
            done.result()
    _none_waits(cluster)
    station, keys = Station(cluster, 0), recorder.keys
    pages = [station.lists(keys[start : start + 500]) for start in range(0, len(keys), 500)]
    final = type(pages[0])({key: row for page in pages for key, row in page.rows.items()})
    station.close()
    outcomes = [attempt.outcome for attempt in recorder.attempts]
    committed = sum(outcome is not None and outcome.committed for outcome in outcomes)
    _say(f"{len(outcomes):,} transactions, {committed:,} committed, killed: {faults.done}")
    assert committed > count / 10
    assert recorder.check(final) == []
    _all_agree(cluster)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _none_waits(cluster: Cluster) -> None:
    """Nothing is undecided so long after the last fault."""
    station = Station(cluster, 0)
    eventually(lambda: not station.ask(lambda db: db.waiting()), DECIDED_WITHIN_S, "all is decided")
    station.close()
    cluster.owned()


def _all_agree(cluster: Cluster) -> None:
    """All chains hold, and all stores and the log say the same."""
    cluster.level()
    cluster.stop()
    assert all(verified.ok for verified in cluster.verify())
    assert cluster.digest("w1") == cluster.digest("w2") == cluster.replay().digest
