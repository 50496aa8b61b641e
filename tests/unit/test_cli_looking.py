"""What the commands that look show, for people and for programs, against a server in this process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.inprocess import Served
from versolog import Client, Transaction

Run = Callable[..., str]
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    running = Served(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def run(served: Served) -> Run:
    """Runs `versolog …`; answers its output with the times taken out."""
    environment = {**os.environ, "VERSOLOG_URL": served.url, "COLUMNS": "200"}

    def call(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "versolog", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
        return TIME.sub("(time)", done.stdout + done.stderr)

    return call


@pytest.fixture
def branched(served: Served) -> None:
    """1 main · 2 makes plan at 1 · 3 plan · 4 main · 5 main merges plan · 6 tags 4"""
    with Client(served.url, author="ann") as db:
        db.put("UA", "flights", "k1", {"gate": {"name": "A1"}, "delay": 0}, message="first")
        db.send(db.transaction("UA").operation("create-branch", name="plan", **{"from": "main"}))
        db.patch("UA", "flights", "k1", {"gate": {"name": "B2"}}, branch="plan", author="bob", message="other gate")
        db.put("UA", "flights", "k2", {"delay": 5}, type="Delayed")
        db.send(db.transaction("UA", message="as planned").operation("merge", source="plan"))
        db.tag("UA", "before", 4)


class Recovering(BaseHTTPRequestHandler):
    """Says twice that it is being taken over, and then that there are no groups."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        status = 503 if self.asked <= 2 else 200
        body = b'{"code": "recovering", "detail": "not yet"}' if status == 503 else b'{"groups": [], "cursor": null}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None: ...


def test_what_is_tried_again_is_said_once_and_not_among_the_answers() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Recovering) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}"
        command = [sys.executable, "-m", "versolog", "groups", "--json", "--url", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        server.shutdown()
        serving.join()
    assert Recovering.asked == 3
    assert (done.stdout, done.stderr) == ("", "· not yet; trying again\n")


def lines(told: str) -> list[Any]:
    return [json.loads(line) for line in told.splitlines()]


@pytest.mark.usefixtures("branched")
def test_a_log_is_drawn_as_a_graph(run: Run) -> None:
    assert run("log", "UA", "--graph").splitlines() == [
        "*   5  (main)  (time)  ann  merge  as planned",
        "|\\",
        "* | 4  (tag: before)  (time)  ann  Delayed",
        "| * 3  (plan)  (time)  bob  write  other gate",
        "|/",
        "* 1  (time)  ann  write  first",
    ]
    assert run("log", "UA", "--graph", "--all") == run("log", "UA", "--graph")
    assert run("log", "UA", "--at", "plan", "--graph", "--limit", "1").splitlines() == [
        "* 3  (plan)  (time)  bob  write  other gate",
        "· there are more commits; --limit shows more",
    ]
    assert lines(run("log", "UA", "--graph", "--json"))[0]["graph"] == {
        "parents": [4, 3], "branches": ["main"], "tags": [],
    }  # fmt: skip
    assert "invalid" in run("log", "UA", "--graph", "--author", "bob", status=1)


@pytest.mark.usefixtures("branched")
def test_a_log_is_searched(run: Run) -> None:
    def found(*options: str) -> list[int]:
        return [entry["version"] for entry in lines(run("log", "UA", "--json", *options))]

    assert found() == [5, 4, 1]
    assert found("--all", "--author", "bob") == [3]
    assert found("--all", "--table", "flights", "--key", "k1") == [5, 3, 1]
    assert found("--grep", "PLANNED", "--operation", "merge") == [5]
    assert found("--type", "Delayed") == [4]
    assert found("--until", "2001-01-01T00:00:00Z") == []
    assert run("log", "UA", "--grep", "plan").splitlines()[1].split() == [
        "5",
        "main",
        "(time)",
        "ann",
        "merge",
        "as",
        "planned",
    ]


@pytest.mark.usefixtures("branched")
def test_differences_are_counted_and_told_by_field(run: Run) -> None:
    assert run("diff", "UA", "1", "5").splitlines() == [
        "version 1 → 5",
        "2 rows differ (1 added, 1 changed)",
        "table    key  field      before  after",
        "flights  k1   gate.name  A1      B2",
        'flights  k2   added              {"delay":5}',
    ]
    since = json.loads(run("diff", "UA", "before...plan", "--json"))
    assert ([row["key"] for row in since["rows"]], since["before"]["version"]) == (["k1"], 1)
    assert run("diff", "UA", "before", "plan", "--merge-base", "--json") == run("diff", "UA", "before...plan", "--json")
    assert run("diff", "UA", "5", "5").splitlines() == ["version 5 → 5", "0 rows differ"]
    assert "1 more; --limit" in run("diff", "UA", "1", "5", "--limit", "1")


@pytest.mark.usefixtures("branched")
def test_a_commit_is_shown_with_its_changes(run: Run) -> None:
    told = run("show", "UA", "5").splitlines()
    assert [line.split() for line in told if line.startswith(("version", "parents", "message"))] == [
        ["version", "5"], ["parents", "[4,3]"], ["message", "as", "planned"],
    ]  # fmt: skip
    assert told[-1].split() == ["flights", "k1", "gate.name", "A1", "B2"]
    assert "1 row changed (1 changed)" in told
    assert json.loads(run("show", "UA", "5", "--json"))["commit"]["parents"] == [4, 3]


@pytest.mark.usefixtures("branched")
def test_blame_names_the_commit_on_the_branch(run: Run) -> None:
    assert [line.split()[:3] for line in run("blame", "UA", "flights", "k1").splitlines()] == [
        ["field", "value", "version"], ["delay", "0", "1"], ["gate.name", "B2", "3"],
    ]  # fmt: skip


def test_what_people_wrote_is_shown_as_they_wrote_it(served: Served, run: Run) -> None:
    with Client(served.url, author="[red]ann[/]") as db:
        db.put("UA", "[t]", "[bold]", {"x": "[/] :smile:"}, message="[link]")
    row = '{"x":"[/] :smile:"}'
    assert row in run("rows", "UA", "[t]")
    assert row in run("history", "UA", "[t]", "[bold]")
    assert "[red]ann[/]" in run("log", "UA")
    assert "'[/x]'" in run("get", "UA", "[t]", "[/x]", status=1)


def test_what_is_piped_is_not_cut_and_says_where_there_is_more(served: Served, run: Run) -> None:
    row = {"text": "long " * 60}
    with Client(served.url) as db:
        list(db.send_many(Transaction("UA").put("t", f"k{number:04}", row) for number in range(1_100)))
    told = run("rows", "UA", "t", "--limit", "3").splitlines()
    assert [line for line in told if row["text"] in line] == told[1:4]
    assert told[4:] == ["· there are more rows; --limit shows more"]
    assert "more" not in run("rows", "UA", "t", "--limit", "1100")
    assert run("read", "UA/t").count("k0") + run("read", "UA/t").count("k1") == 1_100
    (read,) = lines(run("read", "UA/t", "--json"))
    assert [row["key"] for row in read["results"][0]["rows"]] == [f"k{number:04}" for number in range(1_100)]


def test_groups_are_read_together_and_the_whole_store_is_tagged(served: Served, run: Run) -> None:
    with Client(served.url) as db:
        tx = db.transaction(None)
        tx.group("a").put("t", "k/1", {"n": 1})
        tx.group("b").put("t", "k", {"n": 2})
        tx.send()
    run("tag-store", "before", "--author", "ann")
    with Client(served.url) as db:
        db.put("b", "t", "k", {"n": 3})
    told = run("read", "a/t/k%2F1", "b/t", "--at", "before").splitlines()
    assert [line.split()[-1] for line in told[2:]] == ['{"n":1}', '{"n":2}']
    (tag,) = lines(run("tags", "--json"))
    (found,) = lines(run("read", "b/t/k", "--at", "before", "--json"))
    assert (tag["name"], tag["at"]) == ("before", found["at"])
    assert run("tags").splitlines()[1].startswith("before")
    assert "unknown-ref" in run("read", "b/t/k", "--at", "never", status=1)
    assert "GROUP/TABLE" in run("read", "b", status=1)
    assert run("transactions", "--waiting").splitlines() == ["id  partition  groups  since  waited  for"]
