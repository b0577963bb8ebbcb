"""Tests the driver's command line, in processes that end before anything is mounted."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from pod_programs import ROOT
from standin_driver import answer_once, listen

from driver import __version__, adminclient, cli
from driver.api.rpc import admin_pb2
from driver.devices.kit import own_tree
from driver.linux import features
from driver.observe.logs import FORMATS


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "driver.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env={"PATH": os.defpath})


def check_mistake(ended: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check that the program ended with this exit code, with one line that says why, and without a traceback."""
    assert (ended.returncode, ended.stdout) == (code, "")
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert line == ended.stderr.splitlines()[-1]
    for word in words:
        assert word in line


def test_help_says_every_option_and_command() -> None:
    ended = run("--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    for word in (
        "--endpoint",
        "--nodeid",
        "--v",
        "--pods-dir",
        "--run-dir",
        "--admin-socket",
        "--kubelet-registration-path",
        "--plugin-registration-path",
        "--metrics-address",
        "--log-format",
        "volume",
        "device",
        "ready",
        "status",
        "check",
    ):
        assert word in ended.stdout


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option: str) -> None:
    ended = run(option)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split()[-1] == __version__


@pytest.mark.parametrize("arguments", [["--nodeid", ""], ["--nodeid="], ["-nodeid="]])
def test_a_node_id_is_required(arguments: list[str]) -> None:
    check_mistake(run(*arguments), 2, "--nodeid")


@pytest.mark.parametrize(
    "endpoint", ["", "tcp:127.0.0.1:1", "/csi.sock", "unix", "unix:", "unix://", "unix:///", "http://x", "unix:" + "/x" * 60]
)
def test_an_invalid_endpoint_is_reported(endpoint: str, tmp_path: Path) -> None:
    for arguments in ([f"--endpoint={endpoint}"], [f"-endpoint={endpoint}"]):
        check_mistake(run(*arguments, "--nodeid", "n", "--run-dir", tmp_path / "run"), 1, "--endpoint", repr(endpoint))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "option", ["--pods-dir", "--run-dir", "--admin-socket", "--kubelet-registration-path", "--plugin-registration-path"]
)
def test_a_path_that_is_not_absolute_is_reported(option: str) -> None:
    check_mistake(run("--nodeid", "n", option, "relative"), 2, option, "'relative'")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--v", "loud", "--nodeid", "n"], "--v"),
        (["--bogus"], "--bogus"),
        (["-bogus"], "-b"),
        (["--nodeid"], "--nodeid"),
        (["--nodeid", "n", "bogus"], "bogus"),
        (["volume", "bogus"], "bogus"),
        (["volume", "add"], "NAME"),
        (["volume", "add", "a", "b"], "b"),
        (["volume", "remove"], "NAME"),
        (["ready", "x"], "x"),
        (["abort"], "VOLUME"),
        (["status", "--output", "yaml"], "--output"),
        (["check", "x"], "x"),
        (["--pods-dir", "relative", "check"], "--pods-dir"),
        (["--run-dir", "relative", "check"], "--run-dir"),
        (["--log-format", "xml", "--nodeid", "n"], "--log-format"),
    ],
)
def test_what_is_not_known_or_missing_is_reported(arguments: list[str], word: str) -> None:
    check_mistake(run(*arguments), 2, word)


@pytest.mark.parametrize("arguments", [["ready"], ["status"], ["volume", "list"], ["volume", "add", "data"], ["volume", "remove", "data"]])
def test_a_command_without_a_driver_says_so(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "admin.sock"
    check_mistake(run("--admin-socket", path, *arguments), 1, "no driver answers at", str(path))
    # A driver that was killed leaves its socket behind.
    listen(str(path), socket.SOCK_STREAM).close()
    check_mistake(run("--admin-socket", path, *arguments), 1, "no driver answers at", str(path))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-endpoint=unix:/x", "-nodeid", "n"], ["--endpoint=unix:/x", "--nodeid", "n"]),
        (["-v=5"], ["--v=5"]),
        (["-v", "5"], ["--v", "5"]),
        (["-pods-dir=/p", "-run-dir=/r", "-admin-socket=/a"], ["--pods-dir=/p", "--run-dir=/r", "--admin-socket=/a"]),
        (["-logtostderr", "-stderrthreshold=2"], ["--logtostderr", "--stderrthreshold=2"]),
        (["--endpoint", "unix:/x", "--v=5"], ["--endpoint", "unix:/x", "--v=5"]),
        (["-V"], ["-V"]),
        (["-h"], ["-h"]),
        (["volume", "add", "data", "-o", "ro"], ["volume", "add", "data", "-o", "ro"]),
        (["-unknown=1"], ["-unknown=1"]),
    ],
)
def test_the_single_dash_of_gos_flags_is_accepted(arguments: list[str], expected: list[str]) -> None:
    assert cli._double_dashes(arguments) == expected


def test_the_options_of_klog_are_accepted() -> None:
    # DaemonSets of the Go plugin have some of these. Only the invalid --endpoint is reported.
    options = ["--v=5", "--logtostderr", "--alsologtostderr=true", "--stderrthreshold=INFO", "--vmodule=a=1", "-log_dir=/x", "-log_file=y"]
    options += ["--log_file_max_size", "1800", "-log_backtrace_at=a.go:1", "--one_output", "--skip_log_headers=true"]
    check_mistake(run(*options, "--add_dir_header", "--skip_headers", "--nodeid=n", "--endpoint=bad"), 1, "--endpoint")


@pytest.mark.parametrize("option", ["--run-dir", "--admin-socket"])
def test_a_socket_whose_path_would_be_too_long_is_reported(option: str, tmp_path: Path) -> None:
    check_mistake(run(f"--endpoint=unix:{tmp_path}/s", option, "/tmp" + "/x" * 60), 1, option, "longer than 107 bytes")


def test_an_endpoint_that_is_in_use_is_reported_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with listen(f"{tmp_path}/served", socket.SOCK_STREAM) as server:
        answer_once(server)
        for name, word in (("file", "not a socket"), ("served", "another process serves")):
            ended = run("--nodeid", "n", "--endpoint", f"unix:{tmp_path}/{name}", "--run-dir", tmp_path / "run")
            check_mistake(ended, 1, "--endpoint", f"{tmp_path}/{name}", word)
    assert sorted(os.listdir(tmp_path)) == ["file", "served"]


def test_in_json_a_start_that_fails_is_a_line_of_the_log(tmp_path: Path) -> None:
    ended = run("--nodeid", "n", "--endpoint", "tcp:x", "--log-format", "json")
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert line["level"] == "error"
    assert line["message"].startswith("--endpoint")


def test_a_driver_brings_its_own_programs_for_containers() -> None:
    """A driver that was not installed has them beside it: they are not at /opt/mfcp there."""
    code = "from driver import cli, daemon; daemon.serve = lambda settings: print(settings.client_tree); cli.run()"
    for options, expected in (((), own_tree()), (("--client-tree", "/of/mine"), "/of/mine")):
        command = [sys.executable, "-u", "-c", code, "--nodeid", "x", *options]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (ended.stdout, ended.stderr) == (f"{expected}\n", "")


@pytest.mark.parametrize("form", FORMATS)
def test_a_start_that_fails_by_an_internal_error_is_logged_with_a_traceback(form: str) -> None:
    code = "from driver import cli, daemon; daemon.serve = lambda settings: 1 / 0; cli.run()"
    command = [sys.executable, "-c", code, "--nodeid", "n", "--log-format", form]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "ZeroDivisionError" in ended.stderr
    if form == "json":
        (line,) = map(json.loads, ended.stderr.splitlines())
        assert line["message"].startswith("internal error while running the driver")


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for folder in ("file", "loop"):
        ended = run("--nodeid", "n", "--endpoint", f"unix:{tmp_path}/csi.sock", "--run-dir", tmp_path / folder / "run")
        check_mistake(ended, 1, "--run-dir", f"{tmp_path}/{folder}/run")


@pytest.mark.parametrize(
    "address", ["", "9100", "localhost", "localhost:http", "localhost:65536", "::1:9100", "[::1]", "192.0.2.1:9100", "a b:1"]
)
def test_an_invalid_metrics_address_is_reported_before_anything_is_made(address: str, tmp_path: Path) -> None:
    places = ("--endpoint", f"unix:{tmp_path}/csi.sock", "--run-dir", tmp_path / "run")
    check_mistake(run("--nodeid", "n", *places, "--metrics-address", address), 1, "--metrics-address", repr(address))
    assert os.listdir(tmp_path) == []


def test_a_metrics_address_that_is_in_use_is_reported_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        places = ("--endpoint", f"unix:{tmp_path}/csi.sock", "--run-dir", tmp_path / "run")
        check_mistake(run("--nodeid", "n", *places, "--metrics-address", address), 1, "--metrics-address", address, "in use")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("enabled", "is_said"), [("Y\n", True), ("N\n", False), (None, False)])
def test_volume_add_says_what_podman_needs_where_apparmor_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: str | None, is_said: bool
) -> None:
    if enabled is not None:
        (tmp_path / "enabled").write_text(enabled)
    monkeypatch.setattr(features, "_APPARMOR", str(tmp_path / "enabled"))
    monkeypatch.setattr(adminclient, "add", lambda *_: admin_pb2.Volume(target_path="/t/mount", socket_path="/t/sock/fuse.sock"))
    ended = CliRunner().invoke(cli.main, ["volume", "add", "data"])
    assert ended.exit_code == 0
    assert ("--security-opt apparmor=unconfined" in ended.stdout) is is_said
