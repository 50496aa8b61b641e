"""`versolog up` as a user runs it: started, hurt, interrupted, started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import httpx
import pytest

from tests.cluster import eventually
from versolog.broker.process import ProcessIdentity
from versolog.schemas.errors import Misconfigured
from versolog.up import Plan, Running, _kept, running

READY_S = 60.0
"""On however slow a machine."""
CTRL_C_S = 10.0
BACK_S = 30.0


class Up:
    """One `versolog up` in a process group of its own, as in a terminal."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self._told = data.parent / f"{data.name}.told"
        command = [sys.executable, "-m", "versolog", "up", "--data", str(data), "--http-port", "0", "--partitions", "2"]
        with self._told.open("wb") as told:
            self.process = subprocess.Popen([*command, *options], stdout=told, stderr=told, process_group=0)

    @property
    def told(self) -> str:
        return self._told.read_text()

    @property
    def urls(self) -> list[str]:
        """The addresses that it tells with `ready`, waited for."""

        def ready() -> re.Match[str] | None:
            found = re.search(r"^ready  http (.*)  kafka", self.told, re.MULTILINE)
            assert found or self.process.poll() is None, self.told
            return found

        found = eventually(ready, 60, "ready")
        assert found is not None
        return found[1].split()

    def processes(self) -> dict[str, list[ProcessIdentity]]:
        """All that it started, and what they are."""
        found: dict[str, list[ProcessIdentity]] = {"worker": [], "broker": []}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if not entry.name.isdigit() or f"PPid:\t{self.process.pid}\n" not in (entry / "status").read_text():
                    continue
                command = (entry / "cmdline").read_bytes()
                kind = "worker" if b"\0worker\0" in command else "broker" if b"kafka.Kafka" in command else None
                identity = ProcessIdentity.of(int(entry.name))
                if kind is not None and identity is not None:
                    found[kind].append(identity)
        return found

    def ctrl_c(self) -> float:
        """Interrupt it as the terminal does, all processes of its group at once; the seconds until its end."""
        begun = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.wait(30) == 0, self.told
        return time.monotonic() - begun


@contextmanager
def up(data: Path, *options: str) -> Iterator[Up]:
    """Running, and gone at the end."""
    one = Up(data, *options)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
            one.process.wait(30)


def put(url: str, key: str, wait_s: float = 5.0) -> int:
    """The status of a write; 0 where nobody answers."""
    try:
        row = {"x": 1}
        return httpx.put(
            f"{url}/v1/groups/g/tables/t/rows/{key}", json=row, params={"wait": wait_s}, timeout=30
        ).status_code
    except httpx.HTTPError:
        return 0


def rows(url: str) -> set[str]:
    answer = httpx.get(f"{url}/v1/groups/g/tables/t/rows", timeout=30)
    return {row["key"] for row in answer.raise_for_status().json()["rows"]}


def test_what_keeps_it_up_goes_on_after_any_failure() -> None:
    """No process may be had for a moment, or no file be written."""

    class Hindered:
        asked = 0

        def keep(self) -> None:
            self.asked += 1
            if self.asked < 3:
                raise BlockingIOError(11, "Resource temporarily unavailable")

    hindered, told = Hindered(), list[str]()
    with _kept(cast(Running, hindered), told.append):
        deadline = time.monotonic() + 10
        while hindered.asked < 5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(told) == 1
    assert "temporarily unavailable" in told[0]


def test_a_directory_that_can_not_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match="no data can be kept in"), running(Plan(tmp_path / "file" / "data")):
        pass


def test_a_second_start_goes_on_with_the_data(tmp_path: Path) -> None:
    for number in range(2):
        begun = time.monotonic()
        with up(tmp_path / "data") as one:
            (url,) = one.urls
            assert time.monotonic() - begun < READY_S
            # Ready is ready: nothing has to be tried again.
            assert put(url, str(number)) == 201
            assert rows(url) == {str(n) for n in range(number + 1)}
            processes = [process for kind in one.processes().values() for process in kind]
            assert len(processes) == 2
            assert one.ctrl_c() < CTRL_C_S
            assert not any(process.alive for process in processes)


def test_what_dies_is_started_again(tmp_path: Path) -> None:
    with up(tmp_path / "data", "--workers", "2") as one:
        urls = one.urls
        assert len(urls) == 2
        assert {put(url, "before") for url in urls} == {201}
        for kind in ("worker", "broker"):
            victim = one.processes()[kind][0]
            victim.send(signal.SIGKILL)
            fresh = eventually(
                lambda kind=kind, victim=victim: [p for p in one.processes()[kind] if p != victim],  # type: ignore[misc]
                BACK_S, f"another {kind}",
            )  # fmt: skip
            assert fresh
            addresses = [tmp_path / "data" / f"worker-{number}" / "address" for number in (1, 2)]

            def all_write(kind: str = kind, addresses: list[Path] = addresses) -> bool:
                return all(path.exists() and put(path.read_text(), kind, 1.0) == 201 for path in addresses)

            eventually(all_write, BACK_S, f"both workers write after the death of a {kind}")
        assert "is started again" in one.told
        assert one.ctrl_c() < CTRL_C_S


@pytest.mark.parametrize("when", ["starting", "kafka is dead"])
def test_ctrl_c_at_a_bad_moment_ends_it_in_time(tmp_path: Path, when: str) -> None:
    with up(tmp_path / "data") as one:
        if when == "starting":
            eventually(lambda: "starting 1 worker" in one.told, READY_S, "the worker starts")
        else:
            assert put(one.urls[0], "k") == 201
            one.processes()["broker"][0].send(signal.SIGKILL)
        processes = [process for kind in one.processes().values() for process in kind]
        assert one.ctrl_c() < CTRL_C_S
        assert not any(process.alive for process in processes)
        assert one.processes() == {"worker": [], "broker": []}


def test_when_it_is_killed_all_ends_and_a_new_start_goes_on(tmp_path: Path) -> None:
    with up(tmp_path / "data") as one:
        assert put(one.urls[0], "before") == 201
        processes = [process for kind in one.processes().values() for process in kind]
        one.process.kill()
        one.process.wait()
    with up(tmp_path / "data") as two:
        assert put(two.urls[0], "after") == 201
        assert rows(two.urls[0]) == {"before", "after"}
        assert not any(process.alive for process in processes)


def test_a_new_start_waits_for_a_worker_that_is_slow_to_end(tmp_path: Path) -> None:
    with up(tmp_path / "data") as one:
        assert put(one.urls[0], "before") == 201
        (worker,) = one.processes()["worker"]
        os.kill(worker.pid, signal.SIGSTOP)
        one.process.kill()
        one.process.wait()
    log = tmp_path / "data" / "worker-1" / "worker.log"
    with up(tmp_path / "data") as two:
        try:
            eventually(lambda: "store-locked-still" in log.read_text(), 30, "the new worker meets the store's lock")
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        assert rows(two.urls[0]) == {"before"}


def test_a_second_one_on_the_same_data_says_so_and_leaves_the_first_alone(tmp_path: Path) -> None:
    with up(tmp_path / "data") as one:
        (url,) = one.urls
        second = subprocess.run(
            [sys.executable, "-m", "versolog", "up", "--data", str(tmp_path / "data"), "--http-port", "0"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert "a broker runs on" in second.stderr
        assert put(url, "k") == 201
