"""Running: Kafka, topics, workers, and all of it on one machine."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from versolog import lifetime
from versolog.cli.shown import (
    DEFAULT_DATA,
    Bootstrap,
    Data,
    Fsync,
    KafkaOption,
    Partitions,
    Prefix,
    RegistryUrl,
    Replication,
    err,
    errors_told,
    out,
    settings_of,
)
from versolog.config import Settings

broker_app = typer.Typer(help="The Apache Kafka that versolog brings along.", no_args_is_help=True)
topics_app = typer.Typer(help="The topics on a Kafka cluster.", no_args_is_help=True)


def up(
    data: Data = DEFAULT_DATA,
    http_port: Annotated[int, typer.Option(min=0, max=65_535, help="Of the first worker; 0 takes a free one.")] = 8080,
    kafka_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Default: that of the last run, or a free one.")
    ] = None,
    partitions: Annotated[int, typer.Option(help="Fixed when the topics are created.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes; they share the partitions.")] = 1,
    fsync: Annotated[bool, typer.Option(help="Survive a power cut: every record is flushed to the disk.")] = False,
) -> None:
    """Kafka, its topics and workers with the HTTP API, in the foreground, until Ctrl-C."""
    from versolog.up import Plan, running, until_interrupted

    begun = time.monotonic()
    plan = Plan(data, http_port, kafka_port, partitions, workers, fsync)
    lifetime.interrupt_on_sigterm()
    with (
        errors_told(),
        contextlib.suppress(KeyboardInterrupt),
        running(plan, lambda line: err.print(f"· {line}")) as it,
    ):
        took_s = time.monotonic() - begun
        where = f"http {' '.join(it.http_urls)}  kafka {it.bootstrap}  data {data}"
        print(f"ready  {where}  ({took_s:.1f} s)", flush=True)
        until_interrupted()
    lifetime.interrupt_is_over()


def worker(
    bootstrap: Bootstrap = None,
    data: Annotated[Path | None, typer.Option(help="Where its stores are kept.")] = None,
    http_host: Annotated[str | None, typer.Option(help="The address to bind to.")] = None,
    http_port: Annotated[int | None, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = None,
    advertised_url: Annotated[str | None, typer.Option(help="Where other workers reach this one.")] = None,
    partitions: Partitions = None,
    replication: Replication = None,
    prefix: Prefix = None,
    follow: Annotated[str | None, typer.Option(help="all or none: partitions of others to keep up with.")] = None,
    cache_mib: Annotated[int | None, typer.Option(min=16, help="Memory for all its stores together, in MiB.")] = None,
    fsync: Fsync = None,
    registry_url: RegistryUrl = None,
    kafka: KafkaOption = None,
    address_file: Annotated[Path | None, typer.Option(help="Write the HTTP address here once it is known.")] = None,
    end_with_parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """One worker: it decides and commits its share of the partitions, follows the others, and answers HTTP."""
    with lifetime.importing():
        from versolog.streams.runtime import run_worker
        from versolog.worker import work

    if end_with_parent is not None:
        lifetime.end_with_parent(signal.SIGTERM, end_with_parent)
    with errors_told():
        settings = settings_of(
            bootstrap=bootstrap, data=data, http_host=http_host, http_port=http_port, advertised_url=advertised_url,
            partitions=partitions, replication=replication, prefix=prefix, follow=follow, fsync=fsync,
            registry_url=registry_url, kafka=kafka, cache_mib=cache_mib,
        )  # fmt: skip
        _log_to_stderr(settings)
        run_worker(work(settings, partial(_tell_address, address_file)))


@broker_app.command("start")
def broker_start(
    data: Data = DEFAULT_DATA / "kafka",
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Default: that of the last run, or a free one.")
    ] = None,
) -> None:
    """Start Kafka in the background."""
    from versolog import broker

    with errors_told():
        running = broker.start(data, port, say=lambda line: err.print(f"· {line}"))
        out.print(f"running  kafka {running.bootstrap}  pid {running.pid}  data {data}")


@broker_app.command("stop")
def broker_stop(data: Data = DEFAULT_DATA / "kafka") -> None:
    """Stop the Kafka that was started in the background."""
    from versolog import broker

    with errors_told():
        out.print("stopped" if broker.stop(data) else "it was not running")


@broker_app.command("status")
def broker_status(data: Data = DEFAULT_DATA / "kafka") -> None:
    """Whether Kafka runs, and where; exit status 3 where it does not."""
    from versolog import broker

    with errors_told():
        status = broker.status(data)
        if isinstance(status, broker.Running):
            out.print(f"running  kafka {status.bootstrap}  pid {status.pid}  data {data}")
            return
        out.print("stopped")
    raise typer.Exit(3)


@topics_app.command("create")
def topics_create(
    bootstrap: Bootstrap = None,
    partitions: Partitions = None,
    replication: Replication = None,
    prefix: Prefix = None,
    fsync: Fsync = None,
    kafka: KafkaOption = None,
) -> None:
    """Create the topics that are missing and check those that are there."""
    from versolog.schemas.topics import ensure_topics

    with errors_told():
        settings = settings_of(
            bootstrap=bootstrap, partitions=partitions, replication=replication, prefix=prefix, fsync=fsync,
            kafka=kafka,
        )  # fmt: skip
        ids = ensure_topics(
            settings.client, settings.topics, partitions=settings.partitions, replication=settings.replication,
            fsync=settings.fsync,
        )  # fmt: skip
        out.print(f"ready  {ids.partitions} partitions  {ids.identity}")


def _tell_address(path: Path | None, url: str) -> None:
    structlog.get_logger().info("listening", url=url)
    if path is not None:
        fresh = path.with_suffix(".new")
        fresh.write_text(url)
        fresh.rename(path)


def _log_to_stderr(settings: Settings) -> None:
    """Our own and the libraries' log lines, in one form, to standard error."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last = structlog.processors.JSONRenderer() if settings.log_json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
    ))  # fmt: skip
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for quiet in ("aiokafka", "faust", "mode", "httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
