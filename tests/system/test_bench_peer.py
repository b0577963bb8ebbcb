"""Test that the benchmark can measure a peer that behaves as the Go plugin, which cannot be built here."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from harness.driver import command
from harness.programs import REPOSITORY, SOURCES

# Its driver is ours, with the options that the Go plugin's does not have.
DRIVER = """#!/bin/sh
run=${{2#unix:}}
exec {driver} --run-dir "${{run%/*}}/run" --admin-socket "${{run%/*}}/admin.sock" "$@"
"""


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_peer_that_removes_its_socket_and_cannot_unmount_is_measured(tmp_path: Path) -> None:
    for name in ("mfcp/fusermount3", "mfcp/fuse-starter", "fusermount3"):
        program = tmp_path / "peer" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCES / "unlinking_peer.py", program)
    driver = tmp_path / "peer/meta-fuse-csi-plugin/meta-fuse-csi-plugin"
    driver.parent.mkdir()
    driver.write_text(DRIVER.format(driver=" ".join(command())))
    driver.chmod(0o755)
    values = tmp_path / "values.json"
    options = ["--short", "--only", "startup,containers", "--peer", f"Go={tmp_path}/peer", "--json", values]
    done = subprocess.run([REPOSITORY / "bench/run", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = {row["row"]: len(row["subjects"]["Go"]) for row in json.loads(values.read_text())["rows"] if "Go" in row["subjects"]}
    assert {"start-mount", "start-starter", "single-mount", "left-processes"} <= measured.keys()
    for row in ("container-bindfs", "container-bindfs-answers", "container-starter", "container-sshfs"):
        assert measured[row] == 15
