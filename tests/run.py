"""tests/run: sets up what the tests need, runs them stage by stage, and counts. Standard library alone: it makes .venv itself."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("VENV", ROOT / ".venv")).absolute()

# What .venv, dist/ and the checks need; what the system tests do stands in a list of its own.
PACKAGES = [
    *("ca-certificates", "git", "shellcheck", "util-linux", "mount"),
    *("python3", "python3-dev", "python3-venv", "gcc", "libc6-dev", "libcap-dev"),
    *("patchelf", "binutils", "libc-bin"),
]
SYSTEM_PACKAGES = ROOT / "tests/system/packages.txt"
SYSTEM_PACKAGES_OF_ALL = ROOT / "tests/system/packages-all.txt"
# libfuse's fusermount3 of this machine; and what makes a root with Debian 13's.
DIFFERENTIAL_PACKAGES = ["fuse3"]
ALL_DIFFERENTIAL_PACKAGES = ["debootstrap", "debian-archive-keyring"]

LONG_EXAMPLES = 20_000


class Stop(Exception):
    """The rest cannot be run; the text is one line."""


@dataclass(frozen=True)
class Stage:
    """Some tests. Each test of a pytest stage is counted; another stage is one test."""

    name: str
    what: str
    module: str
    arguments: tuple[str, ...] = ()
    needs_build: bool = False

    @property
    def is_pytest(self) -> bool:
        return self.module == "pytest"

    @property
    def title(self) -> str:
        return f"{self.name}: {self.what}"


STAGES = {
    stage.name: stage
    for stage in [
        Stage("format", "ruff format", "ruff", ("format", "--check")),
        Stage("lint", "ruff", "ruff", ("check",)),
        Stage("types", "mypy", "mypy"),
        Stage("hygiene", "shellcheck, and what holds for every file", "pytest", ("tests/hygiene",)),
        Stage("unit", "without root", "pytest", ("tests/unit",)),
        Stage("property", "hypothesis", "pytest", ("tests/property",)),
        Stage("differential", "the same as libfuse's fusermount3", "pytest", ("tests/differential",), needs_build=True),
        Stage("conformance", "csi-sanity", "pytest", ("tests/conformance",), needs_build=True),
        Stage("system", "real mounts and containers", "pytest", ("tests/system",), needs_build=True),
        Stage("bench", "nothing has become slow", "bench", ("--short", "--check"), needs_build=True),
    ]
}


@dataclass
class Count:
    """Tests."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: "Count") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else "")


@dataclass
class Run:
    """One run: its steps so far, and what they came to."""

    steps: int
    step: int = 0
    count: Count = field(default_factory=Count)
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def telling(self, title: str) -> Iterator[Count]:
        """A line before a step and one after it. The block fills in what is counted."""
        self.step += 1
        place = f"[{self.step}/{self.steps}] {title}"
        began = time.monotonic()
        count = Count()
        say(f"\n{place}")
        try:
            yield count
        except BaseException:
            count.failed += 1
            raise
        finally:
            self.count.add(count)
            if count.failed:
                self.failures.append(title)
            say(f"{place}: {'FAILED' if count.failed else 'ok'}, {duration(began)}")

    def set_up(self, title: str, *command: str | Path) -> None:
        """A step that all that follows needs. Raises Stop."""
        with self.telling(title):
            if call(command) != 0:
                raise Stop(f"{os.path.relpath(command[0], ROOT)} failed")

    def test(self, stage: Stage) -> None:
        """Run a stage's tests."""
        python = VENV / "bin/python"
        command: list[str | Path] = [python, "-m", stage.module, *stage.arguments]
        with self.telling(stage.title) as count, tempfile.TemporaryDirectory() as folder:
            if not python.exists():
                raise Stop(f"{python} is missing; run tests/run without --no-setup")
            if stage.is_pytest:
                report = Path(folder, "report.xml")
                status = call([*command, "-p", "no:cacheprovider", "--no-header", f"--junitxml={report}"])
                count.add(read_count(report))
                # pytest found no tests, or fell before or after them.
                count.failed += 1 if status != 0 and not count.failed else 0
            else:
                count.add(Count(passed=1) if call(command) == 0 else Count(failed=1))


def read_count(report: Path) -> Count:
    """What pytest's JUnit report says; nothing where there is none."""
    count = Count()
    if report.exists():
        for suite in xml.etree.ElementTree.parse(report).iter("testsuite"):
            tests, failures, errors, skipped = (int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped"))
            count.add(Count(tests - failures - errors - skipped, failures + errors, skipped))
    return count


def call(command: Sequence[str | Path], output: IO[str] | None = None, **environment: str) -> int:
    """Run a command to its end, also when this program is told to stop."""
    # A process group of its own: Ctrl-C comes to it once, from here, so that its cleaning up is not interrupted by another.
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | environment, process_group=0
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        say("stopping")
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise


def missing_packages(wanted: list[Stage]) -> list[str]:
    """The names of packages that are not installed."""
    names = PACKAGES.copy()
    if STAGES["system"] in wanted or STAGES["bench"] in wanted:
        lists = [SYSTEM_PACKAGES, *([SYSTEM_PACKAGES_OF_ALL] if os.environ.get("MFCP_ALL") else [])]
        for line in "".join(file.read_text() for file in lists).splitlines():
            names += line.partition("#")[0].split()
    if STAGES["differential"] in wanted:
        names += DIFFERENTIAL_PACKAGES + (ALL_DIFFERENTIAL_PACKAGES if os.environ.get("MFCP_ALL") else [])
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names]
    answer = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    installed = {line.split()[0] for line in answer.splitlines() if line.endswith(" installed")}
    return sorted(set(names) - installed)


def install_packages(run: Run, wanted: list[Stage]) -> None:
    """Install what is missing. Raises Stop."""
    with run.telling("packages"):
        if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
            say("this is neither Debian nor Ubuntu: what the tests need must be installed by hand; they say what is missing")
            return
        missing = missing_packages(wanted)
        if not missing:
            return
        if os.geteuid() != 0:
            raise Stop(f"packages are missing; as root, type: apt-get install {' '.join(missing)}")
        say(f"{len(missing)} are missing and are installed with apt-get: {' '.join(missing)}")
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *missing)
        if "openssh-server" in missing and shutil.which("systemctl") is not None:
            say("openssh-server is here for the program in it: its service is switched off")
            subprocess.run(["systemctl", "disable", "--now", "ssh.service", "ssh.socket"], capture_output=True)


def _apt_get(*arguments: str) -> None:
    # Hundreds of lines, of which nobody needs one unless it fails.
    options = ["-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        environment = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        if call(["apt-get", *options, *arguments], output=log, **environment) != 0:
            log.seek(0)
            say(log.read())
            raise Stop(f"apt-get {arguments[0]} failed (see above)")


def set_up(run: Run, wanted: list[Stage]) -> None:
    """Make what the tests need. Raises Stop."""
    install_packages(run, wanted)
    os.environ["VENV"] = str(VENV)  # read by packaging/build, at the top of the repository, where a relative one says another
    run.set_up("the Python environment", ROOT / "packaging/setup-venv", VENV)
    if needs_build(wanted):
        run.set_up("dist/", ROOT / "packaging/build")
        run.set_up("csi-sanity", ROOT / "tests/conformance/build-csi-sanity")
        # The system tests build a server with it.
        go = subprocess.run([ROOT / "tests/conformance/get-go"], stdout=subprocess.PIPE, text=True).stdout.strip()
        if go:
            os.environ["GO"] = go


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """End."""
        self.exit(2, f"{self.prog}: {message}; try {self.prog} --help\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="tests/run",
        description="Installs the distribution's packages that are missing (Debian, Ubuntu; as root), makes .venv and dist/, and "
        "runs all tests. The last line says how many passed and failed; the exit status is 0 when none failed.",
        epilog="stages: " + ", ".join(f"{stage.name} ({stage.what})" for stage in STAGES.values()),
        allow_abbrev=False,
    )
    parser.add_argument("--only", metavar="STAGE[,STAGE]", type=stages, default=list(STAGES.values()), help="run these stages alone")
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"the long runs too: {LONG_EXAMPLES} examples for each property, Debian 13's fusermount3, the driver killed at every "
        "system call, and FUSE programs that take long or are built first (needs Rust)",
    )
    parser.add_argument("--soak", metavar="SECONDS", type=seconds, help="how long the soak of the system tests runs; 120 without it")
    parser.add_argument("--no-setup", action="store_true", help="install nothing and build nothing: test what is there")
    return parser.parse_args()


def stages(names: str) -> list[Stage]:
    """The stages that were named, in their order."""
    wanted = names.split(",")
    for name in wanted:
        if name not in STAGES:
            raise argparse.ArgumentTypeError(f"there is no stage {name!r}; there are {', '.join(STAGES)}")
    return [stage for stage in STAGES.values() if stage.name in wanted]


def seconds(text: str) -> float:
    """A time that was given."""
    try:
        given = float(text)
    except ValueError:
        given = 0.0
    if not 0 < given < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return given


def needs_build(wanted: list[Stage]) -> bool:
    """Whether any of them runs what is shipped."""
    return any(stage.needs_build for stage in wanted)


def duration(began: float) -> str:
    """The time since `began`."""
    seconds = round(time.monotonic() - began)
    return f"{seconds // 60}:{seconds % 60:02}"


def say(text: str) -> None:
    """Print, in order with what the steps print themselves."""
    print(text, flush=True)


def main() -> int:
    """Run, and always end with one line that counts."""
    options = arguments()
    wanted: list[Stage] = options.only
    began = time.monotonic()
    set_up_steps = 0 if options.no_setup else 4 if needs_build(wanted) else 2
    run = Run(steps=set_up_steps + len(wanted))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    status = 0
    if options.all:
        os.environ["MFCP_ALL"] = "1"  # read by tests/system and tests/differential
        os.environ.setdefault("MFCP_EXAMPLES", str(LONG_EXAMPLES))  # read by tests/property and tests/differential
    if options.soak is not None:
        os.environ["MFCP_SOAK_SECONDS"] = str(options.soak)  # read by tests/system/harness/leaks.py
    try:
        if not options.no_setup:
            set_up(run, wanted)
        for stage in wanted:
            run.test(stage)
    except Stop as stop:
        say(f"tests/run: {stop}")
    except KeyboardInterrupt:
        say("tests/run: interrupted")
        status = 130
    for title in run.failures:
        say(f"failed: {title}")
    say(f"\nall of it took {duration(began)}")
    # Alone on the last line, which is what CI reads.
    say(str(run.count))
    return status or (1 if run.count.failed else 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader has ended, as `head` does: nobody is there to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
