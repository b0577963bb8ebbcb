"""Tests that the generated files in driver/api/rpc belong to the .proto files beside them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pod_programs import ROOT


def stubs(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((folder / "driver/api/rpc").glob("*_pb2*.py*"))}


def test_the_generated_stubs_are_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "driver/api/rpc").mkdir(parents=True)
    (tmp_path / "packaging").mkdir()
    for proto in (ROOT / "driver/api/rpc").glob("*.proto"):
        shutil.copy(proto, tmp_path / "driver/api/rpc")
    # This runs the developers' command in a folder that has only the .proto files.
    shutil.copy(ROOT / "packaging/generate-rpc", tmp_path / "packaging")
    made = subprocess.run(
        [tmp_path / "packaging/generate-rpc"], env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=100
    )
    assert made.returncode == 0, made.stderr
    committed = stubs(ROOT)
    protos = [path.stem for path in (ROOT / "driver/api/rpc").glob("*.proto")]
    assert {f"{proto}{ending}" for proto in protos for ending in ("_pb2.py", "_pb2_grpc.py", "_pb2.pyi")} == set(committed)
    assert stubs(tmp_path) == committed, "run packaging/generate-rpc"
