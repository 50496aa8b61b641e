"""The pure parts of the benchmarks: figures, tables, pictures, and the checks that come before a speed is told."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest

from benchmarks import __main__ as command
from benchmarks import flames, large, pictures, report
from benchmarks.__main__ import _kept_logs
from benchmarks.bare import Server, bare_server
from benchmarks.bench import Round, Sizes
from benchmarks.load import built_in, load, whole_answer
from benchmarks.logs import check_chain
from benchmarks.machine import PACKAGES, Load, cpu_s, described, load_now, memory_mib
from benchmarks.measured import (
    Latency,
    Result,
    Seen,
    Series,
    Side,
    Speed,
    WrongResultError,
    compared,
    percentile,
    speed,
)
from benchmarks.workloads import Expected, Workload, five_changes, one_change, with_stock
from versolog.streams.state import NO_HASH
from versolog.streams.transaction import Transaction


def test_percentiles_are_samples_by_nearest_rank() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile(range(1, 101), 1.0) == 100
    assert percentile([7.0], 0.01) == 7.0
    assert Latency.of([0.001] * 98 + [0.2, 0.3]) == Latency(1.0, 200.0)


def test_a_series_has_a_median_a_range_and_ratios_of_the_same_round() -> None:
    series = Series.of([30.0, 10.0, 20.0])
    assert (series.median, series.low, series.high) == (20.0, 10.0, 30.0)
    assert series.over(Series.of([60.0, 10.0, 80.0])).values == (0.5, 1.0, 0.25)
    with pytest.raises(ValueError):
        series.over(Series.of([1.0]))


def test_speed_is_what_was_counted_between_two_moments() -> None:
    assert speed(Seen(1.0, 0.5, 1_000), Seen(3.0, 1.5, 5_000)) == Speed(2_000.0, 250.0)
    for last in (Seen(1.0, 0.5, 2_000), Seen(2.0, 0.5, 1_000)):
        with pytest.raises(WrongResultError):
            speed(Seen(1.0, 0.5, 1_000), last)


@pytest.mark.parametrize(
    ("better", "target", "met"),
    [("more", 20.0, True), ("more", 21.0, False), ("less", 20.0, True), ("less", 19.0, False)],
)
def test_the_median_meets_the_target_or_does_not(better: Any, target: float, met: bool) -> None:
    result = Result("x", "/s", Series.of([10.0, 20.0, 90.0]), "", target=target, better=better)
    assert result.met is met
    assert Result("x", "/s", Series.of([1.0]), "").met is None


def _results() -> list[Result]:
    ours, floor = [Speed(15_000.0, 50.0), Speed(10_000.0, 60.0)], [Speed(60_000.0, 5.0), Speed(80_000.0, 7.0)]
    return [
        compared("commits", ours, "all of them", {"raw": floor}, 15_000.0),
        Result("write: p50", "ms", Series.of([7.25, 7.75]), "each of them", target=25.0, better="less"),
        Result("write: p99", "ms", Series.of([30.0, 31.0]), "each of them"),
    ]


def test_the_table_tells_medians_ranges_ratios_and_targets() -> None:
    assert list(report.table(_results()))[2:] == [
        "| **commits** | **12,500/s** | 10,000/s – 15,000/s | 55 µs | | ≥ 15,000/s: **missed** |",
        "| raw | 70,000/s | 60,000/s – 80,000/s | 6 µs | 0.19× | |",
        "| **write: p50** | **7.5 ms** | 7.2 ms – 7.8 ms |  | | ≤ 25.0 ms: met |",
        "| **write: p99** | **30.5 ms** | 30.0 ms – 31.0 ms |  | |  |",
    ]


@pytest.mark.parametrize(
    ("better", "aimed", "told"),
    [("more", 0.75, "≥ 0.75×"), ("more", 0.8, "≥ 0.8×"), ("less", 0.75, "≤ 0.75×"), ("less", 0.7, "≤ 0.7×")],
)
def test_a_ratio_has_a_target_too(better: Any, aimed: float, told: str) -> None:
    side = Side("one", Series.of([40.0, 20.0]), ratio_target=aimed)
    result = Result("two", "/s", Series.of([30.0, 15.0]), "", (side,), 20.0, better)
    is_met = (aimed <= 0.75) if better == "more" else (aimed >= 0.75)
    assert result.met_beside(side) is is_met
    met = "met" if is_met else "**missed**"
    assert list(report.table([result]))[-1].endswith(f"| 0.75× | {told}: {met} |")
    assert list(report.targets([result]))[2:] == [
        f"| two: {told[0]} 20/s | 22/s | {'met' if better == 'more' else '**missed**'} |",
        f"| two: {told} of *one* | 0.75× | {met} |",
    ]


def test_the_targets_are_listed_without_what_has_none() -> None:
    assert list(report.targets(_results()))[2:] == [
        "| commits: ≥ 15,000/s | 12,500/s | **missed** |",
        "| write: p50: ≤ 25.0 ms | 7.5 ms | met |",
    ]


def _run(results: list[Result], *, fsync: bool = False) -> report.Run:
    machine = dict.fromkeys(PACKAGES, "1.0") | {
        "cores": 2, "processor": "Abacus", "memory_gib": 8.0, "system": "Linux 6", "python": "3.11", "kafka": "4.3.1",
        "librdkafka": "2.16", "load_generator": "wrk 4",
    }  # fmt: skip
    rounds = [Round("commits", 1, Load((1.0, 0.5, 0.2), 0.05)), Round("commits", 2, Load((3.0, 0.5, 0.2), 0.25))]
    return report.Run(datetime(2026, 1, 2, 3, 4, tzinfo=UTC), Sizes(2, fsync=fsync), machine, rounds, results, 90.0)


def test_the_report_says_on_what_and_beside_what_it_was_measured() -> None:
    told = _run(_results()).markdown()
    assert "2026-01-02 03:04 UTC in 1.5 minutes on 2 cores (Abacus)" in told
    assert "**fsync off**" in told
    assert "kept 15% of the processors busy (5% to 25%), and the load average was 2.0 (1.0 to 3.0" in told
    assert "Apache Kafka 4.3.1" in told
    assert "- commits: all of them.\n- write: each of them." in told
    assert "**fsync on**" in _run(_results(), fsync=True).markdown()


def test_the_figures_are_kept_for_programs_too(tmp_path: Path) -> None:
    json, markdown = report.write(_run(_results()), tmp_path / "results")
    told = orjson.loads(json.read_bytes())
    assert json.name == "2026-01-02-030400.json"
    assert told["sizes"] == {"rounds": 2, "scale": 1.0, "partitions": 8, "fsync": False, "full": False}
    assert told["rounds"][1] == {"benchmark": "commits", "number": 2, "average": [3.0, 0.5, 0.2], "busy": 0.25}
    assert told["results"][0]["values"] == [15_000.0, 10_000.0]
    assert told["results"][0]["met"] is False
    (raw,) = told["results"][0]["beside"]
    assert (raw["name"], raw["values"], raw["processor_us"]) == ("raw", [60_000.0, 80_000.0], [5.0, 7.0])
    assert (raw["ratio"], raw["ratio_target"], raw["met"]) == (0.1875, None, None)
    assert "| **commits** |" in markdown.read_text()


def test_what_stands_between_the_markers_is_replaced_and_nothing_else() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    fresh = report.put_between_markers(page, "new\n")
    assert fresh == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.put_between_markers(fresh, "new") == fresh
    with pytest.raises(ValueError):
        report.put_between_markers("no markers", "new")


def _texts(svg: str) -> list[str]:
    return [(text.text or "").strip() for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def _width(svg: str, color: str) -> float:
    """Of the one bar that is filled with that color."""
    paths = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")
    (bar,) = (path.attrib["d"] for path in paths if f"fill: {color}" in path.attrib.get("style", ""))
    places = [float(x) for x, _ in re.findall(r"([\d.]+) ([\d.]+)", bar)]
    return max(places) - min(places)


def test_the_picture_of_speeds_has_a_bar_for_each_side_of_each_comparison() -> None:
    svg = pictures.speeds(_results())
    assert [text.split() for text in _texts(svg)] == [["12,500/s", "versolog"], ["70,000/s", "raw"], ["commits"]]
    assert svg == pictures.speeds(_results())
    ours, raw = (_width(svg, color) for color in (pictures.OURS, pictures.OTHERS))
    assert ours / raw == pytest.approx(12_500 / 70_000, rel=0.01)


def test_the_picture_of_growth_has_a_line_for_each_question_and_a_panel_for_what_grows() -> None:
    few = Side("the same after 10 commits", Series.of([1.0]), size=10)
    asked = [
        Result("a log, after 1,000 commits", "ms", Series.of([1.5]), "", (few,), grows_with="commits", size=1_000),
        Result("a branch", "ms", Series.of([2.0]), "", (few,), grows_with="rows", size=1_000),
    ]
    texts = _texts(pictures.growth([*_results(), *asked]))
    assert {"a log", "a branch", "commits", "rows", "milliseconds"} <= set(texts)


def test_the_reference_in_the_readme_is_the_one_in_the_file() -> None:
    told = orjson.loads(command.REFERENCE.read_bytes())
    table = command.README.read_text().partition(report.BEGIN)[2].partition(report.END)[0]
    named = re.findall(r"^\| \*\*(.+?)\*\* \| \*\*(.+?)\*\*", table, re.MULTILINE)
    assert named == [(each["name"], report.number(each["median"], each["unit"])) for each in told["results"]]
    assert len(named) > 10


# Workloads


def test_rows_are_worked_out_from_what_was_sent() -> None:
    sent = [
        Transaction("g").put("t", "a", {"n": 1, "gone": True}),
        Transaction("other").put("t", "a", {"n": 9}),
        Transaction("g").patch("t", "a", {"gone": None, "more": "x"}).add("t", "b", {"count": 2}),
        Transaction("g").add("t", "b", {"count": 3, "late": -1}),
    ]
    workload = Workload("some", sent)
    assert workload.rows_at("g", 1) == {("t", "a"): Expected(1, {"n": 1, "gone": True})}
    assert workload.rows_at("g", 3) == {
        ("t", "a"): Expected(2, {"n": 1, "more": "x"}),
        ("t", "b"): Expected(3, {"count": 5, "late": -1}),
    }
    assert [tx.id for tx in workload.by_group["other"]] == [sent[1].id]


def test_synthetic_transactions_have_the_changes_that_they_are_named_for() -> None:
    for workload, changes in ((one_change(200), 1), (five_changes(200), 5)):
        assert {len(tx.to_json()["changes"]) for tx in workload.transactions} == {changes}
        assert len({tx.id for tx in workload.transactions}) == 200
    stocked = with_stock(one_change(10), 250)
    assert len(stocked.by_group["stock"]) == 3
    assert sorted(key for _, key in stocked.rows_at("stock", 3)) == [f"item-{number:06}" for number in range(250)]


# The check of what a worker committed


def _commits(workload: Workload) -> list[tuple[dict[str, Any], bytes]]:
    made = []
    heads: dict[str, tuple[int, bytes]] = {}
    for number, tx in enumerate(workload.transactions):
        version, hash_ = heads.get(tx.home, (0, NO_HASH))
        record = {"group": tx.home, "version": version + 1, "previous_hash": hash_, "transaction_id": tx.id}
        heads[tx.home] = version + 1, (number + 1).to_bytes(32, "big")
        made.append((record, heads[tx.home][1]))
    return made


def test_commits_of_all_transactions_in_an_unbroken_chain_pass() -> None:
    workload = one_change(130)
    check_chain(_commits(workload), workload)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda commits: commits.pop(), "1 transactions of .* were committed, and 2 sent"),
        (lambda commits: commits.pop(0), "version 2 of group-00 does not follow on version 0"),
        (lambda commits: commits.append(commits[-1]), "does not follow"),
        (lambda commits: commits[64][0].update(previous_hash=NO_HASH), "version 2 of group-00 does not follow"),
        (lambda commits: commits[3][0].update(transaction_id="another"), "is transaction another"),
    ],
)
def test_a_missing_repeated_or_wrong_commit_is_found(spoil: Any, why: str) -> None:
    workload = one_change(128)
    commits = _commits(workload)
    spoil(commits)
    with pytest.raises(WrongResultError, match=why):
        check_chain(commits, workload)


# Load


def test_an_answer_is_whole_when_it_is_as_long_as_it_says() -> None:
    head = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\nDate: x\r\n\r\n"
    assert whole_answer(head[:-1]) is None
    assert whole_answer(head + b"1234") is None
    assert whole_answer(head + b"12345") == (201, b"12345")
    with pytest.raises(WrongResultError, match="does not say its length"):
        whole_answer(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with bare_server(b"constant", [(b"content-length", b"8"), (b"content-type", b"text/plain")]) as started:
        yield started


def test_the_built_in_generator_asks_over_and_over(server: Server) -> None:
    done = built_in(server.host, server.port, ["/a", "/b?c=d"], 0.5)
    assert done.answered > 50
    assert 0 < done.latency.p50_ms <= done.latency.p99_ms < 500


def test_the_built_in_generator_tells_of_a_server_that_is_gone() -> None:
    with bare_server(b"", [(b"content-length", b"0")]) as gone:
        pass
    with pytest.raises(ConnectionRefusedError):
        built_in(gone.host, gone.port, ["/"], 0.1)


def test_load_tells_the_processor_time_of_the_server(server: Server) -> None:
    done = load(server, ["/a"], 1.0)
    assert done.speed.per_s > 50
    assert 0 < done.speed.cpu_us < 10_000


# Profiles and the machine


FOLDED = ["run;decide;encode 60", "run;decide;decide;encode 20", "run;wait 20"]


def test_a_function_that_calls_itself_counts_once() -> None:
    shares = flames.shares(flames.read(FOLDED))
    assert shares == {"run": (1.0, 0.0), "decide": (0.8, 0.0), "encode": (0.8, 0.8), "wait": (0.2, 0.2)}
    assert "  80.0%    0.0%  decide\n" in flames.told_shares(flames.read(FOLDED))


def test_a_thread_that_waits_for_work_is_idle() -> None:
    pool = "Thread.run (threading.py:971);_worker (concurrent/futures/thread.py:69)"
    idle, busy = flames.read([f"{pool} 7", f"{pool};_WorkItem.run (concurrent/futures/thread.py:53) 3"])
    assert flames.is_idle(idle)
    assert not flames.is_idle(busy)


def test_frames_that_only_lead_to_ours_are_left_out() -> None:
    (stack,) = flames.read(
        ["main (typer/core.py:1);Thread.run (threading.py:1);decide (versolog/streams/decide.py:9) 5"]
    )
    assert flames.without_launching(stack) == (("decide (versolog/streams/decide.py:9)",), 5)


def test_a_flame_graph_is_as_wide_as_its_shares() -> None:
    svg = ElementTree.fromstring(flames.drawn("a <worker>", flames.read([*FOLDED, "run;rare 0"])))
    found = {}
    for box in svg.iter("{http://www.w3.org/2000/svg}g"):
        title, frame, *_ = box
        assert title.text is not None
        found[title.text] = float(frame.attrib["width"]) / flames.WIDTH
    assert found["run 100.0%"] == pytest.approx(1.0)
    assert found["decide 80.0%"] == pytest.approx(0.8)
    assert found["wait 20.0%"] == pytest.approx(0.2)
    assert not any(name.startswith("rare") for name in found)


def test_the_machine_is_looked_at() -> None:
    now = load_now()
    assert 0 <= now.busy <= 1
    assert re.fullmatch(r"load [\d.]+ [\d.]+ [\d.]+, \d+% busy with other things", str(now))
    before = cpu_s(os.getpid())
    assert cpu_s(os.getpid()) >= before > 0
    assert described()["cores"] >= 1


def test_the_command_knows_its_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["nonesuch"])
    assert (
        "there is no benchmark nonesuch; there are commits, counters, replay, http, versioning"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        command.main(["commits", "--reference"])
    assert "the reference has all benchmarks in it" in capsys.readouterr().err
    assert Sizes(scale=0.5).of(60_000) == 30_000
    assert Sizes(scale=0.001).of(60_000) == 5_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_benchmarks_run_and_get_right_results(tmp_path: Path) -> None:
    assert command.main(["--rounds", "1", "--scale", "0.15", "--results", str(tmp_path)]) == 0
    (told,) = tmp_path.glob("*.json")
    assert all(each["median"] > 0 for each in orjson.loads(told.read_bytes())["results"])


@pytest.mark.parametrize(("rows", "long"), [(1_000, 500), (777, 250), (500, 500)])
def test_a_large_store_has_the_rows_and_histories_that_it_says(rows: int, long: int) -> None:
    spec = large.Spec(rows, long)
    made = list(large._transactions(spec))
    homes = Counter(tx.home for tx in made)
    assert len(made) == spec.transactions
    assert {group: homes[group] for group in spec.groups} == spec.groups
    placed = [(tx.home, change["key"]) for tx in made for change in tx.to_json()["changes"]]
    assert len({place for place in placed if place[0] not in spec.groups}) == rows
    assert len({place for place in placed if place[0] == "long"}) == min(large.KEYS, long)


def test_the_memory_of_a_process_is_told() -> None:
    most, now = memory_mib(os.getpid()), memory_mib(os.getpid(), most=False)
    assert 5 < now <= most * 1.01


def test_a_run_that_went_wrong_keeps_what_its_processes_said(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    said = ["w/worker.log", "kafka/logs/broker.log", "w/partition-0/LOG"]
    for name in (*said, "w/partition-0/000012.log", "kafka/data/t-0/00000000000000000000.log", "w/partition-0/1.sst"):
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_text(name)
    kept = _kept_logs(scratch, tmp_path / "results")
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()) == sorted(said)
