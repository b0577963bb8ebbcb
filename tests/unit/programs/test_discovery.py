import posix
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pod_programs import ROOT, SOCKET_VARIABLE
from standin_driver import listen

from fusermount3_proxy import discovery
from fusermount3_proxy.discovery import NoSocket


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the variable in the environment of the tests and of their parent."""
    monkeypatch.delitem(posix.environ, SOCKET_VARIABLE.encode(), raising=False)
    monkeypatch.setattr(discovery, "_parents_variable", lambda: None)


def put_sockets(folder: Path, *names: str) -> None:
    for name in names:
        listen(f"{folder}/{name}", socket.SOCK_STREAM).close()


def test_the_path_is_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_sockets(tmp_path, "another")
    monkeypatch.setitem(posix.environ, SOCKET_VARIABLE.encode(), b"/some/where\xff")
    assert discovery.find_socket(str(tmp_path)) == "/some/where\udcff"


def test_an_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_sockets(tmp_path, "fuse.sock")
    monkeypatch.setitem(posix.environ, SOCKET_VARIABLE.encode(), b"")
    assert discovery.find_socket(str(tmp_path)) == f"{tmp_path}/fuse.sock"


@pytest.mark.parametrize("names", [("fuse.sock", "fuse.sock.v1"), ("fuse.sock",), ("fuse.sock.v1",)])
def test_a_pair_of_sockets_in_the_folder_is_one_candidate(tmp_path: Path, names: tuple[str, ...]) -> None:
    put_sockets(tmp_path, *names)
    (tmp_path / "dev-fuse").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("fuse.sock")
    assert discovery.find_socket(str(tmp_path)) == f"{tmp_path}/fuse.sock"


def test_more_than_one_candidate_is_an_error_that_names_them(tmp_path: Path) -> None:
    put_sockets(tmp_path, "b.sock", "b.sock.v1", "a.sock.v1")
    with pytest.raises(NoSocket) as caught:
        discovery.find_socket(str(tmp_path))
    assert "a.sock, b.sock" in str(caught.value)
    assert SOCKET_VARIABLE in str(caught.value)


@pytest.mark.parametrize("value", ["{folder}", "{folder}/", "{folder}/fuse.sock.v1"])
def test_the_folder_or_the_other_socket_stand_for_the_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    put_sockets(tmp_path, "fuse.sock", "fuse.sock.v1")
    monkeypatch.setitem(posix.environ, SOCKET_VARIABLE.encode(), value.format(folder=tmp_path).encode())
    assert discovery.find_socket("/nowhere") == f"{tmp_path}/fuse.sock"


def test_a_socket_may_be_called_as_the_other_socket_of_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_sockets(tmp_path, "a.v1", "a.v1.v1")
    monkeypatch.setitem(posix.environ, SOCKET_VARIABLE.encode(), f"{tmp_path}/a.v1".encode())
    assert discovery.find_socket("/nowhere") == f"{tmp_path}/a.v1"


def test_a_folder_without_a_socket_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(posix.environ, SOCKET_VARIABLE.encode(), str(tmp_path).encode())
    with pytest.raises(NoSocket, match=f"names a folder and there is no socket in {tmp_path}; set {SOCKET_VARIABLE} to the path"):
        discovery.find_socket("/nowhere")


def test_no_candidate_is_an_error_that_names_the_variable_to_set(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NoSocket) as caught:
            discovery.find_socket(str(folder))
        assert SOCKET_VARIABLE in str(caught.value)
        assert str(folder) in str(caught.value)


# go-fuse starts its helper with only _FUSE_COMMFD in the environment.
FIND = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from fusermount3_proxy import discovery; print(discovery.find_socket(sys.argv[1]))"
CHILD_WITHOUT_ENVIRONMENT = 'env -i "$0" -c "$1" "$2"; exit $?'


def test_the_path_is_in_the_parents_environment(tmp_path: Path) -> None:
    found = subprocess.run(
        ["/bin/sh", "-c", CHILD_WITHOUT_ENVIRONMENT, sys.executable, FIND, tmp_path],
        env={"PATH": "/usr/bin:/bin", f"NOT{SOCKET_VARIABLE}": "/wrong", SOCKET_VARIABLE: "/from/the parent"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    assert (found.returncode, found.stdout) == (0, "/from/the parent\n")


def test_the_programs_own_environment_takes_precedence(tmp_path: Path) -> None:
    found = subprocess.run(
        ["/bin/sh", "-c", f'env -i {SOCKET_VARIABLE}=/own "$0" -c "$1" "$2"; exit $?', sys.executable, FIND, tmp_path],
        env={"PATH": "/usr/bin:/bin", SOCKET_VARIABLE: "/from/the parent"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    assert (found.returncode, found.stdout) == (0, "/own\n")


def test_a_parent_that_cannot_be_read_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.delitem(posix.environ, SOCKET_VARIABLE.encode(), raising=False)
    # A parent in another pid namespace has the number 0.
    monkeypatch.setattr(posix, "getppid", lambda: 0)
    put_sockets(tmp_path, "fuse.sock")
    assert discovery.find_socket(str(tmp_path)) == f"{tmp_path}/fuse.sock"
