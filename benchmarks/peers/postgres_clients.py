"""Sixteen clients of PostgreSQL, all SERIALIZABLE, on a table whose history is kept by a trigger. Tells JSON.

python postgres_clients.py transfers|commits|reads ADDRESS SECONDS
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import psycopg
from psycopg.errors import DeadlockDetected, SerializationFailure

CLIENTS, PROCESSES = 16, 2
GROUPS = 4_000
KEYS = 1_000
SETUP = """
drop table if exists rows, history;
create table rows ("group" text, key text, version bigint, row jsonb, primary key ("group", key));
create table history (
  "group" text, key text, version bigint, committed_at timestamptz default clock_timestamp(), row jsonb,
  primary key ("group", key, version)
);
create or replace function keep() returns trigger language plpgsql as $$ begin
  insert into history values (new."group", new.key, new.version, default, new.row);
  return null;
end $$;
create trigger keep after insert or update on rows for each row execute function keep();
"""
PUT = """
insert into rows values (%s, %s, 1, %s)
on conflict ("group", key) do update set version = rows.version + 1, row = excluded.row
"""
ADD = """
update rows set version = version + 1, row = jsonb_set(row, '{n}', to_jsonb((row->>'n')::bigint + %s))
where "group" = %s and key = 'balance'
"""
AS_OF = """
select version, row from history where "group" = %s and key = %s and version <= %s order by version desc limit 1
"""

Connection = psycopg.Connection[tuple[object, ...]]
Do = Callable[[Connection, random.Random], None]


def transfer(connection: Connection, drawn: random.Random) -> None:
    """An amount from one row to another."""
    source, target = drawn.sample(range(GROUPS), 2)
    amount = drawn.randint(1, 9)
    connection.execute(ADD, (-amount, f"account-{source}"), prepare=True)
    connection.execute(ADD, (amount, f"account-{target}"), prepare=True)


def commit(connection: Connection, drawn: random.Random) -> None:
    """A row of about a hundred bytes put."""
    number = drawn.randrange(KEYS)
    row = {"kind": "sword", "owner": f"player-{number % 977}", "level": number % 60, "zone": "north", "moves": number}
    connection.execute(PUT, (f"group-{number % 16:02}", f"item-{number:06}", json.dumps(row)), prepare=True)


def read(connection: Connection, drawn: random.Random) -> None:
    """A row as it was at an old version."""
    number = drawn.randrange(KEYS)
    found = connection.execute(AS_OF, (f"group-{number % 16:02}", f"item-{number:06}", 2), prepare=True).fetchone()
    assert found is not None
    assert found[0] == 2


WORK: dict[str, Do] = {"transfers": transfer, "commits": commit, "reads": read}


def run(what: str, address: str, seconds: float, number: int) -> tuple[int, int, list[float]]:
    """One process's clients: how many were done, how often one had to be done again, and the seconds that each took."""
    took_s: list[float] = []
    repeated = 0

    def client(seed: int) -> None:
        nonlocal repeated
        drawn, do = random.Random(seed), WORK[what]
        with psycopg.connect(address) as connection:
            connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            end_s = time.perf_counter() + seconds
            while (begun_s := time.perf_counter()) < end_s:
                while True:
                    try:
                        with connection.transaction():
                            do(connection, drawn)
                        break
                    except (SerializationFailure, DeadlockDetected):
                        repeated += 1
                took_s.append(time.perf_counter() - begun_s)

    threads = [threading.Thread(target=client, args=(number * CLIENTS + each,)) for each in range(CLIENTS // PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(took_s), repeated, took_s


def main(what: str, address: str, seconds: float) -> None:
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(SETUP)
        with connection.transaction():
            for number in range(GROUPS if what == "transfers" else 0):
                connection.execute(PUT, (f"account-{number}", "balance", '{"n": 0}'), prepare=True)
            for _ in range(3 if what == "reads" else 0):
                for number in range(KEYS):
                    connection.execute(PUT, (f"group-{number % 16:02}", f"item-{number:06}", '{"n": 1}'), prepare=True)
        (before,) = connection.execute("select count(*) from history").fetchone() or (0,)
        connection.execute("vacuum analyze")
    with ProcessPoolExecutor(PROCESSES) as pool:
        ended = [pool.submit(run, what, address, seconds, number) for number in range(PROCESSES)]
        done, repeated, took_s = zip(*(one.result() for one in ended), strict=True)
    with psycopg.connect(address) as connection:
        (after,) = connection.execute("select count(*) from history").fetchone() or (0,)
        (total,) = connection.execute("select sum((row->>'n')::bigint) from rows").fetchone() or (0,)
    wanted = sum(done) * {"transfers": 2, "commits": 1, "reads": 0}[what]
    if after - before != wanted or (what == "transfers" and total):
        sys.exit(f"{wanted} changes were made, {after - before} are in the history, and the balances make {total}")
    ordered = sorted(second for some in took_s for second in some)
    print(
        json.dumps(
            {
                "per_s": sum(done) / seconds,
                "repeated": sum(repeated),
                "p50_ms": ordered[len(ordered) // 2] * 1_000,
                "p99_ms": ordered[len(ordered) * 99 // 100] * 1_000,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
