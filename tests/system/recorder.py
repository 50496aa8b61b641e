"""A worker whose `Partitions` writes down what it is given: run by the tests of the runtime, one process a worker.

Each partition has a ledger, a file that all workers append to. Its last line holds the partition's owner and
checkpoint, so `assigned` fences as a committer does: a worker that was fenced off can't write any more.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from versolog.streams.lanes import Record
from versolog.streams.runtime import HttpServer, WorkerRuntime, run_worker
from versolog.streams.transport import Membership


class FencedError(Exception):
    """Another worker has called `assigned` for this partition since."""


@dataclass
class Ledger:
    """What was decided of one partition, by whom, in order."""

    path: Path

    @contextmanager
    def locked(self) -> Iterator[Any]:
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def last(self, file: Any) -> dict[str, Any]:
        size = file.seek(0, 2)
        for length in (4096, size):
            file.seek(max(0, size - length))
            lines = file.read().splitlines()
            if len(lines) > 1 or length >= size:
                return json.loads(lines[-1]) if lines else {"owner": None, "following": 0}
        raise AssertionError

    def append(self, file: Any, entry: dict[str, Any]) -> None:
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()


@dataclass
class RecordingPartitions:
    """Follows `orders`, a file of JSON that may change while it runs, for what is to go wrong."""

    name: str
    directory: Path
    seen: dict[str, int] = field(default_factory=dict)

    def ordered(self, what: str, partition: int) -> Any:
        path = self.directory / "orders.json"
        orders = json.loads(path.read_text()) if path.exists() else {}
        return orders.get(what, {}).get(str(partition))

    def event(self, what: str, partition: int, **facts: Any) -> None:
        with (self.directory / f"{self.name}.events").open("a") as file:
            file.write(json.dumps({"what": what, "partition": partition, "at": time.time(), **facts}) + "\n")

    def ledger(self, partition: int) -> Ledger:
        return Ledger(self.directory / f"{partition}.ledger")

    async def while_ordered(self, what: str, partition: int) -> None:
        while self.ordered(what, partition):  # noqa: ASYNC110, the order comes from another process
            await asyncio.sleep(0.05)

    def block(self, seconds: float | None) -> None:
        """Hold the event loop, as code that forgot to be asynchronous does."""
        if seconds:
            time.sleep(seconds)

    async def assigned(self, partition: int) -> int:
        self.event("assigned", partition)
        await self.while_ordered("hang_assigned", partition)
        ledger = self.ledger(partition)
        with ledger.locked() as file:
            last = ledger.last(file)
            ledger.append(file, {"owner": self.name, "following": last["following"], "records": []})
        self.event("recovered", partition)
        return int(last["following"])

    async def batch(self, partition: int, records: Sequence[Record]) -> None:
        if pause_s := self.ordered("slow", partition):
            await asyncio.sleep(pause_s)
        self.block(self.ordered(f"block_{self.name}", partition))
        if self.ordered("fail", partition):
            self.event("failed", partition)
            raise RuntimeError("ordered to fail")
        ledger = self.ledger(partition)
        with ledger.locked() as file:
            if ledger.last(file)["owner"] != self.name:
                self.event("fenced", partition)
                raise FencedError(partition)
            written = [[record.offset, (record.value or b"").decode()] for record in records]
            entry = {"owner": self.name, "following": records[-1].offset + 1, "records": written, "at": time.time()}
            ledger.append(file, entry)

    async def revoked(self, partition: int) -> None:
        self.event("revoked", partition)
        self.block(self.ordered("block_revoked", partition))
        await self.while_ordered("hang_revoked", partition)


def application(runtime: list[WorkerRuntime]) -> Any:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        states = {p: type(state).__name__ for p, state in runtime[0].states().items()}
        errors = {p: getattr(state, "error", None) for p, state in runtime[0].states().items()}
        kept = [partition for partition in range(64) if runtime[0].keeps(partition)]
        body = json.dumps({"outage": runtime[0].outage, "states": states, "errors": errors, "kept": kept}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})

    return serve


async def main(settings: dict[str, Any]) -> None:
    directory = Path(settings["directory"])
    runtime: list[WorkerRuntime] = []
    http = HttpServer(application(runtime), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{http.port}"
    (directory / f"{settings['name']}.url").write_text(url)
    runtime.append(
        WorkerRuntime(
            app_id=settings["app_id"],
            bootstrap=settings["bootstrap"],
            client_settings={},
            transactions_topic=settings["topic"],
            advertised_url=url,
            partitions=RecordingPartitions(settings["name"], directory),
            http=http,
            membership=Membership(**settings["membership"], kept_in=directory / f"{settings['name']}.member"),
        )
    )
    await runtime[0].run()


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(name)s %(message)s"
    )
    run_worker(main(json.loads(sys.argv[1])))
