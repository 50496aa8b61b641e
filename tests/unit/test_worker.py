"""What a worker does to its process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ALLOCATE = """
import ctypes, sys, threading
from versolog.worker import share_arenas

share_arenas()
together = threading.Barrier(8)

def allocate():
    together.wait()
    kept = [ctypes.create_string_buffer(10_000) for _ in range(1_000)]
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the arenas are glibc's")
@pytest.mark.parametrize(("environment", "few"), [({}, True), ({"MALLOC_ARENA_MAX": "8"}, False)])
def test_the_threads_of_a_worker_share_arenas(tmp_path: Path, environment: dict[str, str], few: bool) -> None:
    told = tmp_path / "malloc.xml"
    inherited = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    subprocess.run([sys.executable, "-c", ALLOCATE, told], check=True, env=inherited | environment, timeout=60)
    assert (told.read_text().count("<heap ") <= 2) is few
