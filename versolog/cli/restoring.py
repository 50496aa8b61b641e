"""Proving and restoring: digests, the chain, a past version rebuilt from offsets and served."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from versolog.cli.looking import DEFAULT_URL, Json, Url, connected
from versolog.cli.shown import (
    Bootstrap,
    KafkaOption,
    Prefix,
    RegistryUrl,
    err,
    errors_told,
    out,
    print_json,
    progress,
    settings_of,
)
from versolog.config import Settings
from versolog.lifetime import interrupt_on_sigterm
from versolog.schemas.errors import Invalid

AtOption = Annotated[
    str | None, typer.Option("--at", help="A time or a store-wide tag; a version, branch or tag of --group.")
]
GroupOption = Annotated[str | None, typer.Option("--group", help="Only this group.")]


def replay(
    into: Annotated[Path, typer.Option(help="A fresh directory for the result.", show_default=False)],
    at: AtOption = None,
    cut: Annotated[str | None, typer.Option(help="A time or a store-wide tag: the whole store then.")] = None,
    group: GroupOption = None,
    bootstrap: Bootstrap = None, prefix: Prefix = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one a core.")] = None,
    registry_url: RegistryUrl = None, kafka: KafkaOption = None,
) -> None:  # fmt: skip
    """Rebuild a past version from offsets, and print its digest."""
    from versolog.projections.refold import Log
    from versolog.projections.replay import replay as rebuild
    from versolog.schemas.topics import describe

    interrupt_on_sigterm()
    with errors_told(), progress("replaying") as told:
        if at is not None and cut is not None:
            raise Invalid("--at and --cut say the same thing twice; give one of them")
        settings = settings_of(bootstrap=bootstrap, prefix=prefix, registry_url=registry_url, kafka=kafka)
        ids = describe(settings.client, settings.topics)
        log = Log(settings.client, settings.topics, ids, settings.registry)
        begun = time.monotonic()
        manifest = rebuild(log, into, at=at or cut, group=group, processes=processes, progress=told)
        took_s = time.monotonic() - begun
    rate = manifest.commits / took_s
    err.print(f"{manifest.commits:,} commits in {took_s:.1f} s ({rate:,.0f}/s) into {into}", soft_wrap=True)
    print(f"digest {manifest.digest}")


def serve(
    directory: Annotated[Path, typer.Argument(help="What `replay` made.", show_default=False)],
    http_host: Annotated[str, typer.Option(help="The address to bind to.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8090,
) -> None:
    """Serve a restored copy, read-only, until Ctrl-C."""
    from versolog.serve import serve as run

    with errors_told():
        asyncio.run(run(directory, http_host, http_port, lambda url: print(f"ready  http {url}", flush=True)))


def digest(
    group: GroupOption = None,
    at: AtOption = None,
    url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """The digest of a group or of the whole store: the same digest, the same content."""
    with connected(url, as_json) as client:
        found = client.digest(group, at)
        if as_json:
            print_json({"digest": found, "group": group, "at": at})
        else:
            print(f"digest {found}")


def verify(
    group: GroupOption = None,
    data: Annotated[Path | None, typer.Option(help="A worker's directory, whose stores are compared as well.")] = None,
    bootstrap: Bootstrap = None, prefix: Prefix = None, registry_url: RegistryUrl = None, kafka: KafkaOption = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Compute every hash again from Kafka alone, and compare. Exit status 2 where something was altered."""
    with errors_told(as_json):
        settings = settings_of(
            bootstrap=bootstrap, prefix=prefix, data=data, registry_url=registry_url, kafka=kafka
        )  # fmt: skip
        findings = _verify(settings, group, with_stores=data is not None, as_json=as_json)
    if findings:
        raise typer.Exit(2)


def _verify(settings: Settings, group: str | None, *, with_stores: bool, as_json: bool) -> int:
    """Verify partition by partition; answers how many findings there are."""
    from versolog.projections.store import Store
    from versolog.projections.tail import Ends
    from versolog.projections.verify import Verifier
    from versolog.schemas.codec import Codec
    from versolog.schemas.topics import describe, partition_of

    ids = describe(settings.client, settings.topics)
    numbers = range(ids.partitions) if group is None else [partition_of(group, ids.partitions)]
    codec, ends = Codec(settings.registry()), Ends(settings.client)
    commits = findings = 0
    for number in numbers:
        path = settings.data / f"partition-{number}"
        store = Store.open(path, partition=number, codec=codec, read_only=True) if with_stores else None
        try:
            with progress(f"partition {number}") as told:
                verifier = Verifier(number, topics=settings.topics, codec=codec, store=store, group=group)
                verified = verifier.run(settings.client, ends, told)
        finally:
            if store is not None:
                store.close()
        commits += verified.commits
        findings += len(verified.findings)
        for finding in verified.findings:
            if as_json:
                print_json(finding)
            else:
                where = Text(finding.where, style="bold red")
                out.print(where, finding.detail, finding.to_json(), soft_wrap=True)
    compared = " and the stores" if with_stores else ""
    told = "as they were written" if not findings else f"{findings:,} findings"
    err.print(f"{commits:,} commits on {len(numbers)} partitions{compared}: {told}", soft_wrap=True)
    return findings
