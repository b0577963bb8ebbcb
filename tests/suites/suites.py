"""Run the test suites of libfuse and sshfs in containers, and read what came of each test.

tests/suites/build has built them in root file systems of Debian. A suite runs as an ordinary user, twice: with libfuse's setuid
fusermount3 in a container that is allowed to mount, and with ours in one that has a fuse device and is allowed nothing.
"""

import re
import shutil
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

from harness.container import Bind, Engine
from harness.pod import HELPERS, PLACE, TREE
from harness.programs import REPOSITORY, missing

CACHE = REPOSITORY / ".cache" / "suites"
USER = 1234  # as in the script prepare
_HERE = Path(__file__).resolve().parent
_ENDS = 1800.0  # seconds until a suite must have ended
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
THEIRS, OURS = "libfuse's", "our"  # fusermount3


@dataclass(frozen=True)
class Suite:
    """Names a suite by the program whose it is, Debian's source package, and the release of Debian."""

    name: str
    package: str
    release: str
    debian: int

    @property
    def root(self) -> Path:
        """Return the root file system in which it was built."""
        return CACHE / self.release

    @property
    def tests(self) -> list[str]:
        """Return the ids of its tests; none where it was not built."""
        try:
            return (self.root / f"suites/{self.package}.tests").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []

    @property
    def title(self) -> str:
        version = (self.root / f"suites/{self.package}.version").read_text().strip()
        return f"{self.name} {version} of Debian {self.debian}"


LIBFUSE = [Suite("libfuse", "fuse3", "bookworm", 12), Suite("libfuse", "fuse3", "trixie", 13)]
SSHFS = [Suite("sshfs", "sshfs-fuse", "bookworm", 12)]
ALL = [*LIBFUSE, *SSHFS]


@dataclass(frozen=True)
class Outcome:
    """Holds what came of one test: passed, failed or skipped, and what pytest says of the latter two."""

    kind: str
    reason: str = ""
    details: str = ""

    @property
    def compared(self) -> tuple[str, str]:
        """Return what must be the same with both helpers: not paths, times and numbers of processes."""
        return self.kind, re.sub(r"\d+", "N", re.sub(r"(['\"]).*?\1", "'...'", self.reason))

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


def check_built(suite: Suite) -> None:
    """Fail with one line where a suite was not built."""
    if not suite.tests:
        missing(f"the source package {suite.package} of Debian {suite.debian} is not built: run tests/suites/build, which says why")


class Libfuses:
    """Describes a container in which the setuid fusermount3 works. Its first process is root, and makes that setuid."""

    name = THEIRS
    options = ("--cap-add=SYS_ADMIN", "--device=/dev/fuse", "--user=0:0")

    def binds(self, suite: Suite) -> list[Bind]:
        """Return what is bound into the container."""
        return []


class Ours:
    """Describes a container with a fuse device of ours, and with no privileges: its first process is the ordinary user."""

    name = OURS
    options = ("--cap-drop=all", "--security-opt=no-new-privileges", "--device=/dev/fuse", f"--user={USER}:{USER}")

    def __init__(self, folder: Path, socket: Path) -> None:
        """`socket` is the folder of the device's socket. In `folder` a file is made."""
        self._socket = socket
        # The suites skip their tests unless fusermount3 has the setuid bit. In this container it has no effect.
        self._program = folder / "fusermount3"
        shutil.copy(TREE / "fusermount3", self._program)
        self._program.chmod(0o4755)

    def binds(self, suite: Suite) -> list[Bind]:
        """Return what is bound into the container. Our fusermount3 lies in its usual places, and where libfuse has built its own."""
        places = [*HELPERS, *([f"/suites/{suite.package}/util/fusermount3"] if suite in LIBFUSE else [])]
        return [
            Bind(TREE, PLACE, read_only=True),
            Bind(self._socket, f"{PLACE}/socket", read_only=True),
            *(Bind(self._program, place, read_only=True) for place in places),
        ]


Helper = Libfuses | Ours


def run(engine: Engine, suite: Suite, helper: Helper, folder: Path, test: str = "") -> dict[str, Outcome]:
    """Run a suite, or one test of it, and return the outcome of each test by its id. `folder` is where it puts its report."""
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    binds = [*helper.binds(suite), Bind(_HERE / "inside", "/inside", read_only=True), Bind(folder, "/report")]
    # On an overlay of two file systems inode numbers and devices are not what the tests expect.
    options = [*helper.options, "--tmpfs=/tmp:mode=1777", "--env=HOME=/home/tester", "--env=USER=tester"]
    command = ["/bin/sh", "/inside/run", suite.package, f"test/{test}"]
    container = engine.start(binds, options, command, rootfs=suite.root)
    came = container.wait(_ENDS)
    engine.stop([container])
    (folder / "output").write_text(f"{came.out}\n{came.err}\n")
    report = folder / "report.xml"
    assert report.exists(), f"{suite.title} with {helper.name} fusermount3 ended with {came.code} and no report:\n{came.out}\n{came.err}"
    return read(report)


def read(report: Path) -> dict[str, Outcome]:
    """Return the outcome of each test in pytest's JUnit report, by its id."""
    outcomes = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
        outcome = Outcome(PASSED)
        for kind, tag in ((SKIPPED, "skipped"), (FAILED, "error"), (FAILED, "failure")):
            for found in case.findall(tag):
                outcome = Outcome(kind, (found.get("message") or "").partition("\n")[0], _details(case, found))
        outcomes[name] = outcome
    return outcomes


def _details(case: xml.etree.ElementTree.Element, found: xml.etree.ElementTree.Element) -> str:
    printed = [part.text or "" for tag in ("system-out", "system-err") for part in case.findall(tag)]
    return "\n".join([found.text or "", *printed]).strip()
