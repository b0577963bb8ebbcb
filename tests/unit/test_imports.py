"""Tests which modules import which: the container's programs load only what they need at each mount, and imports have no circles."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from pod_programs import ROOT

PACKAGES = ("driver", "fusermount3_proxy")

# These modules are built into the interpreter, or are one small extension file.
MAY_LOAD = {"posix", "_socket", "_signal", "_json", "errno", "select", "time"}

# A package imports only itself and those before it. The last one stands for the modules of driver/ itself.
CLIENT_PACKAGES = ["fusermount3_proxy.wire", "fusermount3_proxy"]
DRIVER_PACKAGES = [
    "fusermount3_proxy.wire",
    *(f"driver.{package}" for package in ("linux", "model", "observe", "blocking", "mounts", "pods", "volumes", "devices", "api")),
    "driver",
]


def modules() -> dict[str, Path]:
    """Return the file of each module of the project, except the generated ones."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported_by(name: str) -> set[str]:
    """Return the full names of all modules that a module imports, also those imported in functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                # `from package import module` and `from module import name` look the same.
                found.add(inner if inner in MODULES or is_generated(inner) else str(node.module))
    return found


def is_generated(name: str) -> bool:
    return name.startswith("driver.api.rpc.")


GRAPH = {name: imported_by(name) for name in MODULES}


def test_modules_and_imports_are_found() -> None:
    assert {"driver.cli", "driver.volumes.volume", "fusermount3_proxy.fusermount3", "fusermount3_proxy.starter"} <= set(MODULES)
    assert "driver.daemon" in GRAPH["driver.cli"]
    assert "fusermount3_proxy.wire.protocol" in GRAPH["driver.pods.server"]


def test_imports_have_no_circles() -> None:
    """No module is imported, directly or indirectly, by a module that it imports."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join((*path, name))}"
        if name in done:
            return
        for other in sorted(GRAPH[name] & set(MODULES)):
            visit(other, (*path, name))
        done.add(name)

    for name in MODULES:
        visit(name, ())
    assert done == set(MODULES)


def package_of(name: str) -> str:
    """Return the package of a module. A package's own __init__ belongs to the package."""
    packages = {*CLIENT_PACKAGES, *DRIVER_PACKAGES, "driver.api.rpc"}
    found = name if name in packages else name.rpartition(".")[0]
    return found.removesuffix(".rpc")


@pytest.mark.parametrize("name", MODULES)
def test_packages_import_only_those_before_them(name: str) -> None:
    order = DRIVER_PACKAGES if name.startswith("driver") else CLIENT_PACKAGES
    own = order.index(package_of(name))
    for other in GRAPH[name]:
        if other.partition(".")[0] in PACKAGES and other != "driver":  # driver/__init__.py holds only the version
            assert package_of(other) in order[: own + 1], f"{name} imports {other}, which comes after it"


def test_every_package_has_a_docstring() -> None:
    for package in {*CLIENT_PACKAGES, *DRIVER_PACKAGES}:
        assert ast.get_docstring(ast.parse(MODULES[package].read_text())), package


def test_no_module_has_more_than_400_lines() -> None:
    assert {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 400} == {}


def test_system_calls_are_in_one_module() -> None:
    assert [name for name, others in GRAPH.items() if "ctypes" in others] == ["driver.linux.syscalls"]


LOAD = """
import sys
before = set(sys.modules)
sys.path.insert(0, {root!r})
import {module}
print(*sorted(set(sys.modules) - before))
"""


def bare(code: str) -> str:
    """Run code in an interpreter that has loaded no other modules, and return its output."""
    command = [sys.executable, "-I", "-S", "-"]
    ended = subprocess.run(command, input=code, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("fusermount3_proxy.")])
def test_programs_in_the_container_load_only_built_in_modules(name: str) -> None:
    loaded = set(bare(LOAD.format(root=str(ROOT), module=name)).split())
    assert {other for other in loaded if other.partition(".")[0] != "fusermount3_proxy"} <= MAY_LOAD


def test_the_driver_begins_with_what_its_processes_call_and_without_grpc() -> None:
    """Processes find only functions of modules that were imported before the starter was forked. Pods need not wait for gRPC."""
    command = [sys.executable, "-c", LOAD.format(root=str(ROOT), module="driver.daemon")]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())
    assert {"driver.mounts.fusemount", "driver.mounts.subpaths"} <= loaded
    assert {name for name in loaded if name.partition(".")[0] in ("grpc", "google")} == set()


# The C scanner uses the json module's error class, and does not find it if the json module was not imported.
BAD_PACKETS = [
    *(b"", b"{", b"[", b"x", b'"', b'"\\x"', b'"\n"', b"-", b"NaN", b'{"a":1,}', b'{"a" 1}', b'{"a":1', b"1e", b"[1,]", b"\xff"),
    *(b"[" * 60000, b"9" * 60000),
]
DECODE = """
import sys
sys.path.insert(0, {root!r})
from fusermount3_proxy.wire import protocol
for decode in (protocol.decode_request, protocol.decode_reply):
    for packet in {packets!r}:
        try:
            decode(packet)
        except protocol.ProtocolError:
            continue
        sys.exit("%r was taken" % packet[:20])
print("ok")
"""


def test_bad_packets_are_refused_without_the_json_module_too() -> None:
    assert bare(DECODE.format(root=str(ROOT), packets=BAD_PACKETS)) == "ok\n"
