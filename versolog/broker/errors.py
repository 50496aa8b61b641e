"""What can go wrong with the embedded broker, each as an error that says what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from versolog.schemas.errors import VersologError

LINES_SHOWN_MAX = 8


class BrokerError(VersologError):
    """The embedded broker can't do what was asked of it."""

    code = "broker-failed"


class NotInstalledError(BrokerError):
    """The packages that bring Java and fetch Kafka are not installed."""

    code = "broker-not-installed"

    @classmethod
    def of(cls, missing: ImportError) -> NotInstalledError:
        return cls(f"the embedded broker needs {missing.name}: pip install 'versolog[broker]'", missing=missing.name)


class DownloadError(BrokerError):
    """Kafka's jars could not be fetched. Nothing half-made is left; a later start fetches them anew."""

    code = "broker-download-failed"


class AlreadyRunningError(BrokerError):
    """A broker runs on this data directory already; `facts` hold its `pid` and `bootstrap` where they are known."""

    code = "broker-already-running"


class PortTakenError(BrokerError):
    """Another program listens on the port."""

    code = "broker-port-taken"


class DataDirectoryError(BrokerError):
    """The data directory can't be used: unwritable, incomplete, another program's or a newer Kafka's."""

    code = "broker-data-directory"


class DiskFullError(BrokerError):
    """There is no room on the disk."""

    code = "broker-disk-full"


class JavaError(BrokerError):
    """The Java virtual machine itself didn't start."""

    code = "broker-java-failed"


class StartError(BrokerError):
    """Kafka ended, or didn't answer in time, while it was started; `detail` ends with its last words."""

    code = "broker-start-failed"


_SIGNS: Sequence[tuple[type[BrokerError], str, Sequence[str]]] = (
    (DiskFullError, "there is no room left on the disk", ("No space left on device", "Disk quota exceeded")),
    (PortTakenError, "a port that it was given is taken by another program", ("Address already in use",)),
    (
        AlreadyRunningError,
        "another Kafka runs on this data directory",
        ("Failed to acquire lock on file .lock",),
    ),
    (
        JavaError,
        "the Java virtual machine doesn't start",
        (
            "Could not create the Java Virtual Machine",
            "Error occurred during initialization of VM",
            "There is insufficient memory for the Java Runtime Environment",
            "cannot execute Java",
            "error while loading shared libraries",
        ),
    ),
    (
        DownloadError,
        "its jars are damaged; delete their cache (~/.cache/versolog if none was named) to have them fetched anew",
        ("Could not find or load main class", "ClassNotFoundException", "NoClassDefFoundError", "ClassFormatError"),
    ),
    (
        DataDirectoryError,
        "its data directory is broken",
        (
            "meta.properties",
            "Invalid cluster.id",
            "Stored node id",
            "AccessDeniedException",
            "Permission denied",
            "Read-only file system",
            "CorruptRecordException",
            "Found directory",
            "No FeatureLevelRecord for metadata.version",
            "Error while reading the Quorum status",
        ),
    ),
)
"""What Kafka and Java write when they fail, most specific first: a full disk shows as a broken directory as well."""

_NOISE = ("at ", "... ", "WARNING: ")


def diagnose(what: str, output: str) -> BrokerError:
    """The typed error for a Kafka that ended by itself, from what it wrote; `what` begins the sentence."""
    lines = last_words(output)
    shown = "".join(f"\n  {line}" for line in lines) or " It wrote nothing."
    for kind, cause, signs in _SIGNS:
        if any(sign in output for sign in signs):
            return kind(f"{what}: {cause}.{shown}", output=lines)
    return StartError(f"{what}.{shown}", output=lines)


def last_words(output: str) -> list[str]:
    """The last lines of `output` that tell something: warnings, errors and causes, no stack frames."""
    lines = [line.strip() for line in output.splitlines()]
    told = [line for line in lines if line and " INFO " not in line and not line.startswith(_NOISE)]
    return list(dict.fromkeys(told))[-LINES_SHOWN_MAX:]
