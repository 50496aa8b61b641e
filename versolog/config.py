"""Settings of a worker: from the command line, the environment (VERSOLOG_…) and a .env file, in this order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from versolog.schemas.registry import ConfluentRegistry, TopicRegistry, registry_of
from versolog.schemas.topics import PREFIX, Topics


def _in_small_letters(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class Settings(BaseSettings):
    """Everything that can be set. Each field's environment variable is its name with VERSOLOG_ before it."""

    model_config = SettingsConfigDict(env_prefix="VERSOLOG_", env_file=".env", extra="ignore", frozen=True)

    bootstrap: str = Field("127.0.0.1:9092", description="Kafka brokers, host:port and commas between.")
    kafka: dict[str, Any] = Field(
        default_factory=dict, description="More settings for every Kafka client, as JSON: librdkafka's names."
    )
    prefix: str = Field(PREFIX, description="Begins the names of the topics and of all that is ours on the cluster.")
    partitions: int = Field(8, ge=1, le=1_024, description="Partitions of the topics, fixed when they are created.")
    replication: int = Field(1, ge=1, description="Replication factor of topics that are created.")
    fsync: bool = Field(False, description="Have Kafka flush every record to the disk before it is acknowledged.")
    registry_url: str | None = Field(None, description="A Schema Registry to use in place of the schemas topic.")
    data: Path = Field(Path("versolog-data"), description="Where the stores are kept. Each worker has its own.")
    follow: Literal["all", "none"] = Field("all", description="Which partitions of other workers are kept up with.")
    cache_mib: int = Field(
        160, ge=16, description="Memory for the stores of all partitions together, in MiB: blocks of their files, and "
        "up to half of it writes that are in no file yet. At full speed a worker takes about 370 MiB besides.",
    )  # fmt: skip
    http_host: str = Field("127.0.0.1", description="The address that HTTP binds to.")
    http_port: int = Field(8080, ge=0, le=65_535, description="0 takes a free one.")
    advertised_url: str | None = Field(None, description="Where other workers reach this one, if not as it binds.")
    session_timeout_s: float = Field(
        10.0, ge=1, description="A worker that is silent for so long loses its partitions. The same for all workers."
    )
    kafka_wait_s: float = Field(60.0, ge=0, description="For how long a worker that starts waits for Kafka to answer.")
    keep_transactions_days: float = Field(
        7.0, gt=0, description="Decided transactions older than this are deleted from `transactions`."
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_in_small_letters)] = Field(
        "info", description="debug, info, warning or error."
    )
    log_json: bool = Field(False, description="Log as JSON lines.")
    failpoints: str = Field("", description="Crash tests only: where the process kills itself.")

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    @property
    def client(self) -> dict[str, Any]:
        """librdkafka settings that every client starts from."""
        return {"bootstrap.servers": self.bootstrap, **self.kafka}

    @property
    def registry(self) -> Callable[[], TopicRegistry | ConfluentRegistry]:
        """Makes a way to the schema ids, in other processes too."""
        return partial(registry_of, self.client, self.topics, self.registry_url)

    @property
    def group_id(self) -> str:
        """The consumer group that shares out the partitions."""
        return f"{self.prefix}worker"
