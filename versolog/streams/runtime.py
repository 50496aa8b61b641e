"""The life of a worker process: it serves HTTP before it owns anything, works in its group, and stops within a bound.

Faust runs inside. When it crashes, which it does on errors that aiokafka does not recover from, a new app takes its
place after a pause, and the group sees that as a worker that left and came back. HTTP goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from versolog.schemas.errors import Misconfigured
from versolog.streams.agents import connected, worker_app
from versolog.streams.lanes import Lanes, LaneState, Partitions
from versolog.streams.security import security
from versolog.streams.transport import Fetching, Membership

STOP_TIMEOUT_S = 8.0
CLEANUP_TIMEOUT_S = 2.0
"""For what is left after `WorkerRuntime.run`: threads that still wait for Kafka, the interpreter's own end."""
HTTP_IDLE_S = 75
"""An idle connection is closed later than clients give theirs up: else one would be, now and then, just as it is used."""
HTTP_DRAIN_S = 2
RESTART_FIRST_S = 0.5
RESTART_MAX_S = 10.0
RESTART_FORGET_S = 60.0
SWITCH_INTERVAL_S = 0.003
"""Threads that commit share the interpreter with the loop that decides. At the default, 5 ms, they wait for another; at
half a millisecond they take it from each other so often that small batches cost a fifth more."""
EXIT_HUNG = 70
DEFAULT_MEMBERSHIP = Membership()
DEFAULT_FETCHING = Fetching()

ABORT = "versolog.abort"
"""An extension in a request's scope: `abort()` ends its connection."""

Message = MutableMapping[str, Any]
ASGIApp = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

logger = logging.getLogger(__name__)


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a way for the application to end the connection at once: uvicorn itself waits until the client has
    taken what it was sent."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}


class HttpServer:
    """An ASGI application on uvicorn, on the running loop. The port is bound at once, so that it is known and ours."""

    def __init__(self, asgi: ASGIApp, host: str, port: int) -> None:
        """Raises `Misconfigured` if the address can't be had. Port 0 takes a free one."""
        try:
            self._socket = socket.create_server((host, port), family=_family(host))
        except OSError as error:
            raise Misconfigured(f"HTTP can't listen on {host}:{port}: {error.strerror or error}") from error
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                asgi,
                http=_Protocol,
                loop="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=HTTP_IDLE_S,
                timeout_graceful_shutdown=HTTP_DRAIN_S,
            )
        )

    @property
    def requests_under_way(self) -> int:
        return len(self._server.server_state.tasks)

    async def serve(self) -> None:
        """Serve until `stop`. Raises `Misconfigured` if the application's own start failed."""
        try:
            await self._server.serve(sockets=[self._socket])
        except SystemExit as error:
            raise Misconfigured("the HTTP application did not start; what it said is in the log") from error
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Take no more requests, give those under way `HTTP_DRAIN_S`, and let `serve` return."""
        self._server.should_exit = True


class WorkerRuntime:
    """One worker: its group membership, its lanes and its HTTP server, until a signal or `stop`."""

    def __init__(
        self,
        *,
        app_id: str,
        bootstrap: str,
        client_settings: Mapping[str, str],
        transactions_topic: str,
        advertised_url: str,
        partitions: Partitions,
        http: HttpServer | None = None,
        membership: Membership = DEFAULT_MEMBERSHIP,
        fetching: Fetching = DEFAULT_FETCHING,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        """`client_settings` are librdkafka's; those on security are followed, and `Misconfigured` is raised if not."""
        self._lanes = Lanes(partitions)
        self._new_app = partial(
            worker_app,
            app_id=app_id,
            bootstrap=bootstrap,
            security=security(client_settings),
            transactions_topic=transactions_topic,
            advertised_url=advertised_url,
            lanes=self._lanes,
            membership=membership,
            fetching=fetching,
        )
        self._http = http
        self._stop_timeout_s = stop_timeout_s
        self._stopping = asyncio.Event()
        self._connected: Callable[[], bool] = lambda: False
        self._outage: str | None = "starting"

    @property
    def outage(self) -> str | None:
        """Why this worker does not take part in its group, as far as it knows; None while it does."""
        if self._outage is None and not self._connected():
            return "no broker answers"
        return self._outage

    def states(self) -> Mapping[int, LaneState]:
        """How each partition that this worker was given is doing."""
        return self._lanes.states()

    def keeps(self, partition: int) -> bool:
        """Whether the group gives the partition to this worker, by the last that was heard of it. In any thread."""
        return partition in self._lanes.given

    def restart(self, partition: int, error: BaseException) -> None:
        """Start a partition again at `Partitions.assigned`: taking in what it was handed has failed since."""
        self._lanes.fail(partition, error)

    def stop(self) -> None:
        """Ask `run` to end. It takes up to `stop_timeout_s`."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until SIGTERM, SIGINT or `stop`; then leave the group at once and return.

        A stop that hangs ends the process, with exit status 70 and the reasons in the log, and so does a second signal.
        Raises what made it impossible to start or to serve HTTP. Restarting is for whoever supervises the process.
        """
        working = asyncio.create_task(self._work(), name="worker")
        serving = asyncio.create_task(self._http.serve(), name="http") if self._http is not None else None
        stopping = asyncio.create_task(self._stopping.wait(), name="stop")
        with self._signals():
            await asyncio.wait({task for task in (working, serving, stopping) if task}, return_when="FIRST_COMPLETED")
            self._stopping.set()
            with Watchdog(self._stop_timeout_s):
                if self._http is not None and serving is not None:
                    self._http.stop()
                    await asyncio.wait({serving})
                await asyncio.wait({working})
        for task in (working, serving):
            if task is not None:
                task.result()

    async def _work(self) -> None:
        crashes = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            crash = await self._work_once()
            if crash is None:
                return
            crashes = 1 if time.monotonic() - started > RESTART_FORGET_S else crashes + 1
            delay_s = min(RESTART_MAX_S, RESTART_FIRST_S * 2 ** min(crashes - 1, 16))
            self._outage = f"{type(crash).__name__}: {crash}"
            logger.error("out of the group, tries again in %.1f s: %r", delay_s, crash)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _work_once(self) -> BaseException | None:
        """One Faust app from its start to its end. Returns what crashed it, None if it was asked to stop."""
        app = self._new_app()
        self._connected = partial(connected, app)
        app.on_startup_finished = self._joined
        starting = asyncio.create_task(app.start(), name="faust-start")
        ending = asyncio.create_task(app.wait_until_stopped(), name="faust-end")
        stopping = asyncio.create_task(self._stopping.wait(), name="faust-stop")
        try:
            await asyncio.wait({starting, ending, stopping}, return_when="FIRST_COMPLETED")
            if starting.done() and starting.exception() is None:
                await asyncio.wait({ending, stopping}, return_when="FIRST_COMPLETED")
            if self._stopping.is_set():
                return None
            return (
                (starting.exception() if starting.done() else None) or app.crash_reason or RuntimeError("Faust stopped")
            )
        finally:
            self._outage = "stopped"
            with Watchdog(self._stop_timeout_s):
                await self._lanes.revoke_all()
                await app.stop()
            for task in (starting, ending, stopping):
                task.cancel()

    async def _joined(self) -> None:
        self._outage = None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            logger.critical("%s again: ends at once", number.name)
            os._exit(128 + number)
        logger.info("%s: stops", number.name)
        Watchdog(self._stop_timeout_s + CLEANUP_TIMEOUT_S).start()  # for what comes after `run` too
        self._stopping.set()


class Watchdog:
    """Ends the process if what it watches takes longer than `timeout_s`, even where the event loop itself hangs."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._timer = threading.Timer(timeout_s, self._bite)
        self._timer.daemon = True

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def start(self) -> None:
        """Begin to count, for good where this isn't used as a context."""
        self._loop = asyncio._get_running_loop()
        self._timer.start()

    def _bite(self) -> None:
        tasks = asyncio.all_tasks(self._loop) if self._loop is not None else set()
        hung = sorted(f"{task.get_name()} at {task.get_stack(limit=1)}" for task in tasks)
        logger.critical("did not stop in %.1f s, ends the process; still running: %s", self._timeout_s, hung)
        for handler in logging.getLogger().handlers:
            handler.flush()
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_HUNG)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the runtime's


def run_worker(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` as a worker process does: on uvloop where there is one, with threads taking turns often enough.

    To be the last thing that a process does: `CLEANUP_TIMEOUT_S` after `main` it ends, whatever its threads still do.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(main)
        finally:
            Watchdog(CLEANUP_TIMEOUT_S).start()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
