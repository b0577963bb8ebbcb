"""Implements tests/run: installs and builds what the tests need, runs the stages, and counts the tests.

It uses only the standard library, because it makes .venv itself. Tests spend much of their time waiting. So two steps run at once,
and the tests of a stage run in several processes (pytest-xdist). Stages that measure time come last, when nothing else runs.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("VENV", ROOT / ".venv")).absolute()

# .venv, dist/ and the checks need these packages. The system tests have lists of their own.
PACKAGES = [
    *("ca-certificates", "git", "shellcheck", "util-linux", "mount"),
    *("python3", "python3-dev", "python3-venv", "gcc", "libc6-dev", "libcap-dev"),
    *("patchelf", "binutils", "libc-bin"),
]
SYSTEM_PACKAGES = ROOT / "tests/system/packages.txt"
SYSTEM_PACKAGES_OF_ALL = ROOT / "tests/system/packages-all.txt"
# The differential tests need the fusermount3 of this machine, and with --all a root file system of Debian 13 with another one.
DIFFERENTIAL_PACKAGES = ["fuse3"]
ALL_DIFFERENTIAL_PACKAGES = ["debootstrap", "debian-archive-keyring"]
KERNELS_PACKAGES = ROOT / "tests/kernels/packages.txt"
SUITES_PACKAGES = ROOT / "tests/suites/packages.txt"
# What tests/engines runs: programs, each with the package that has it. Docker's own packages have some of them under other names.
ENGINE_PACKAGES = {
    "podman": "podman",
    "podman-compose": "podman-compose",
    "dockerd": "docker.io",
    "docker": "?exact-name(docker-cli)",  # Debian 12 and Ubuntu 24.04 have it in docker.io, and no such package
    "ctr": "containerd",
    "runc": "runc",
    "crun": "crun",
    "busybox": "busybox-static",
    "gcc": "gcc",
}
ENGINE_LIBRARIES = ["libc6-dev", "libfuse3-dev"]
# Services that the tests do not need, of packages whose programs they need.
SERVICES = {
    "openssh-server": ("ssh.service", "ssh.socket"),
    "docker.io": ("docker.service", "docker.socket"),
    "containerd": ("containerd.service",),
}

LONG_EXAMPLES = 20_000
MESSAGE_MAX = 500  # characters of a failed test's message in the summary

STEPS_AT_ONCE = 2
_CPUS = len(os.sched_getaffinity(0))
# tests/sidebyside.py sorts the tests, so xdist must not.
_BUSY = ("-n", str(_CPUS), "--dist", "loadscope", "--no-loadscope-reorder")
_WAITING = ("-n", str(min(2 * _CPUS, 8)), *_BUSY[2:])


class Stop(Exception):
    """Reports that a step failed, so that steps that need it cannot run. The text is one line."""


class Interrupted(Exception):
    """Ends a step because this program was interrupted."""


@dataclass(frozen=True)
class Stage:
    """Describes a group of tests. Each test of a pytest stage is counted, and any other stage counts as one test."""

    name: str
    what: str
    module: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # names of steps of the set-up
    is_alone: bool = False  # it measures time or needs all processors, so nothing else may run meanwhile
    is_long: bool = False  # it runs only with --all, or when --only names it

    @property
    def is_pytest(self) -> bool:
        return self.module == "pytest"

    @property
    def title(self) -> str:
        return f"{self.name}: {self.what}"


DIST, CSI_SANITY, SUITES, ENVIRONMENT, PACKAGES_STEP = "dist/", "csi-sanity", "libfuse and sshfs", "the Python environment", "packages"
_SYSTEM = ("tests/system", "--durations=15")

# Stages begin in this order, each as soon as the steps that it needs are done. The longest stage is first.
STAGES = [
    Stage("system", "real mounts and containers", "pytest", (*_SYSTEM, "-m", "not alone", *_WAITING), needs=(DIST,)),
    Stage("format", "ruff format", "ruff", ("format", "--check")),
    Stage("lint", "ruff", "ruff", ("check",)),
    Stage("types", "mypy", "mypy"),
    Stage("hygiene", "shellcheck, and rules for every file", "pytest", ("tests/hygiene",)),
    Stage("unit", "without root", "pytest", ("tests/unit", *_BUSY)),
    Stage("property", "hypothesis", "pytest", ("tests/property", *_BUSY)),
    Stage("differential", "compared with libfuse's fusermount3", "pytest", ("tests/differential",), needs=(DIST,)),
    Stage("conformance", "csi-sanity", "pytest", ("tests/conformance",), needs=(DIST, CSI_SANITY)),
    Stage("engines", "each container engine of this machine", "pytest", ("tests/engines",), needs=(DIST,), is_long=True),
    Stage("system", "tests that measure time", "pytest", (*_SYSTEM, "-m", "alone"), needs=(DIST,), is_alone=True),
    Stage("kernels", "a smoke set under Debian's kernels", "pytest", ("tests/kernels",), needs=(DIST,), is_alone=True, is_long=True),
    Stage("suites", "libfuse's and sshfs's own tests", "pytest", ("tests/suites",), needs=(DIST, SUITES), is_alone=True, is_long=True),
    Stage("bench", "limits of time and memory", "bench", ("--short", "--check"), needs=(DIST,), is_alone=True),
]
NAMES = list(dict.fromkeys(stage.name for stage in STAGES))


@dataclass
class Count:
    """Counts tests by their outcome."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: "Count") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else "")


class Commands:
    """Runs commands, and interrupts those that run when this program is interrupted, so that they clean up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopping = False

    def call(self, command: Sequence[str | Path], output: IO[bytes] | None = None, **environment: str) -> int:
        """Run a command to its end, and return its exit status. Raises Interrupted if stop() was called before or meanwhile."""
        with self._lock:
            self._expect_to_go_on()
            # In a process group of its own the command gets SIGINT only from stop(), so a second Ctrl-C does not interrupt its clean-up.
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | environment,
                process_group=0,
            )
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.remove(process)
            self._expect_to_go_on()
        return status

    def stop(self) -> None:
        """Interrupt all commands. Every later call() raises Interrupted."""
        with self._lock:
            self._is_stopping = True
            for process in self._running:
                os.killpg(process.pid, signal.SIGINT)

    def _expect_to_go_on(self) -> None:
        if self._is_stopping:
            raise Interrupted


COMMANDS = Commands()


@dataclass
class Progress:
    """Holds the result of one step while it runs."""

    count: Count
    output: IO[bytes] | None  # collects the output of the step's commands, if another step runs meanwhile
    failed_tests: list[str] = field(default_factory=list)  # the name of each and its message


@dataclass
class Run:
    """Holds the state of this run: the number of steps so far, and their results."""

    steps: int = 0
    step: int = 0
    count: Count = field(default_factory=Count)
    failures: list[str] = field(default_factory=list)
    is_shared: bool = False  # whether several steps run at once
    lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def telling(self, title: str) -> Iterator[Progress]:
        """Print a line before a step and one after it. The block fills in the count."""
        with self.lock:
            self.step += 1
            place = f"[{self.step}/{self.steps}] {title}"
            say(f"\n{place}")
        began = time.monotonic()
        with ExitStack() as stack:
            progress = Progress(Count(), stack.enter_context(tempfile.TemporaryFile()) if self.is_shared else None)
            try:
                yield progress
            except BaseException:
                progress.count.failed += 1
                raise
            finally:
                with self.lock:
                    if progress.output is not None:
                        progress.output.seek(0)
                        say(f"\n{place}")
                        sys.stdout.buffer.write(progress.output.read())
                    self.count.add(progress.count)
                    if progress.count.failed:
                        self.failures += [title, *(f"    {test}" for test in progress.failed_tests)]
                    say(f"{place}: {'FAILED' if progress.count.failed else 'ok'}, {duration(began)}")

    def set_up(self, title: str, *command: str | Path) -> None:
        """Run a command of the set-up as a step. Raises Stop if it fails."""
        with self.telling(title) as progress:
            if COMMANDS.call(command, progress.output) != 0:
                raise Stop(f"{os.path.relpath(command[0], ROOT)} failed")

    def test(self, stage: Stage) -> None:
        """Run the tests of a stage as a step. Raises Stop if there is no Python environment."""
        python = VENV / "bin/python"
        command: list[str | Path] = [python, "-m", stage.module, *stage.arguments]
        with self.telling(stage.title) as progress, tempfile.TemporaryDirectory() as folder:
            if not python.exists():
                raise Stop(f"{python} is missing; run tests/run without --no-setup")
            if stage.is_pytest:
                report = Path(folder, "report.xml")
                status = COMMANDS.call([*command, "-p", "no:cacheprovider", "--no-header", f"--junitxml={report}"], progress.output)
                count, progress.failed_tests = read_report(report)
                progress.count.add(count)
                # pytest failed, although no test did: it found none, or ended with an error of its own.
                progress.count.failed += 1 if status != 0 and not progress.count.failed else 0
            else:
                done = COMMANDS.call(command, progress.output) == 0
                progress.count.add(Count(passed=1) if done else Count(failed=1))


@dataclass(frozen=True)
class Step:
    """Describes a part of a run. It begins when the steps that it needs are done, and does not run if one of them failed."""

    name: str
    work: Callable[[], None]
    needs: tuple[str, ...] = ()
    is_alone: bool = False


class Schedule:
    """Runs steps: first STEPS_AT_ONCE at a time, and then one after another those that run alone."""

    def __init__(self, run: Run, steps: Sequence[Step]) -> None:
        self._run = run
        self._steps = steps
        self._left: list[Step] = []
        self._undone = {step.name for step in steps}
        self._changed = threading.Condition()

    def work(self) -> None:
        """Run all steps. Raises KeyboardInterrupt, and any error that is a mistake in a step."""
        self._work([step for step in self._steps if not step.is_alone], STEPS_AT_ONCE)
        self._work([step for step in self._steps if step.is_alone and not self._undone.intersection(step.needs)], 1)

    def _work(self, steps: list[Step], at_once: int) -> None:
        self._left = steps
        self._run.is_shared = at_once > 1
        # Even a single step runs in a thread, because Ctrl-C raises in the main thread, where it would interrupt waiting for a command.
        with ThreadPoolExecutor(at_once) as pool:
            workers = [pool.submit(self._work_on) for _ in range(at_once)]
            try:
                wait(workers, return_when=FIRST_EXCEPTION)
                for worker in workers:
                    if worker.done():
                        worker.result()
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    say("stopping")
                COMMANDS.stop()
                raise

    def _work_on(self) -> None:
        while (step := self._next()) is not None:
            done = False
            try:
                step.work()
                done = True
            except Stop as stop:
                say(f"tests/run: {stop}")
            except BaseException:
                with self._changed:
                    self._left.clear()
                    self._changed.notify_all()
                raise
            with self._changed:
                if done:
                    self._undone.discard(step.name)
                else:
                    self._drop_those_that_need(step.name)
                self._changed.notify_all()

    def _next(self) -> Step | None:
        with self._changed:
            while self._left:
                for step in self._left:
                    if not self._undone.intersection(step.needs):
                        self._left.remove(step)
                        return step
                self._changed.wait()
        return None

    def _drop_those_that_need(self, name: str) -> None:
        for step in [step for step in self._left if name in step.needs]:
            self._left.remove(step)
            self._drop_those_that_need(step.name)


def read_report(report: Path) -> tuple[Count, list[str]]:
    """Return the count in pytest's JUnit report, and a line for each test that failed. Both are empty if there is no report."""
    count, failed = Count(), []
    if report.exists():
        root = xml.etree.ElementTree.parse(report)
        for suite in root.iter("testsuite"):
            tests, failures, errors, skipped = (int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped"))
            count.add(Count(tests - failures - errors - skipped, failures + errors, skipped))
        for case in root.iter("testcase"):
            for result in (*case.findall("failure"), *case.findall("error")):
                message = " ".join(result.get("message", "").split())
                failed.append(f"{case.get('classname')}::{case.get('name')}: {message[:MESSAGE_MAX]}")
    return count, failed


def missing_packages(wanted: list[Stage]) -> list[str]:
    """Return the names of the packages that these stages need and that are not installed."""
    names = PACKAGES.copy()
    own = {"kernels": KERNELS_PACKAGES, "suites": SUITES_PACKAGES}
    lists = [file for name, file in own.items() if name in {stage.name for stage in wanted}]
    if {"system", "bench", "kernels"} & {stage.name for stage in wanted}:
        lists += [SYSTEM_PACKAGES, *([SYSTEM_PACKAGES_OF_ALL] if os.environ.get("MFCP_ALL") else [])]
    for line in "".join(file.read_text() for file in lists).splitlines():
        names += line.partition("#")[0].split()
    if "differential" in {stage.name for stage in wanted}:
        names += DIFFERENTIAL_PACKAGES + (ALL_DIFFERENTIAL_PACKAGES if os.environ.get("MFCP_ALL") else [])
    engines: list[str] = []
    if "engines" in {stage.name for stage in wanted}:
        names += ENGINE_LIBRARIES
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        engines = [package for program, package in ENGINE_PACKAGES.items() if shutil.which(program, path=path) is None]
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names]
    answer = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    installed = {line.split()[0] for line in answer.splitlines() if line.endswith(" installed")}
    return sorted({*names, *engines} - installed)


def install_packages(run: Run, wanted: list[Stage]) -> None:
    """Install the packages that these stages need. Raises Stop if that fails or needs root."""
    with run.telling(PACKAGES_STEP):
        if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
            say("this is neither Debian nor Ubuntu: install what the tests need by hand; a test that fails names what is missing")
            return
        missing = missing_packages(wanted)
        if not missing:
            return
        if os.geteuid() != 0:
            raise Stop(f"packages are missing; as root, type: apt-get install {' '.join(missing)}")
        say(f"installing {len(missing)} packages with apt-get: {' '.join(missing)}")
        _apt_get("update")
        # With --no-remove it fails rather than take away what this machine has.
        _apt_get("install", "--yes", "--no-remove", "--no-install-recommends", *missing)
        if shutil.which("systemctl") is not None:
            for package in SERVICES.keys() & set(missing):
                say(f"switching off the service of {package}, since the tests only need the program")
                subprocess.run(["systemctl", "disable", "--now", *SERVICES[package]], capture_output=True)


def _apt_get(*arguments: str) -> None:
    # apt-get prints hundreds of lines, which are of use only if it fails.
    options = ["-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]
    with tempfile.TemporaryFile() as log:
        environment = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        if COMMANDS.call(["apt-get", *options, *arguments], output=log, **environment) != 0:
            log.seek(0)
            say(log.read().decode(errors="replace"))
            raise Stop(f"apt-get {arguments[0]} failed (see above)")


def set_up_steps(run: Run, wanted: list[Stage]) -> list[Step]:
    """Return the steps that install and build what these stages need."""
    os.environ["VENV"] = str(VENV)  # packaging/build reads it, and its working directory is another one, so it must be absolute

    def make_dist() -> None:
        run.set_up(DIST, ROOT / "packaging/build")
        # The system tests build a server with Go. Go may have to be fetched, and two steps at once would both fetch it.
        go = subprocess.run([ROOT / "tests/conformance/get-go"], stdout=subprocess.PIPE, text=True).stdout.strip()
        if go:
            os.environ["GO"] = go

    steps = [
        Step(PACKAGES_STEP, lambda: install_packages(run, wanted)),
        Step(ENVIRONMENT, lambda: run.set_up(ENVIRONMENT, ROOT / "packaging/setup-venv", VENV), needs=(PACKAGES_STEP,)),
        Step(DIST, make_dist, needs=(ENVIRONMENT,)),
        Step(CSI_SANITY, lambda: run.set_up(CSI_SANITY, ROOT / "tests/conformance/build-csi-sanity"), needs=(DIST,)),
        Step(SUITES, lambda: run.set_up(SUITES, ROOT / "tests/suites/build"), needs=(PACKAGES_STEP,)),
    ]
    needed = {need for stage in wanted for need in stage.needs}
    return [step for step in steps if step.name in {PACKAGES_STEP, ENVIRONMENT, *needed}]


class Parser(argparse.ArgumentParser):
    """Reports a mistake on the command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        self.exit(2, f"{self.prog}: {message}; try {self.prog} --help\n")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="tests/run",
        description="Installs the distribution's packages that are missing (Debian, Ubuntu; as root), makes .venv and dist/, and "
        "runs all tests. The last line is the number of tests that passed and failed. The exit status is 0 if none failed.",
        epilog="stages: " + ", ".join(f"{stage.name} ({stage.what})" for stage in STAGES),
        allow_abbrev=False,
    )
    parser.add_argument("--only", metavar="STAGE[,STAGE]", type=stages, help="run only these stages")
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"also make the long runs: {LONG_EXAMPLES} examples for each property, Debian 13's fusermount3, the driver killed at "
        "every system call, FUSE programs that take long or must be built (needs Rust), and the stages engines, kernels and suites",
    )
    parser.add_argument("--soak", metavar="SECONDS", type=seconds, help="how long the soak of the system tests runs (default 120)")
    parser.add_argument("--no-setup", action="store_true", help="install and build nothing, and test what is there")
    return parser.parse_args()


def stages(names: str) -> list[Stage]:
    """Return the named stages in the order of STAGES. Raises ArgumentTypeError for an unknown name."""
    wanted = names.split(",")
    for name in wanted:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"there is no stage {name!r}; there are {', '.join(NAMES)}")
    return [stage for stage in STAGES if stage.name in wanted]


def seconds(text: str) -> float:
    """Return the number of seconds in `text`. Raises ArgumentTypeError if it is none."""
    try:
        given = float(text)
    except ValueError:
        given = 0.0
    if not 0 < given < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return given


def duration(began: float) -> str:
    """Return the time since `began` as MINUTES:SECONDS."""
    seconds = round(time.monotonic() - began)
    return f"{seconds // 60}:{seconds % 60:02}"


def say(text: str) -> None:
    """Print a line at once, so that it stands in order with the output of commands."""
    print(text, flush=True)


def main() -> int:
    """Run the tests. The last line printed is always the count. Returns the exit code."""
    options = arguments()
    wanted: list[Stage] = options.only or [stage for stage in STAGES if options.all or not stage.is_long]
    began = time.monotonic()
    run = Run()
    steps = [] if options.no_setup else set_up_steps(run, wanted)
    steps += [Step(stage.title, partial(run.test, stage), (ENVIRONMENT, *stage.needs), stage.is_alone) for stage in wanted]
    steps.sort(key=lambda step: step.name == CSI_SANITY)  # last, because compiling it takes long, and only one short stage needs it
    run.steps = len(steps)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    status = 0
    if options.all:
        os.environ["MFCP_ALL"] = "1"  # read by tests/system and tests/differential
        os.environ.setdefault("MFCP_EXAMPLES", str(LONG_EXAMPLES))  # read by tests/property and tests/differential
    if options.soak is not None:
        os.environ["MFCP_SOAK_SECONDS"] = str(options.soak)  # read by tests/system/harness/leaks.py
    try:
        Schedule(run, steps).work()
    except KeyboardInterrupt:
        say("tests/run: interrupted")
        status = 130
    if run.failures:
        say("\nfailed:")
    for line in run.failures:
        say(f"  {line}")
    say(f"\nthe whole run took {duration(began)}")
    # CI reads the last line, so it holds only the count.
    say(str(run.count))
    return status or (1 if run.count.failed else 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of the output has ended, as `head` does, so nothing can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
