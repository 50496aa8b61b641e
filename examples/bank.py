"""A bank: transfers between branches that live anywhere, and audits that add up at every moment.

versolog up                  # in another terminal
python examples/bank.py
"""

from __future__ import annotations

import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from versolog import Client, VersologError
from versolog.client import Moment, Read

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
BRANCHES = ["bank-north", "bank-south", "bank-east", "bank-west"]
ACCOUNTS = ["ann", "bob", "cy"]
BALANCE = 1_000
TELLERS, SECONDS = 4, 5.0


def open_accounts(db: Client) -> None:
    """A check in each branch: whatever comes, no account is overdrawn."""
    for branch in BRANCHES:
        tx = db.transaction(branch, message="opened")
        for account in ACCOUNTS:
            tx.put("accounts", account, {"balance": BALANCE})
        tx.send()
        db.set_checks(branch, "accounts", {"covered": {"range": "balance", "min": 0}})


def transfer(db: Client, source: tuple[str, str], target: tuple[str, str], amount: int) -> bool:
    """Move money, with a receipt in both branches. Whether it was covered: if not, nothing of it was done."""
    tx = db.transaction(None, type="Transferred")
    for (branch, account), sum_ in ((source, -amount), (target, amount)):
        part = tx.group(branch).add("accounts", account, {"balance": sum_})
        part.put("receipts", tx.id, {"from": list(source), "to": list(target), "amount": amount})
    try:
        tx.send()
    except VersologError as refused:
        if refused.code == "check-failed":
            return False
        raise
    return True


def total(told: Moment) -> int:
    return sum(row.row["balance"] for place in range(len(BRANCHES)) for row in told.range(place).rows)


def audit(db: Client, at: str | None = None) -> Moment:
    """All accounts of all branches at one moment."""
    return db.read(*(Read(branch, "accounts") for branch in BRANCHES), at=at)


def work(seed: int, over: threading.Event) -> tuple[int, int]:
    """One teller: how many transfers were covered, and how many not."""
    chance, ends = random.Random(seed), [0, 0]
    places = [(branch, account) for branch in BRANCHES for account in ACCOUNTS]
    with Client(URL, author=f"teller {seed}") as db:
        while not over.is_set():
            source, target = chance.sample(places, 2)
            if source[0] != target[0]:
                ends[transfer(db, source, target, chance.randint(1, BALANCE))] += 1
    return ends[True], ends[False]


def main() -> None:
    over, expected = threading.Event(), BALANCE * len(BRANCHES) * len(ACCOUNTS)
    with Client(URL, author="auditor") as db, ThreadPoolExecutor(TELLERS) as threads:
        open_accounts(db)
        db.tag_store(tag := f"opening-{time.time():.0f}")
        tellers = [threads.submit(work, seed, over) for seed in range(TELLERS)]
        until, audits = time.monotonic() + SECONDS, 0
        while time.monotonic() < until:
            told = audit(db)
            assert total(told) == expected, f"{total(told)} at {told.at}"
            audits += 1
        over.set()
        covered, refused = map(sum, zip(*(teller.result() for teller in tellers), strict=True))
        print(f"{covered:,} transfers, {refused:,} not covered; {audits:,} audits, each of {expected:,}")
        assert all(row.row["balance"] == BALANCE for row in audit(db, tag).range(0).rows)
        print(f"at {tag}, everybody has {BALANCE:,} again")


if __name__ == "__main__":
    main()
