"""tests/run: sets up what the tests need, runs them stage by stage, and counts. Standard library alone: it makes .venv itself.

Much of what the tests do is waiting. So two steps run at a time, and the tests of a stage in several processes (pytest-xdist).
What measures time comes last, when nothing else runs.
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

STEPS_AT_ONCE = 2
_CPUS = len(os.sched_getaffinity(0))
# The order is that of tests/sidebyside.py.
_BUSY = ("-n", str(_CPUS), "--dist", "loadscope", "--no-loadscope-reorder")
_WAITING = ("-n", str(min(2 * _CPUS, 8)), *_BUSY[2:])


class Stop(Exception):
    """The rest cannot be run; the text is one line."""


class Interrupted(Exception):
    """This program was told to stop."""


@dataclass(frozen=True)
class Stage:
    """Some tests. Each test of a pytest stage is counted; another stage is one test."""

    name: str
    what: str
    module: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # steps of the set-up
    is_alone: bool = False  # it measures time, so that nothing else may run

    @property
    def is_pytest(self) -> bool:
        return self.module == "pytest"

    @property
    def title(self) -> str:
        return f"{self.name}: {self.what}"


DIST, CSI_SANITY, ENVIRONMENT, PACKAGES_STEP = "dist/", "csi-sanity", "the Python environment", "packages"
_SYSTEM = ("tests/system", "--durations=15")

# In the order in which they are begun, as soon as what they need is there. The longest is first.
STAGES = [
    Stage("system", "real mounts and containers", "pytest", (*_SYSTEM, "-m", "not alone", *_WAITING), needs=(DIST,)),
    Stage("format", "ruff format", "ruff", ("format", "--check")),
    Stage("lint", "ruff", "ruff", ("check",)),
    Stage("types", "mypy", "mypy"),
    Stage("hygiene", "shellcheck, and what holds for every file", "pytest", ("tests/hygiene",)),
    Stage("unit", "without root", "pytest", ("tests/unit", *_BUSY)),
    Stage("property", "hypothesis", "pytest", ("tests/property", *_BUSY)),
    Stage("differential", "the same as libfuse's fusermount3", "pytest", ("tests/differential",), needs=(DIST,)),
    Stage("conformance", "csi-sanity", "pytest", ("tests/conformance",), needs=(DIST, CSI_SANITY)),
    Stage("system", "what measures time", "pytest", (*_SYSTEM, "-m", "alone"), needs=(DIST,), is_alone=True),
    Stage("bench", "nothing has become slow", "bench", ("--short", "--check"), needs=(DIST,), is_alone=True),
]
NAMES = list(dict.fromkeys(stage.name for stage in STAGES))


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


class Commands:
    """The commands that run now. They end with this program, and clean up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopping = False

    def call(self, command: Sequence[str | Path], output: IO[bytes] | None = None, **environment: str) -> int:
        """Run a command to its end, and return its exit status. Raises Interrupted where stop() is called meanwhile or before."""
        with self._lock:
            self._expect_to_go_on()
            # A process group of its own: Ctrl-C comes to it once, from stop(), so that its cleaning up is not interrupted by another.
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
        """Interrupt all commands; call() begins no more."""
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
    """What one step has come to."""

    count: Count
    output: IO[bytes] | None  # of its commands, where another step runs meanwhile


@dataclass
class Run:
    """One run: its steps so far, and what they came to."""

    steps: int = 0
    step: int = 0
    count: Count = field(default_factory=Count)
    failures: list[str] = field(default_factory=list)
    is_shared: bool = False  # several steps run at once
    lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def telling(self, title: str) -> Iterator[Progress]:
        """Print a line before a step and one after it. The block fills in what is counted."""
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
                        self.failures.append(title)
                    say(f"{place}: {'FAILED' if progress.count.failed else 'ok'}, {duration(began)}")

    def set_up(self, title: str, *command: str | Path) -> None:
        """Run a step that others need. Raises Stop."""
        with self.telling(title) as progress:
            if COMMANDS.call(command, progress.output) != 0:
                raise Stop(f"{os.path.relpath(command[0], ROOT)} failed")

    def test(self, stage: Stage) -> None:
        """Run a stage's tests."""
        python = VENV / "bin/python"
        command: list[str | Path] = [python, "-m", stage.module, *stage.arguments]
        with self.telling(stage.title) as progress, tempfile.TemporaryDirectory() as folder:
            if not python.exists():
                raise Stop(f"{python} is missing; run tests/run without --no-setup")
            if stage.is_pytest:
                report = Path(folder, "report.xml")
                status = COMMANDS.call([*command, "-p", "no:cacheprovider", "--no-header", f"--junitxml={report}"], progress.output)
                progress.count.add(read_count(report))
                # pytest found no tests, or fell before or after them.
                progress.count.failed += 1 if status != 0 and not progress.count.failed else 0
            else:
                done = COMMANDS.call(command, progress.output) == 0
                progress.count.add(Count(passed=1) if done else Count(failed=1))


@dataclass(frozen=True)
class Step:
    """A part of a run. It is begun when what it needs is done, and is not when that failed."""

    name: str
    work: Callable[[], None]
    needs: tuple[str, ...] = ()
    is_alone: bool = False


class Schedule:
    """Runs steps: as many at once as are allowed, and then one after another those that run alone."""

    def __init__(self, run: Run, steps: Sequence[Step]) -> None:
        self._run = run
        self._steps = steps
        self._left: list[Step] = []
        self._undone = {step.name for step in steps}
        self._changed = threading.Condition()

    def work(self) -> None:
        """Run all steps."""
        self._work([step for step in self._steps if not step.is_alone], STEPS_AT_ONCE)
        self._work([step for step in self._steps if step.is_alone and not self._undone.intersection(step.needs)], 1)

    def _work(self, steps: list[Step], at_once: int) -> None:
        self._left = steps
        self._run.is_shared = at_once > 1
        # In threads also where it is one: Ctrl-C interrupts the main thread, and nobody's wait for a command.
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


def read_count(report: Path) -> Count:
    """What pytest's JUnit report says; nothing where there is none."""
    count = Count()
    if report.exists():
        for suite in xml.etree.ElementTree.parse(report).iter("testsuite"):
            tests, failures, errors, skipped = (int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped"))
            count.add(Count(tests - failures - errors - skipped, failures + errors, skipped))
    return count


def missing_packages(wanted: list[Stage]) -> list[str]:
    """The names of packages that are not installed."""
    names = PACKAGES.copy()
    if {"system", "bench"} & {stage.name for stage in wanted}:
        lists = [SYSTEM_PACKAGES, *([SYSTEM_PACKAGES_OF_ALL] if os.environ.get("MFCP_ALL") else [])]
        for line in "".join(file.read_text() for file in lists).splitlines():
            names += line.partition("#")[0].split()
    if "differential" in {stage.name for stage in wanted}:
        names += DIFFERENTIAL_PACKAGES + (ALL_DIFFERENTIAL_PACKAGES if os.environ.get("MFCP_ALL") else [])
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names]
    answer = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    installed = {line.split()[0] for line in answer.splitlines() if line.endswith(" installed")}
    return sorted(set(names) - installed)


def install_packages(run: Run, wanted: list[Stage]) -> None:
    """Install what is missing. Raises Stop."""
    with run.telling(PACKAGES_STEP):
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
    with tempfile.TemporaryFile() as log:
        environment = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        if COMMANDS.call(["apt-get", *options, *arguments], output=log, **environment) != 0:
            log.seek(0)
            say(log.read().decode(errors="replace"))
            raise Stop(f"apt-get {arguments[0]} failed (see above)")


def set_up_steps(run: Run, wanted: list[Stage]) -> list[Step]:
    """The steps that make what the tests need."""
    os.environ["VENV"] = str(VENV)  # read by packaging/build, at the top of the repository, where a relative one says another

    def make_dist() -> None:
        run.set_up(DIST, ROOT / "packaging/build")
        # The system tests build a server with it. It may be fetched first, which two steps at once would both do.
        go = subprocess.run([ROOT / "tests/conformance/get-go"], stdout=subprocess.PIPE, text=True).stdout.strip()
        if go:
            os.environ["GO"] = go

    steps = [
        Step(PACKAGES_STEP, lambda: install_packages(run, wanted)),
        Step(ENVIRONMENT, lambda: run.set_up(ENVIRONMENT, ROOT / "packaging/setup-venv", VENV), needs=(PACKAGES_STEP,)),
        Step(DIST, make_dist, needs=(ENVIRONMENT,)),
        Step(CSI_SANITY, lambda: run.set_up(CSI_SANITY, ROOT / "tests/conformance/build-csi-sanity"), needs=(DIST,)),
    ]
    needed = {need for stage in wanted for need in stage.needs}
    return [step for step in steps if step.name in {PACKAGES_STEP, ENVIRONMENT, *needed}]


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
        epilog="stages: " + ", ".join(f"{stage.name} ({stage.what})" for stage in STAGES),
        allow_abbrev=False,
    )
    parser.add_argument("--only", metavar="STAGE[,STAGE]", type=stages, default=STAGES, help="run these stages alone")
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
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"there is no stage {name!r}; there are {', '.join(NAMES)}")
    return [stage for stage in STAGES if stage.name in wanted]


def seconds(text: str) -> float:
    """A time that was given."""
    try:
        given = float(text)
    except ValueError:
        given = 0.0
    if not 0 < given < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return given


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
    run = Run()
    steps = [] if options.no_setup else set_up_steps(run, wanted)
    steps += [Step(stage.title, partial(run.test, stage), (ENVIRONMENT, *stage.needs), stage.is_alone) for stage in wanted]
    steps.sort(key=lambda step: step.name == CSI_SANITY)  # compiled for long, for one short stage: last
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
