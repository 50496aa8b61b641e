"""Fetching Kafka's jars, from a repository on this machine that can be made to fail."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import stamina

from versolog.broker.errors import DiskFullError, DownloadError, NotInstalledError
from versolog.broker.jars import KAFKA_VERSION, Jar, class_path, kafka_jars

CONTENT = {f"org.example:part{n}:1.{n}": bytes([n]) * (1000 + n) for n in range(6)}
JARS = [Jar(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items()]
LAST = "/org/example/part5/1.5/part5-1.5.jar"


class Repository(ThreadingHTTPServer):
    """Serves `files`; `broken` holds paths of which each next request gets half the body only."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {_path(coordinate): content for coordinate, content in CONTENT.items()}
        self.broken: list[str] = []
        self.requested: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Repository

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        if self.path.endswith(".jar"):
            self.server.requested.append(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path in self.server.broken:
            self.server.broken.remove(self.path)
            content = content[: len(content) // 2]
        self.wfile.write(content)
        return None

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


def _path(coordinate: str) -> str:
    group, artifact, version = coordinate.split(":")
    return f"/{group.replace('.', '/')}/{artifact}/{version}/{artifact}-{version}.jar"


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Repository() as server, stamina.set_testing(True, attempts=3):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(cache: Path, repository: Repository) -> list[Path]:
    return class_path(JARS, cache, repository.url, lambda line: None)


def jars_kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.name != "download.lock")


def test_the_list_names_kafka_and_each_file_once() -> None:
    jars = kafka_jars()
    assert f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}" in [jar.coordinate for jar in jars]
    assert len({jar.file_name for jar in jars}) == len(jars)
    assert all(len(bytes.fromhex(jar.sha256)) == 32 and jar.size_bytes > 0 for jar in jars)


def test_kafkas_own_jars_are_all_of_one_version() -> None:
    versions = {
        jar.coordinate.rsplit(":", 1)[1] for jar in kafka_jars() if jar.coordinate.startswith("org.apache.kafka:")
    }
    assert versions == {KAFKA_VERSION}


def test_jars_are_fetched_once(tmp_path: Path, repository: Repository) -> None:
    first = fetch(tmp_path, repository)
    assert [path.read_bytes() for path in first] == list(CONTENT.values())
    assert sorted(repository.requested) == sorted(repository.files)
    assert fetch(tmp_path, repository) == first
    assert len(repository.requested) == len(JARS)


def test_processes_that_start_at_once_fetch_once(tmp_path: Path, repository: Repository) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch(tmp_path, repository), range(4)))
    assert found == [found[0]] * 4
    assert len(repository.requested) == len(JARS)


def test_progress_is_told_up_to_the_end(tmp_path: Path, repository: Repository) -> None:
    told: list[str] = []
    big = b"x" * 3_000_000
    repository.files[LAST] = big
    jars = [*JARS[:-1], Jar(JARS[-1].coordinate, len(big), hashlib.sha256(big).hexdigest())]
    class_path(jars, tmp_path, repository.url, told.append)
    assert "3 MB" in told[0]
    assert told[-1].endswith("3 of 3 MB")
    assert 3 < len(told) <= 11


def test_a_jar_that_was_lost_or_cut_is_fetched_again(tmp_path: Path, repository: Repository) -> None:
    first = fetch(tmp_path, repository)
    first[0].unlink()
    first[1].write_bytes(b"cut")
    assert [path.read_bytes() for path in fetch(tmp_path, repository)] == list(CONTENT.values())


def test_a_broken_connection_is_tried_again(tmp_path: Path, repository: Repository) -> None:
    repository.broken = [LAST]
    assert fetch(tmp_path, repository)[-1].read_bytes() == CONTENT[JARS[-1].coordinate]
    assert repository.requested.count(LAST) == 2


@pytest.mark.parametrize("failure", ["missing", "damaged", "broken"])
def test_a_failed_download_leaves_nothing_and_a_later_one_goes_on_well(
    tmp_path: Path, repository: Repository, failure: str
) -> None:
    good = repository.files[LAST]
    if failure == "missing":
        del repository.files[LAST]
    elif failure == "damaged":
        repository.files[LAST] = b"!" * len(good)
    else:
        repository.broken = [LAST] * 3
    with pytest.raises(DownloadError, match=r"part5-1\.5\.jar") as caught:
        fetch(tmp_path, repository)
    assert repository.url in caught.value.detail
    assert "mirror" in caught.value.detail
    assert jars_kept(tmp_path) == []
    repository.files[LAST] = good
    assert fetch(tmp_path, repository)[-1].read_bytes() == good


def test_a_host_that_cannot_be_reached_is_a_download_error(tmp_path: Path, repository: Repository) -> None:
    repository.url = "http://127.0.0.1:1/"
    with pytest.raises(DownloadError, match="can't be reached"):
        fetch(tmp_path, repository)
    assert jars_kept(tmp_path) == []


def test_what_a_killed_download_left_is_removed(tmp_path: Path, repository: Repository) -> None:
    (tmp_path / "partial-of-a-killed-run" / "repository").mkdir(parents=True)
    fetch(tmp_path, repository)
    assert [path.name for path in tmp_path.glob("partial-*")] == []


def test_a_cache_that_cannot_be_written_is_named(repository: Repository) -> None:
    with pytest.raises(DownloadError, match="/dev/null/cache"):
        fetch(Path("/dev/null/cache"), repository)


def test_a_full_disk_is_told_from_a_bad_network(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(DiskFullError, match=str(tmp_path)):
        fetch(tmp_path, repository)


def test_a_missing_extra_is_named(tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jgo.maven", None)
    with pytest.raises(NotInstalledError, match=r"pip install 'versolog\[broker\]'"):
        fetch(tmp_path, repository)
    assert jars_kept(tmp_path) == []
