"""What was set up, compiled where there is a compiler, and the sources alone: the same tests, and the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hatch_build

ROOT = Path(__file__).parents[2]
SOME_TESTS = ("tests/property/test_readings.py", "tests/property/test_written.py", "tests/unit/test_participant.py",
              "tests/unit/test_versions.py")  # fmt: skip
HISTORIES = """
import hashlib
from tests.simulator.world import Protocol, World
from versolog.streams import decide

print(decide.__file__)
for seed in range(20):
    world, digest = World(seed, Protocol(), None), hashlib.sha256()
    world.run()
    for partition in range(world.partitions):
        for batch in world.durable[partition]:
            for _, decision in batch.decided:
                digest.update(decision.outcome)
                for sealed in decision.commits:
                    digest.update(sealed.hash)
    print(digest.hexdigest())
"""


def run(*command: str, pure: bool) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "VERSOLOG_PURE"}
    if pure:
        environment["VERSOLOG_PURE"] = "1"
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_make_the_same_history() -> None:
    as_set_up, *hashes = run("-c", HISTORIES, pure=False).splitlines()
    source, *others = run("-c", HISTORIES, pure=True).splitlines()
    assert source.endswith(".py")
    assert as_set_up.endswith(".py") != bool(hatch_build.found(ROOT))
    assert hashes == others
    assert len(set(hashes)) == 20


def test_the_sources_pass_the_tests_of_what_is_compiled() -> None:
    assert " passed" in run("-m", "pytest", "-q", *SOME_TESTS, pure=True)
