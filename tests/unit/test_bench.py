"""Tests what the benchmark makes of its numbers."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import cpu, stats, table
from bench.rows import ALONE, BARE, BY_KEY, GRPC, OURS, ROWS
from bench.stats import in_turns, when_due
from bench.table import Results


def test_percentiles_of_many_values_and_of_one() -> None:
    values = [float(number) for number in range(101)]
    random.Random(1).shuffle(values)
    assert (stats.p99(values), stats.spread(values)) == (99, 25)
    assert (stats.p99([2.0]), stats.spread([2.0])) == (2, 0)


def test_each_round_has_every_subject_once_and_not_always_in_the_same_order() -> None:
    orders: list[str] = []

    def subject(name: str) -> float:
        orders.append(name)
        return 1.0

    found = in_turns(20, {name: lambda name=name: subject(name) for name in "abc"})
    assert {name: len(values) for name, values in found.items()} == {"a": 20, "b": 20, "c": 20}
    rounds = ["".join(orders[i : i + 3]) for i in range(0, 60, 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 1


def test_a_subject_may_give_several_values() -> None:
    assert in_turns(2, {"a": lambda: [1.0, 2.0]}) == {"a": [1, 2, 1, 2]}
    assert in_turns(2, {"a": lambda: ()}) == {"a": []}


def test_every_bound_is_of_a_row_and_of_something_that_it_is_compared_with() -> None:
    for key, limits in table.bounds().items():
        assert key in BY_KEY
        for limit in limits:
            # An absolute bound is printed, and fails nothing.
            assert (limit.check is None) == (limit.against == ""), key
            if limit.check is not None:
                more_is_better = BY_KEY[key].more_is_better
                assert limit.check <= limit.reach if more_is_better else limit.check >= limit.reach, key


def test_every_row_with_a_reference_of_its_own_has_a_bound() -> None:
    assert [row.key for row in ROWS if row.reference in (BARE, GRPC, ALONE) and row.key not in table.bounds()] == []


def check(key: str, **found: list[float]) -> list[str]:
    results = Results()
    results.add(key, found)
    return table.failures(results)


@pytest.mark.parametrize(
    ("ours", "fails"),
    [
        ([14.0, 15.0, 14.5], False),
        ([99.0, 99.0, 99.0], True),
        ([10.0, 99.0, 99.0], False),  # the machine was busy, once it was not
    ],
)
def test_a_row_fails_where_median_and_best_are_both_worse(ours: list[float], fails: bool) -> None:
    assert bool(check("start-mount", ours=ours, bare=[10.0, 10.1, 10.2])) is fails


@pytest.mark.parametrize(("ours", "fails"), [([900.0, 950.0], False), ([10.0, 12.0], True), ([10.0, 950.0, 11.0], False)])
def test_a_rate_fails_where_it_is_lower(ours: list[float], fails: bool) -> None:
    assert bool(check("publish-1", ours=ours, grpcio=[1000.0, 1000.0])) is fails


def test_bounds_to_the_go_plugin_are_for_no_other_peer() -> None:
    assert check("unpublish-1", ours=[500.0], grpcio=[1000.0]) == []
    assert len(check("unpublish-1", ours=[500.0], grpcio=[1000.0], Go=[1000.0])) == 1
    assert check("unpublish-1", ours=[500.0], grpcio=[1000.0], Go=[100.0]) == []
    assert check("unpublish-1", ours=[500.0], grpcio=[1000.0], older=[1000.0]) == []


def test_absolute_rows_and_rows_without_their_reference_fail_nothing() -> None:
    assert check("size-tree", ours=[1000.0]) == []
    assert check("killed", ours=[1e6]) == []
    assert check("start-mount", ours=[1e6]) == []


def test_the_99th_percentile_is_what_its_rows_say() -> None:
    row = BY_KEY["death-removed"]
    assert table.value(row, [*[1.0] * 100, 1e3]) == 1
    assert table.value(row, [*[1.0] * 99, 50.0, 50.0]) == 50


def test_a_row_of_99th_percentiles_fails_where_those_are_worse() -> None:
    assert check("latency-publishing", ours=[9.0, 9.0, 9.0], alone=[1.0, 1.0, 1.0]) != []


def test_a_row_in_doubt_is_shown_and_fails_nothing() -> None:
    results = Results()
    results.add("latency-flood", {OURS: [99.0], ALONE: [1.0]})
    assert len(table.failures(results)) == 1
    results.doubt("latency-flood", "not checked, because")
    assert table.failures(results) == []
    assert table.markdown(results).splitlines()[-1].endswith("| missed; not checked, because |")


def test_what_others_compute_is_told_from_what_we_do() -> None:
    spin = [sys.executable, "-I", "-S", "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(spin, stdout=subprocess.PIPE) as ours, subprocess.Popen(spin, stdout=subprocess.PIPE) as other:
        for process in (ours, other):
            assert process.stdout is not None
            process.stdout.readline()
        both, less = cpu.Others([]), cpu.Others([ours.pid])
        before, used = cpu.of_process(ours.pid), cpu.of_process(other.pid)
        time.sleep(0.3)
        seconds, used = cpu.of_process(ours.pid) - before, cpu.of_process(other.pid) - used
        shares = both.share() * 0.3 * (os.cpu_count() or 1), less.share() * 0.3 * (os.cpu_count() or 1)
        ours.kill()
        other.kill()
    assert shares[0] - shares[1] == pytest.approx(seconds, abs=0.1)
    assert shares[1] > used - 0.1


def test_what_comes_late_for_the_one_before_it_counts_its_wait() -> None:
    stops = iter([0.0, 0.05, *[0.0] * 18])

    def work() -> Callable[[], None]:
        time.sleep(next(stops))
        return lambda: None

    found = when_due(20, 0.005, work)
    assert len(found) == 20
    assert sum(took > 10 for took in found) >= 5


def test_the_table_says_what_is_reached_and_what_could_not_be_compared() -> None:
    results = Results()
    results.add("start-version", {OURS: [11.0, 12.0, 11.5], BARE: [10.0, 10.0, 10.0]})
    results.add("start-mount", {OURS: [20.0], BARE: [10.0]})
    results.add("size-tree", {OURS: [11.7]})
    results.add("publish-1", {OURS: [500.0], GRPC: [1000.0]})
    results.add_detail("files", ["a", "b"])
    lines = table.markdown(results).splitlines()
    assert "| `fusermount3 -V`, tree | 11.5 ms (min 11, ±0.25) | bare 10 ms | 1.15 x bare | <= 1.2 x bare | reached |" in lines
    assert [line.split(" | ")[-1] for line in lines if "against a driver" in line] == ["missed |"]
    assert [line.split(" | ")[-1] for line in lines if "size of the tree" in line] == ["reached, absolute |"]
    assert [line.split(" | ")[-1] for line in lines if line.startswith("| publish, one")] == ["missed; not compared |"]
    assert lines[-1] == "files: a, b"


def test_a_peer_has_a_ratio_of_its_own() -> None:
    results = Results()
    results.add("publish-1", {OURS: [500.0], GRPC: [1000.0], "other": [250.0]})
    assert "0.50 x grpcio, 2.00 x other" in table.markdown(results)


def test_the_cpu_of_a_process_has_that_of_its_threads_that_have_ended() -> None:
    work = """
import sys, threading, time
def work():
    end = time.thread_time() + 0.3
    while time.thread_time() < end: pass
thread = threading.Thread(target=work)
thread.start(); thread.join()
print(flush=True); sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with open(f"/proc/{process.pid}/stat") as file:
        ticks = sum(map(int, file.read().rpartition(")")[2].split()[11:13]))  # utime and stime
    seconds = cpu.of_process(process.pid)
    process.communicate()
    assert seconds >= 0.3
    assert seconds == pytest.approx(ticks / os.sysconf("SC_CLK_TCK"), abs=0.05)


@pytest.mark.parametrize("place", ["/none/values.json", "/proc"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(place: str) -> None:
    command = [sys.executable, "-B", "-m", "bench", "--short", "--only", "sizes", "--json", place]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"bench/run: argument --json: {place!r} is not a file that can be written; try bench/run --help\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("{dist}", "there is no program {dist}/fusermount3; name the folder dist/ that packaging/build made"),
        ("grpcio={dist}", "the table has another column with the name 'grpcio'"),
    ],
)
def test_a_peer_that_cannot_be_measured_is_refused_in_one_line(tmp_path: Path, option: str, message: str) -> None:
    for name in ("meta-fuse-csi-plugin/meta-fuse-csi-plugin", "mfcp/fusermount3", "mfcp/fuse-starter"):
        program = tmp_path / name
        program.parent.mkdir(exist_ok=True)
        program.touch(0o755)
    command = [sys.executable, "-B", "-m", "bench", "--peer", option.format(dist=tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"bench/run: argument --peer: {message.format(dist=tmp_path)}; try bench/run --help\n"


def test_the_programs_of_the_peer_lie_in_the_place_of_ours_while_they_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "system")
    from bench import place

    for variable, name in (("TREE_PLACE", "mfcp"), ("_PEER_TREE", "peer"), ("_OUR_TREE", "ours")):
        monkeypatch.setattr(place, variable, tmp_path / name)
    for name in ("mfcp", "peer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "whose").write_text(name)
    with place.peer_in_place():
        assert (tmp_path / "mfcp/whose").read_text() == "peer"
    assert (tmp_path / "mfcp/whose").read_text() == "mfcp"


def test_callers_that_never_get_ready_are_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "system")
    from bench import servers
    from bench.place import BenchError

    started: list[subprocess.Popen[str]] = []

    def caller(socket: Path, count: int) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(["sh", "-c", "echo no; exec sleep 100"], stdout=subprocess.PIPE, text=True))
        return started[-1]

    monkeypatch.setattr(servers, "_caller", caller)
    with pytest.raises(BenchError):
        servers.Callers(servers.Server("none", tmp_path, ["false"]), 2, 2)
    ended = [process.poll() for process in started]
    for process in started:
        process.kill()
        process.communicate()
    assert ended == [-9, -9]
