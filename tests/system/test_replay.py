"""A past version rebuilt from offsets is the past version, digest by digest; and nothing is left of one that failed."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from versolog.projections.refold import Folder, crew
from versolog.schemas.errors import Malformed, Unavailable
from versolog.schemas.outcome import Outcome
from versolog.schemas.times import millis_to_text
from versolog.streams.transaction import Transaction

SOON_S = 60.0
GROUPS = [f"g{number}" for number in range(6)]


def traffic(number: int, random_: random.Random) -> Transaction:
    """One of all sorts that a group's history is made of."""
    group, key = random_.choice(GROUPS), str(random_.randrange(20))
    match random_.randrange(8):
        case 0:
            return Transaction(group).delete("t", key)
        case 1:
            return Transaction(group).add("u", "n", {"n": 1}).patch("t", key, {"p": number})
        case 2:
            return Transaction(group).put("t", key, {}).expect_head(10**6)
        case _:
            return Transaction(group).put("t", key, {"n": number}).put("ü/t", key, {"x": [number]})


class History:
    """A cluster with a history, and what it was told of it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        cluster.start()
        cluster.owned()
        random_ = random.Random(3)
        with cluster.producer() as producer:
            self.outcomes: list[Outcome] = []
            for step in range(10):
                asked = [traffic(number, random_) for number in range(60)]
                asked += [Transaction("g0").operation("tag", name=f"step-{step}")] if step else []
                asked += [Transaction("g1").operation("rollback", to="3")] if step == 5 else []
                asked += [Transaction("g2").operation("drop-group")] if step == 7 else []
                self.outcomes += producer.outcomes(producer.send_many(asked), SOON_S)
        self.client = cluster.client()

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The command line, on this cluster."""
        return subprocess.run(
            [sys.executable, "-m", "versolog", *arguments], capture_output=True, text=True, timeout=120, check=check,
            env={**os.environ, "VERSOLOG_BOOTSTRAP": self.cluster.bootstrap, "VERSOLOG_PREFIX": self.cluster.prefix},
        )  # fmt: skip

    def digest(self, **query: str) -> str:
        """What the live store says."""
        group = query.pop("group", None)
        path = "/v1/digest" if group is None else f"/v1/groups/{group}/digest"
        told: str = self.client.get(path, params=query).raise_for_status().json()["digest"]
        return told


@pytest.fixture(scope="module")
def history(broker: RealBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    cluster = Cluster(broker.bootstrap, tmp_path_factory.mktemp("history"), partitions=3)
    cluster.make_topics()
    try:
        history = History(cluster)
        yield history
        history.client.close()
    finally:
        cluster.kill()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "replayed"


def printed(run: subprocess.CompletedProcess[str]) -> str:
    found = re.fullmatch(r"digest ([0-9a-f]{64})\n", run.stdout)
    assert found, run
    return found[1]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_command_line_prints_the_digest_of_the_live_store(history: History, into: Path, processes: str) -> None:
    replayed = history.run("replay", "--into", str(into), "--processes", processes)
    live = history.run("digest", "--url", str(history.client.base_url))
    assert printed(replayed) == printed(live) == history.digest()


@pytest.mark.parametrize("at", ["7", "step-4", "step-4~2", "main"])
def test_a_group_at_a_version(history: History, into: Path, at: str) -> None:
    replayed = history.run("replay", "--into", str(into), "--group", "g0", "--at", at)
    live = history.run("digest", "--url", str(history.client.base_url), "--group", "g0", "--at", at)
    assert printed(replayed) == printed(live)
    assert_same_rows(history, into, "g0", at=at)


@pytest.mark.parametrize("group", [None, "g1", "g2"])
def test_at_a_time(history: History, into: Path, group: str | None) -> None:
    cut = millis_to_text(history.outcomes[len(history.outcomes) // 2].committed_at)
    of_group = ["--group", group] if group else []
    replayed = history.run("replay", "--into", str(into), "--at" if group else "--cut", cut, *of_group)
    live = history.run("digest", "--url", str(history.client.base_url), "--at", cut, *of_group)
    assert printed(replayed) == printed(live)
    assert_same_rows(history, into, group or "g0", at=cut)


def test_now_is_a_time_that_can_be_replayed(history: History, into: Path) -> None:
    """Nothing has come for a while, so the partitions' clocks stand still: they are moved on."""
    cut = millis_to_text(time.time_ns() // 1_000_000 - 1)
    assert history.cluster.replay(str(into), at=cut).digest == history.digest() == history.digest(at=cut)


def assert_same_rows(history: History, copy: Path, group: str, at: str) -> None:
    """What a copy serves is what the live store serves at that place, and nothing can be written to it."""
    served = subprocess.Popen(
        [sys.executable, "-m", "versolog", "serve", str(copy), "--http-port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert served.stdout is not None
        url = served.stdout.readline().split()[-1]
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            for table in ("t", "u", "ü/t"):
                path = f"/v1/groups/{group}/tables/{table.replace('/', '%2F')}/rows"
                live = history.client.get(path, params={"at": at, "limit": 1000})
                copied = client.get(path, params={"limit": 1000})
                assert copied.status_code == live.status_code == 200
                assert copied.json()["rows"] == live.json()["rows"]
            refused = client.put(f"/v1/groups/{group}/tables/t/rows/k", json={})
            assert (refused.status_code, refused.json()["code"]) == (403, "read-only")
            assert client.get("/readyz").status_code == 200
        served.send_signal(signal.SIGTERM)
        assert served.wait(10) == 0
    finally:
        served.kill()
        served.wait()
        served.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--at", "7"], "invalid"),
        (["--at", "7", "--cut", "2026-01-01T00:00:00Z"], "invalid"),
        (["--group", "g0", "--at", "100000"], "unknown-version"),
        (["--group", "g0", "--at", "nothing"], "unknown-ref"),
        (["--group", "nobody", "--at", "1"], "unknown-group"),
        (["--group", "nobody"], "unknown-group"),
        (["--cut", "2999-01-01T00:00:00Z"], "time-to-come"),
    ],
)
def test_what_can_not_be_replayed_is_refused_and_leaves_nothing(
    history: History, into: Path, arguments: list[str], code: str
) -> None:
    refused = history.run("replay", "--into", str(into), *arguments, check=False)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"{code}: ")
    assert list(into.parent.iterdir()) == []


def test_a_directory_that_holds_something_is_left_alone(history: History, into: Path) -> None:
    into.mkdir()
    (into / "mine").write_text("kept")
    refused = history.run("replay", "--into", str(into), check=False)
    assert (refused.returncode, "is not empty" in refused.stderr) == (1, True)
    assert (into / "mine").read_text() == "kept"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_replay_that_was_ended_leaves_nothing_half_made(history: History, into: Path, how: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "versolog", "replay", "--into", str(into), "--processes", "2",
         "--bootstrap", history.cluster.bootstrap, "--prefix", history.cluster.prefix],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0,
    )  # fmt: skip
    try:
        eventually(lambda: list(into.parent.glob("*/partition-*")) or list(into.parent.glob(".*/partition-*")), SOON_S,
                   "it folds")  # fmt: skip
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
        process.wait(SOON_S)
        assert not into.exists()
        eventually(lambda: not alive(process.pid), SOON_S, "its processes have ended")
        if how != signal.SIGKILL:
            assert list(into.parent.iterdir()) == []
    finally:
        process.kill()
        process.communicate()
    assert history.cluster.replay(str(into)).digest == history.digest()
    assert list(into.parent.iterdir()) == [into], "what the killed one left is cleared away"


class Work:
    """This process is at its first partition until the other one is at work too, which does `other_does`."""

    def __init__(self, directory: Path, other_does: Callable[[], int]) -> None:
        self.first, self.met, self.other_does = os.getpid(), directory / "met", other_does

    def __call__(self, folder: Folder, number: int, tell: Callable[[int], None]) -> tuple[int, bool]:
        if os.getpid() != self.first:
            self.met.touch()
            return number, bool(self.other_does())
        tell(0)  # and hear
        eventually(self.met.exists, SOON_S, "the other one is at work")
        time.sleep(0.02)
        return number, False


def is_well() -> int:
    return True


def is_killed() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def fails() -> int:
    raise Malformed("a record can't be read", offset=7)


def is_wrong() -> int:
    return {}["a key"]  # type: ignore[no-any-return]


def test_each_partition_is_taken_by_one_process(history: History, tmp_path: Path) -> None:
    numbers = list(range(1, 100))
    with crew(history.cluster.log, tmp_path / "stores", 2) as both:
        answers = both.each(numbers, Work(tmp_path, is_well), lambda _: None)
        assert sorted(number for number, _ in answers) == numbers
        assert {by_other for _, by_other in answers} == {True, False}
        again = both.each(numbers, Work(tmp_path, is_well), lambda _: None)
        assert sorted(number for number, _ in again) == numbers


@pytest.mark.parametrize(
    ("other_does", "raised", "said"),
    [
        (is_killed, Unavailable, "was ended from outside"),
        (fails, Malformed, "a record can't be read"),
        (is_wrong, RuntimeError, "KeyError: 'a key'"),
    ],
)
def test_what_happens_to_the_other_process_is_told(
    history: History, tmp_path: Path, other_does: Callable[[], int], raised: type[Exception], said: str
) -> None:
    with crew(history.cluster.log, tmp_path / "stores", 2) as both, pytest.raises(raised, match=said):
        both.each(range(1, 100), Work(tmp_path, other_does), lambda _: None)
    assert all(child.name != "refold" for child in multiprocessing.active_children())


def alive(process_group: int) -> bool:
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return False
    return True
