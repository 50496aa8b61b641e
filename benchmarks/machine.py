"""What it was measured on, and what else that machine was doing."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import confluent_kafka

from versolog.broker.jars import KAFKA_VERSION

PACKAGES = ("versolog", "confluent-kafka", "faust-streaming", "aiokafka", "fastavro", "rocksdict", "uvicorn", "uvloop",
            "httptools", "orjson")  # fmt: skip
LOOK_S = 0.2
LOOPS = 20_000
"""Of Python, by which the processor's speed is told: a few milliseconds."""
SPEED_EVERY_S = 0.25
HASHED_RECORDS = 2_000_000


class Load(NamedTuple):
    """What the machine did just before a round."""

    average: tuple[float, float, float]
    """Over 1, 5 and 15 minutes; what was measured before counts in it."""
    busy: float
    """The share of all processors that was in use, looked at while the benchmark did nothing."""

    def __str__(self) -> str:
        return f"load {' '.join(f'{number:.1f}' for number in self.average)}, {self.busy:.0%} busy with other things"


def load_now() -> Load:
    """Look for a moment."""
    before = _ticks()
    time.sleep(LOOK_S)
    after = _ticks()
    total, idle = after[0] - before[0], after[1] - before[1]
    return Load(os.getloadavg(), 1 - idle / total if total else 0.0)


def cpu_s(pid: int) -> float:
    """The processor time that the process has used (proc(5), `utime` and `stime`)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int, *, most: bool = True) -> float:
    """What the process has in memory, or had at most, in MiB (proc(5), `VmRSS` and `VmHWM`)."""
    name = "VmHWM:" if most else "VmRSS:"
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1_024 for line in lines if line.startswith(name))


def described() -> dict[str, Any]:
    """The machine and the versions of all that takes part."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        "librdkafka": confluent_kafka.libversion()[0],
        "load_generator": _wrk_version() or "built in",
        **{name: version(name) for name in PACKAGES},
    }


def _ticks() -> tuple[int, int]:
    """All processors' time since the start, and how much of it they had nothing to do (proc(5), `cpu`)."""
    with Path("/proc/stat").open() as stat:
        times = [int(ticks) for ticks in stat.readline().split()[1:9]]
    return sum(times), times[3] + times[4]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _wrk_version() -> str | None:
    if shutil.which("wrk") is None:
        return None
    told = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout
    return " ".join(told.split()[:2]) or None


def speed_now() -> float:
    """How much Python a second of this thread's processor time is good for just now, in loops: less where the other
    thread of the core has much to do, or the machine under this one; the same whoever else waits for the processor."""
    seen: dict[int, int] = {}
    begun = time.thread_time()
    for number in range(LOOPS):
        seen[number & 1_023] = number
    return LOOPS / (time.thread_time() - begun)


@contextmanager
def speeds() -> Iterator[list[float]]:
    """`speed_now` again and again meanwhile, in a thread: of a process that has nothing else to do."""
    found: list[float] = [speed_now()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(SPEED_EVERY_S):
            found.append(speed_now())

    looking = threading.Thread(target=look, name="speeds")
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()


def hash_records() -> float:
    """SHA-256 of records of a hundred bytes, a second, by one thread that waits for nothing."""
    begun = time.perf_counter()
    digest = bytes(32)
    for _ in range(HASHED_RECORDS):
        digest = hashlib.sha256(digest + b"x" * 68).digest()
    return HASHED_RECORDS / (time.perf_counter() - begun)
