"""The examples do what they say, against a real versolog of two workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.conftest import RealBroker

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "says"),
    [("bank", "at opening-"), ("game", "undone")],
)
def test_an_example_runs(new_cluster: Callable[..., Cluster], broker: RealBroker, name: str, says: str) -> None:
    cluster = new_cluster(broker, partitions=4)
    cluster.start("w1")
    cluster.start("w2")
    cluster.owned()
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), cluster.workers["w1"].url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert says in done.stdout


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"bank", "game"}
