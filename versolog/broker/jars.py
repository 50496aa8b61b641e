"""Apache Kafka's jars: a fixed list with the SHA-256 of each, fetched once from a Maven repository into a cache.

The list is what Maven resolves for `org.apache.kafka:kafka_2.13`, and the binding that lets Kafka log through the
log4j it brings. It stands in a file beside this one, so that a start resolves nothing, every machine runs the same
bytes, and a mirror need not be trusted.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import stamina

from versolog.broker.errors import DiskFullError, DownloadError, NotInstalledError

KAFKA_VERSION = "4.2.2"
DOWNLOADS_AT_ONCE = 4
ATTEMPTS_MAX = 3
SILENCE_MAX_S = 30

Say = Callable[[str], None]
"""Takes one line for the person who waits."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One file of a Maven repository, `group:artifact:version`, and what it must be."""

    coordinate: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        _group, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def kafka_jars() -> tuple[Jar, ...]:
    """The jars that make `KAFKA_VERSION`, in class path order."""
    listed = resources.files("versolog.broker").joinpath(f"kafka-{KAFKA_VERSION}.jars.txt").read_text("ascii")
    fields = (line.split() for line in listed.splitlines())
    return tuple(Jar(coordinate, int(size_bytes), sha256) for coordinate, size_bytes, sha256 in fields)


def cache_default() -> Path:
    """Where jars are kept when no other place is named: under the user's cache directory."""
    return Path.home() / ".cache" / "versolog"


def class_path(jars: Sequence[Jar], cache: Path, maven_url: str | None, say: Say) -> list[Path]:
    """The paths of `jars`, fetched into `cache` if they aren't there whole. Several processes may call it at once.

    `maven_url` names the repository to fetch from, Maven Central if None. Raises DownloadError, DiskFullError or
    NotInstalledError, and then leaves the cache as it was.
    """
    home = cache / f"kafka-{KAFKA_VERSION}-{_list_digest(jars)}"
    if not _whole(home, jars):
        with _writable(cache), _one_at_a_time(cache, say):
            if not _whole(home, jars):
                _install(jars, home, maven_url, say)
    return [home / jar.file_name for jar in jars]


def _list_digest(jars: Sequence[Jar]) -> str:
    return hashlib.sha256("".join(jar.sha256 for jar in jars).encode()).hexdigest()[:8]


def _whole(home: Path, jars: Sequence[Jar]) -> bool:
    sizes = {path.name: path.stat().st_size for path in home.glob("*.jar")}
    return all(sizes.get(jar.file_name) == jar.size_bytes for jar in jars)


@contextmanager
def _writable(cache: Path) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"there is no room for Kafka's jars in {cache}; make some, or name another cache"
            ) from problem
        raise DownloadError(f"can't keep Kafka's jars in {cache}: {problem}; name another cache") from problem


@contextmanager
def _one_at_a_time(cache: Path, say: Say) -> Iterator[None]:
    with (cache / "download.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process downloads Apache Kafka; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(jars: Sequence[Jar], home: Path, maven_url: str | None, say: Say) -> None:
    """Fetch `jars` beside `home` and put them in its place in one step."""
    for left_by_a_crash in home.parent.glob("partial-*"):
        shutil.rmtree(left_by_a_crash)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=home.parent))
    try:
        fetched = _fetch(jars, partial, maven_url, say)
        flat = partial / home.name
        flat.mkdir()
        for jar, path in zip(jars, fetched, strict=True):
            path.rename(flat / jar.file_name)
        shutil.rmtree(home, ignore_errors=True)
        flat.rename(home)
    finally:
        shutil.rmtree(partial)


def _fetch(jars: Sequence[Jar], into: Path, maven_url: str | None, say: Say) -> list[Path]:
    repository = _Repository(into, maven_url, _Progress(sum(jar.size_bytes for jar in jars), say))
    pool = ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="kafka-download")
    try:
        futures = [pool.submit(repository.fetch, jar) for jar in jars]
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


class _Repository:
    """A Maven repository as jgo reads it, with each jar proved against its SHA-256 before it is handed out."""

    def __init__(self, into: Path, url: str | None, progress: _Progress) -> None:
        try:
            from jgo.constants import MAVEN_CENTRAL_URL
            from jgo.maven import MavenContext, PythonResolver
        except ImportError as missing:
            raise NotInstalledError.of(missing) from missing
        self._name = url or "Maven Central"
        self._progress = progress
        self._context: Any = MavenContext(
            resolver=PythonResolver(progress_callback=progress.of_file),
            repo_cache=into / "repository",
            remote_repos={"maven": (url or MAVEN_CENTRAL_URL).rstrip("/")},
            timeout=SILENCE_MAX_S,
        )

    def fetch(self, jar: Jar) -> Path:
        """The path of the jar's verified bytes, after some attempts; DownloadError when they all failed."""
        try:
            for attempt in stamina.retry_context(on=_may_pass, attempts=ATTEMPTS_MAX, timeout=None, wait_initial=0.5):
                with attempt:
                    return self._fetch_once(jar)
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._failure(jar, "it can't be reached, or the connection broke") from problem
        except _DamagedError as problem:
            raise self._failure(jar, str(problem)) from problem
        except (RuntimeError, ValueError) as problem:
            raise self._failure(jar, "it doesn't have the file, or refuses to give it") from problem
        raise AssertionError("retry_context ends by return or raise")

    def _fetch_once(self, jar: Jar) -> Path:
        artifact = self._context.create_dependency(jar.coordinate).artifact
        # jgo takes any file that is there for the artifact, the half of a broken attempt too.
        artifact.cached_path.unlink(missing_ok=True)
        path = Path(artifact.resolve())
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != jar.sha256:
            raise _DamagedError(f"what it gave has the SHA-256 {found}, not {jar.sha256}")
        self._progress.finished(jar)
        return path

    def _failure(self, jar: Jar, why: str) -> DownloadError:
        return DownloadError(
            f"can't download {jar.file_name} of Apache Kafka {KAFKA_VERSION} from {self._name}: {why}. "
            "Check the network and the proxy (HTTPS_PROXY), or name a mirror of Maven Central (maven_url)",
            file=jar.file_name,
        )


class _DamagedError(Exception):
    """The repository gave other bytes than the list says."""


def _may_pass(problem: Exception) -> bool:
    if isinstance(problem, OSError):  # requests' own exceptions are OSErrors too, without a number
        return problem.errno not in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(problem, RuntimeError | ValueError | _DamagedError)


class _Progress:
    """Says how much of the whole has come, once for each tenth. Shared by the downloading threads."""

    def __init__(self, total_bytes: int, say: Say) -> None:
        self._total_bytes = total_bytes
        self._say = say
        self._come_bytes: dict[str, int] = {}
        self._tenths_said = 0
        self._lock = threading.Lock()
        say(f"downloading Apache Kafka {KAFKA_VERSION}, {total_bytes / 1e6:.0f} MB; this is done once")

    def of_file(self, file_name: str, _size_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        """jgo's callback for one attempt at one file: gives what to call with the bytes of each chunk."""
        self._set(file_name, 0)

        def add(chunk_bytes: int) -> None:
            self._set(file_name, self._come_bytes[file_name] + chunk_bytes)

        return nullcontext(add)

    def finished(self, jar: Jar) -> None:
        self._set(jar.file_name, jar.size_bytes)

    def _set(self, file_name: str, come_bytes: int) -> None:
        with self._lock:
            self._come_bytes[file_name] = come_bytes
            come = sum(self._come_bytes.values())
            tenths = come * 10 // self._total_bytes
            if tenths > self._tenths_said:
                self._tenths_said = tenths
                self._say(f"downloading Apache Kafka: {come / 1e6:.0f} of {self._total_bytes / 1e6:.0f} MB")
