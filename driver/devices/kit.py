"""Puts on the node what containers bind, and says what they bind: the kit of a container that mounts at mountpoints of its own.

    FOLDER/tree-HASH      the client tree, one for each version of it
    FOLDER/tree           a symlink to the tree of the version that runs
    FOLDER/dev-fuse       what stands in for /dev/fuse where a container cannot have the device
    FOLDER/sockets/NAME   the folder of one socket, which this module only names

Engines and kubelet keep the paths of a kit, and use them again when a container or the node starts again, without asking the driver.
So these paths name the symlink, and stay the same in every version: a container that is started again after an upgrade gets the new
tree. An engine follows the symlink when it starts a container, so a running container keeps the tree that it has.
"""

import os
import re
import stat
import sys
from collections.abc import Collection, Iterator

from driver.devices import selinux, tree
from driver.devices.tree import FOLDER, BadTree, Tree
from driver.linux import features
from driver.model.kit import Bind, ContainerKit, Device
from driver.model.paths import DEV_FUSE
from driver.observe.logs import log

PLACE = "/opt/mfcp"  # packaging/programs.py builds the tree for this path
SOCKETS = "sockets"  # the folder of the sockets' folders
HELPERS = ("/usr/bin/fusermount3", "/usr/bin/fusermount", "/bin/fusermount3", "/bin/fusermount")  # where FUSE libraries look
DEVICE = "/dev/fuse"
DEVICE_NUMBER = (10, 229)  # admin-guide/devices.txt of the kernel
DEVICE_MODE = 0o666

_LINK = "tree"
_SOCKET = "socket"  # the mountpoint of the socket's folder in the tree
_TRAMPOLINE = "fusermount3"  # it alone is bound beside the tree; it executes the rest below PLACE
_HELPERS_OF_TREE = (_TRAMPOLINE, "bin/fusermount3", "bin/fusermount")  # all are this small program: packaging/trampoline.c
_GIVES_UP_SET_UID = b": the set-uid bit of this file cannot be given up\n"  # a message of the trampoline's; former versions lack it
_TRAMPOLINE_MAX = 1 << 14  # bytes, far more than it has
_NEEDED = (*_HELPERS_OF_TREE, "_internal/fusermount3")
_TREE_NAME = re.compile(r"tree-[0-9a-f]{16}")
_NEW_TREE, _NEW_LINK = "tree-new", "link-new"


class KitError(Exception):
    """Reports that containers cannot get the kit. The text is one line for the user, with the remedy."""


def own_tree() -> str:
    """Return where this driver's own client tree is: beside the frozen driver's folder, in dist/ of the source, or else at PLACE."""
    if getattr(sys, "frozen", False):
        beside = f"{os.path.dirname(os.path.dirname(os.path.realpath(sys.executable)))}/mfcp"
    else:
        beside = f"{os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))}/dist/mfcp"
    return beside if os.path.isdir(beside) else PLACE


class Kit:
    """Installs the kit, and describes it."""

    def __init__(self, folder: str, node_folder: str, tree: str, dev_fuse: str = DEVICE) -> None:
        """Install into `folder`, which the node sees at `node_folder`. Both are absolute paths, and one driver at a time uses them.

        `tree` is the client tree of the driver's own image or installation. `dev_fuse` is the path at which this process sees the
        node's /dev/fuse.
        """
        self._folder = folder
        self._node_folder = node_folder
        self._source = tree
        self._dev_fuse = dev_fuse

    def install(self, named: Collection[str] = ()) -> None:
        """Bring the client tree and the stand-in for /dev/fuse to the folder, repair them, and remove former trees. Raises KitError.

        It reads and writes the disk, and so may take seconds. A former tree stays as long as a process on the node has it mounted,
        or one of the paths `named`, which kubelet may bind again, lies in it. The one that was replaced just now stays until the
        next call, because an engine may be starting a container from it.
        """
        held = self._read_tree()
        try:
            os.makedirs(self._folder, mode=0o755, exist_ok=True)
            # Users of the node who run containers without root reach the tree in it.
            os.chmod(self._folder, 0o755)
            if os.statvfs(self._folder).f_flag & os.ST_NOEXEC:
                text = "is on a file system that is mounted noexec, so no container could run fusermount3 from it"
                raise KitError(f"{self._folder} (--fuse-dir) {text}: name a folder on another file system, for example in /var/lib")
            self._make_dev_fuse()
            name = f"tree-{tree.name_of(held)}"
            self._install_tree(held, name)
            former = self._switch_to(name)
            self._remove_former_trees({name, former}, named)
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
            text = f"the programs for containers cannot be installed in {self._folder} (--fuse-dir): {where}"
            raise KitError(f"{text}; make room there, or name a folder that the driver may write to") from None

    @property
    def problem(self) -> str:
        """Return why containers do not get the node's device, and what to do; "" if they get it."""
        try:
            info = os.stat(self._dev_fuse)
        except OSError as error:
            return _stand_in(f"the node's {DEVICE} cannot be used ({error.strerror}): run 'modprobe fuse' on the node")
        number = (os.major(info.st_rdev), os.minor(info.st_rdev))
        if not stat.S_ISCHR(info.st_mode) or number != DEVICE_NUMBER:
            return _stand_in(f"the node's {DEVICE} is not the device 10:229: remove it, and run 'modprobe fuse' on the node")
        mode = stat.S_IMODE(info.st_mode)
        if mode != DEVICE_MODE:
            return _stand_in(f"the node's {DEVICE} has mode {mode:04o}, as without udev: run 'chmod 0666 {DEVICE}' on the node")
        return ""

    def for_socket(self, folder_name: str) -> ContainerKit:
        """Return the kit whose socket lies in the folder `folder_name` of FOLDER/sockets. Raises nothing."""
        return self.for_socket_folder(f"{self._node_folder}/{SOCKETS}/{folder_name}")

    def for_socket_folder(self, path: str) -> ContainerKit:
        """Return the kit whose socket lies in the folder at `path` on the node, for a user's own folder. Raises nothing."""
        programs = f"{self._node_folder}/{_LINK}"
        binds = [Bind(programs, PLACE), Bind(path, f"{PLACE}/{_SOCKET}")]
        binds += [Bind(f"{programs}/{_TRAMPOLINE}", helper) for helper in HELPERS]
        if self.problem:
            return ContainerKit((*binds, Bind(f"{self._node_folder}/{DEV_FUSE}", DEVICE)), ())
        return ContainerKit(tuple(binds), (Device(DEVICE, DEVICE),))

    def _read_tree(self) -> Tree:
        """Return what the driver's own tree holds. Raises KitError."""
        remedy = "run packaging/build, or install the driver's image or dist/ again as a whole"
        if not os.path.isdir(self._source):
            raise KitError(f"there is no folder {self._source} (--client-tree) with the programs for containers: {remedy}")
        try:
            # AppImages take only a helper that has this bit. The trampoline gives up what the bit gives before it does anything.
            helpers = [path for path in _HELPERS_OF_TREE if _gives_up_set_uid(f"{self._source}/{path}")]
            held = tree.read(self._source, set_uid=helpers)
        except BadTree as error:
            raise KitError(f"{self._source}, the folder with the programs for containers, {error}: {remedy}") from None
        except OSError as error:
            raise KitError(f"the programs for containers cannot be read: {error.filename}: {error.strerror}: {remedy}") from None
        lacking = [path for path in _NEEDED if path not in held or held[path].kind == FOLDER or not held[path].mode & 0o001]
        if _SOCKET not in held or held[_SOCKET].kind != FOLDER:
            lacking.append(f"{_SOCKET}/")
        if lacking:
            raise KitError(f"{self._source}, the folder with the programs for containers, lacks {', '.join(lacking)}: {remedy}")
        return held

    def _make_dev_fuse(self) -> None:
        """Make the stand-in for /dev/fuse, which programs only open, to read and to write. Raises OSError.

        It is a FIFO. Opening one to read and write never waits, and works on a read-only mount. An empty file would have to be
        mounted read-write, and one container could then fill the node's disk through it.
        """
        path, new = f"{self._folder}/{DEV_FUSE}", f"{self._folder}/{DEV_FUSE}.new"
        try:
            info = os.stat(path, follow_symlinks=False)
            is_good = info.st_mode == stat.S_IFIFO | 0o666 and info.st_uid == os.geteuid()
        except FileNotFoundError:
            is_good = False
        if not is_good:
            tree.remove(path)  # containerd makes a folder where a path to bind is missing
            tree.remove(new)
            os.mkfifo(new)
            os.chmod(new, 0o666)
            os.rename(new, path)
            tree.sync(self._folder)
        _label([path])

    def _install_tree(self, held: Tree, name: str) -> None:
        """Make the tree of this version, whole or not at all, or repair it where it is. Raises OSError."""
        path, new = f"{self._folder}/{name}", f"{self._folder}/{_NEW_TREE}"
        if os.path.isdir(path):
            # In place, because running containers have bound this folder, and would not see another one of this name.
            if tree.make_same(self._source, held, path):
                log.warning(f"{path}, which containers run fusermount3 from, was not as it should be; it has been repaired")
            _label(_paths(path, held))
            return
        tree.make_same(self._source, held, new)
        _label(_paths(new, held))
        tree.remove(path)
        os.rename(new, path)
        tree.sync(self._folder)

    def _switch_to(self, name: str) -> str:
        """Make the symlink name this tree, and return the name that it had before. Raises OSError."""
        link, new = f"{self._folder}/{_LINK}", f"{self._folder}/{_NEW_LINK}"
        former = os.readlink(link) if os.path.islink(link) else ""
        if former != name:
            if not former:
                tree.remove(link)  # containerd makes a folder where a path to bind is missing
            tree.remove(new)
            os.symlink(name, new)
            os.rename(new, link)
            tree.sync(self._folder)
        return former

    def _remove_former_trees(self, kept: set[str], named: Collection[str]) -> None:
        names = {name for name in os.listdir(self._folder) if _TREE_NAME.fullmatch(name)} - kept
        names -= {part for path in named for part in path.split("/")}
        for name in sorted(names - _mounted(names)):
            tree.remove(f"{self._folder}/{name}")
        tree.remove(f"{self._folder}/{_NEW_TREE}")


def _stand_in(text: str) -> str:
    return f"{text}; until then containers get a file that stands in for it, and programs that clone their fd (clone_fd) fail"


def _gives_up_set_uid(path: str) -> bool:
    """Return whether a file is the trampoline, of a version that gives up what the set-uid bit gives. Raises OSError."""
    if not os.path.isfile(path) or os.path.getsize(path) > _TRAMPOLINE_MAX:
        return False
    with open(path, "rb") as file:
        return _GIVES_UP_SET_UID in file.read()


def _paths(folder: str, held: Tree) -> list[str]:
    return [f"{folder}/{path}" if path else folder for path in held]


def _label(paths: list[str]) -> None:
    if not selinux.is_on():
        return
    try:
        for path in paths:
            selinux.label(path)
    except OSError as error:
        log.warning(f"SELinux may keep containers from {error.filename}, which cannot be labelled: {error.strerror}")


def _mounted(names: Collection[str]) -> set[str]:
    """Return those of the trees that lie in a mount of any process: all of them where the processes of the node cannot be seen.

    A name that a mount table shows anywhere counts, since a tree that stays too long does no harm.
    """
    if not names or not features.sees_host_pids():
        return set(names)
    return {name for table in _mount_tables() for name in names if name.encode("ascii") in table}


def _mount_tables() -> Iterator[bytes]:
    seen = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/mountinfo", "rb") as file:
                table = file.read()
        except OSError:
            continue  # it has ended, or has no mounts any more
        if hash(table) not in seen:  # most processes share their mounts with others
            seen.add(hash(table))
            yield table
