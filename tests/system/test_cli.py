"""The command line, from the outside, against a real worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(cluster: Cluster) -> Run:
    """Runs `versolog …` against a worker."""
    worker = cluster.start("w1")
    cluster.owned()
    environment = {
        **os.environ,
        "VERSOLOG_URL": worker.url,
        "VERSOLOG_BOOTSTRAP": cluster.kafka["bootstrap.servers"],
        "VERSOLOG_PREFIX": cluster.topics.prefix,
        "VERSOLOG_DATA": str(cluster.data("w1")),
        "COLUMNS": "200",
    }

    def call(*arguments: str, status: int = 0, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "versolog", *arguments]
        done = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return call


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_main_job_on_the_command_line(run: Run, tmp_path: Path) -> None:
    assert run("put", "UA", "flights", "k1", '{"delay": 1, "to": "IAH"}', "--author", "ops").stdout.startswith(
        "version 1 of UA"
    )
    run("put", "UA", "flights", "k/2", '{"delay": 30}')
    run("tag", "UA", "morning", "-m", "before the release")
    run("patch", "UA", "flights", "k1", '{"delay": 60}', "--author", "release")
    run("delete", "UA", "flights", "k/2")

    assert json.loads(run("get", "UA", "flights", "k1").stdout) == {"delay": 60, "to": "IAH"}
    assert json.loads(run("get", "UA", "flights", "k1", "--at", "morning").stdout) == {"delay": 1, "to": "IAH"}
    assert "unknown-row" in run("get", "UA", "flights", "k/2", status=1).stderr
    found = lines(run("rows", "UA", "flights", "--at", "morning", "--json"))
    assert [(row["key"], row["version"]) for row in found] == [("k/2", 2), ("k1", 1)]
    past = lines(run("history", "UA", "flights", "k1", "--json"))
    assert [(entry["version"], entry["author"]) for entry in past] == [(4, "release"), (1, "ops")]
    assert "release" in run("blame", "UA", "flights", "k1").stdout
    difference = json.loads(run("diff", "UA", "morning", "main", "--json").stdout)
    assert difference["counts"]["rows"] == 2
    table = run("diff", "UA", "morning").stdout
    assert "2 rows differ" in table
    assert "delay" in table
    assert [entry["version"] for entry in lines(run("log", "UA", "--json"))] == [5, 4, 2, 1]
    assert [entry["version"] for entry in lines(run("log", "UA", "--author", "release", "--json"))] == [4]
    assert run("log", "UA", "--graph", "--limit", "2").stdout.startswith("* 5  (main)")
    assert "1 row changed" in run("show", "UA", "4").stdout

    rehearsed = run("rollback", "UA", "--to", "morning", "--dry-run").stdout
    assert "2 rows would change" in rehearsed
    assert "head-mismatch" in run("rollback", "UA", "--to", "morning", "--expect-head", "1", status=1).stderr
    run("rollback", "UA", "--to", "morning", "--author", "ops")
    assert json.loads(run("get", "UA", "flights", "k/2").stdout) == {"delay": 30}
    assert lines(run("tags", "UA", "--json"))[0]["version"] == 2
    assert lines(run("groups", "--json"))[0]["group"] == "UA"

    replayed = run("replay", "--group", "UA", "--at", "morning", "--into", str(tmp_path / "then")).stdout
    assert replayed == run("digest", "--group", "UA", "--at", "morning").stdout
    whole = run("replay", "--into", str(tmp_path / "now")).stdout
    assert whole == run("digest").stdout
    assert "as they were written" in run("verify").stderr
    assert "stores" in run("verify", "--data", str(tmp_path / "now")).stderr


def test_a_branch_is_merged_conflicts_are_resolved_and_undone_on_the_command_line(run: Run, tmp_path: Path) -> None:
    run("put", "UA", "flights", "k/1", '{"gate": "A1", "crew": "x"}')
    assert run("branch", "UA", "plan").stdout.startswith("version 2 of UA")
    run("patch", "UA", "flights", "k/1", '{"gate": "C3", "crew": "y"}', "--branch", "plan")
    run("put", "UA", "flights", "k2", "{}", "--branch", "plan")
    run("patch", "UA", "flights", "k/1", '{"gate": "B2", "crew": "z"}')
    assert [one["name"] for one in lines(run("branch", "UA", "--json"))] == ["main", "plan"]
    stand = lines(run("branch", "UA", "plan", "--against", "main", "--json"))[0]
    assert (stand["ahead"], stand["behind"], stand["bases"]) == (2, 1, [1])
    assert "ahead of main" in run("branch", "UA", "--against", "main").stdout

    gate = {"table": "flights", "key": "k/1", "path": ["gate"], "code": "both-changed", "base": "A1"}
    gate |= {"ours": "B2", "theirs": "C3"}
    told = lines(run("conflicts", "UA", "plan", "--json", status=3))
    assert [one["path"] for one in told] == [["crew"], ["gate"]]
    assert told[1] == gate
    refused = run("merge", "UA", "plan", status=3)
    assert "flights/k/1/gate" in refused.stdout
    assert refused.stderr.startswith("merge-conflict: 2 conflicts")
    assert "--take ours=flights/k/1/crew ends one" in refused.stderr
    problem = json.loads(run("merge", "UA", "plan", "--json", status=3).stdout)
    rehearsed = json.loads(run("merge", "UA", "plan", "--json", "--dry-run", status=3).stdout)
    assert problem["conflicts"] == rehearsed["conflicts"] == told
    assert (problem["code"], problem["total"], problem["at"]) == ("merge-conflict", 2, rehearsed["at"])

    wrong = run("merge", "UA", "plan", "--take", "ours=flights/k9", status=1)
    assert "flights/k/1/crew" in wrong.stderr, "it names the conflicts there are"
    file = tmp_path / "ends.json"
    for odd, why in ((b"\xff", "no text in UTF-8"), (b"{", f"{file}: not JSON"), (b"[{}]", "a `take` of its own")):
        file.write_bytes(odd)
        assert why in run("merge", "UA", "plan", "--resolve", str(file), status=1).stderr
    file.write_text("\n".join(json.dumps(one | {"take": {"value": "E5"}}) for one in told if one["path"] == ["gate"]))
    ends = ("--resolve", str(file), "--take", "theirs=flights/k/1/crew")
    assert "2 rows would change" in run("merge", "UA", "plan", *ends, "--dry-run").stdout
    for more in ((), ("--dry-run",)):
        assert "head-mismatch" in run("merge", "UA", "plan", *ends, "--expect-head", "3", *more, status=1).stderr
    run("merge", "UA", "plan", *ends, "-m", "as planned", "--expect-head", "5")
    assert json.loads(run("get", "UA", "flights", "k/1").stdout) == {"crew": "y", "gate": "E5"}
    assert "nothing-to-merge" in run("merge", "UA", "plan", status=1).stderr

    merged = str(lines(run("log", "UA", "--json", "--limit", "1"))[0]["version"])
    assert "say which parent" in run("revert", "UA", merged, status=1).stderr
    assert "head-mismatch" in run("revert", "UA", merged, "--parent", "1", "--expect-head", "5", status=1).stderr
    run("revert", "UA", merged, "--parent", "1")
    assert json.loads(run("get", "UA", "flights", "k/1").stdout) == {"crew": "z", "gate": "B2"}
    run("cherry-pick", "UA", "4")
    assert json.loads(run("get", "UA", "flights", "k2").stdout) == {}
    picked = run("cherry-pick", "UA", "3", "--take", "ours=flights/k/1", "--json")
    assert lines(picked)[0]["outcome"] == "committed"
    run("put", "UA", "flights", "k3", "{}", "--branch", "plan")
    assert "say `force`" in run("branch", "UA", "plan", "--delete", status=1).stderr
    run("branch", "UA", "plan", "--delete", "--force")
    assert "no branch or tag 'plan'" in run("conflicts", "UA", "plan", status=1).stderr


def test_errors_are_one_line_and_the_same_as_over_http(run: Run) -> None:
    refused = run("put", "UA", "flights", "k1", "[1]", status=1)
    assert refused.stderr.startswith("invalid:")
    assert refused.stderr.count("\n") == 1
    problem = json.loads(run("get", "nothing", "t", "k", "--json", status=1).stdout)
    assert (problem["code"], problem["status"]) == ("unknown-group", 404)
    assert "not-a-ref~" in run("get", "UA", "t", "k", "--at", "not-a-ref~x", status=1).stderr


def test_a_transaction_is_sent_as_http_takes_it(run: Run) -> None:
    tx = {"id": "mine", "group": "g", "changes": [{"op": "add", "table": "t", "key": "k", "row": {"n": 2}}]}
    for _ in range(2):  # the second is a retry
        [outcome] = lines(run("send", "-", "--json", text=json.dumps(tx)))
        assert (outcome["id"], outcome["version"]) == ("mine", 1)
    assert lines(run("outcome", "mine"))[0]["outcome"] == "committed"


def test_checks_are_set_shown_and_taken_away(run: Run, tmp_path: Path) -> None:
    run("put", "UA", "bookings", "b1", '{"seat": "12A"}')
    file = tmp_path / "checks.json"
    file.write_text('{"one a seat": {"unique": "seat"}}')
    run("checks", "UA", "bookings", str(file), "--author", "ops")
    assert "one a seat" in run("checks", "UA", "bookings").stdout
    [shown] = lines(run("checks", "UA", "bookings", "--json"))
    assert shown == {"checks": {"one a seat": {"unique": "seat"}}, "version": 2}
    [problem] = lines(run("put", "UA", "bookings", "b2", '{"seat": "12A"}', "--json", status=1))
    assert (problem["code"], problem["key"], problem["other"]) == ("check-failed", "b2", "b1")
    assert "b2" in run("put", "UA", "bookings", "b2", '{"seat": "12A"}', status=1).stderr
    run("checks", "UA", "bookings", "--delete")
    [outcome] = lines(run("checks", "UA", "bookings", "-", "--json", text="{}"))
    assert outcome["version"] == 4
    assert "unknown-checks" in run("checks", "UA", "bookings", status=1).stderr
    assert "can't be meant" in run("checks", "UA", "bookings", str(file), "--delete", status=1).stderr
    assert "no-file can't be read" in run("checks", "UA", "bookings", "no-file", status=1).stderr
