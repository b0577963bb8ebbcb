"""bench/run: measure, print the table, check it."""

import argparse
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
os.environ.pop("PYTHONPATH", None)  # bench/run's, for this process alone
sys.path[:0] = [str(ROOT), str(ROOT / "tests/system"), str(ROOT / "tests")]

import pytest  # noqa: E402
from harness import driver  # noqa: E402

from bench import calls, containers, sizes, startup, table, volumes  # noqa: E402
from bench.place import Bench, BenchError, Peers, private_place  # noqa: E402
from bench.rows import SUBJECTS  # noqa: E402

GROUPS: dict[str, Callable[[Bench], None]] = {
    "startup": startup.measure,
    "containers": containers.measure,
    "calls": calls.measure,
    "volumes": volumes.measure,
    "sizes": sizes.measure,
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; try {self.prog} --help\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="bench/run", description="Measures what dist/ holds, each row beside its reference, and prints one table.")
    parser.add_argument("--only", metavar="GROUP[,GROUP]", type=_groups, default=list(GROUPS), help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--short", action="store_true", help="few rounds, for CI")
    parser.add_argument("--check", action="store_true", help="fail where a ratio is worse than bench/bounds.toml allows")
    parser.add_argument("--markdown", metavar="FILE", type=_file, help="write the table here too")
    parser.add_argument("--json", metavar="FILE", type=_file, help="write all values here")
    for name, what in (("driver", "driver"), ("fusermount3", "fusermount3"), ("starter", "fuse-starter")):
        text = f"another implementation's {what}, which stands beside ours"
        parser.add_argument(f"--peer-{name}", metavar="COMMAND", type=_command, default=[], help=text)
    text = "what it is called in the table (default: peer); one called Go is held to the bounds that are for the Go plugin"
    parser.add_argument("--peer-name", metavar="NAME", type=_name, default="peer", help=text)
    return parser.parse_args()


def _groups(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"there is no group {name!r}; there are {', '.join(GROUPS)}")
    return [name for name in GROUPS if name in names]


def _command(text: str) -> list[str]:
    words = text.split()
    if not words or shutil.which(words[0]) is None:
        raise argparse.ArgumentTypeError(f"there is no program {text!r}")
    return [os.path.abspath(str(shutil.which(words[0]))), *words[1:]]


def _file(text: str) -> Path:
    # Asked now: what is measured in minutes would be lost at the end.
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is no file that can be written")
    return path


def _name(text: str) -> str:
    if not text or text in SUBJECTS:
        raise argparse.ArgumentTypeError(f"{text!r} is a name of something else in the table")
    return text


def conditions() -> dict[str, str]:
    """What the numbers depend on."""
    cpu = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    chosen = os.environ.get(driver.VARIABLE)
    versions = {name: _version(name) for name in ("grpcio", "pyinstaller")}
    return {
        "kernel": platform.release(),
        "CPU": f"{os.cpu_count()} x {cpu[0] if cpu else platform.machine()}",
        "Python": platform.python_version(),
        **versions,
        **({f"driver ({driver.VARIABLE})": chosen} if chosen else {}),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code."""
    said = conditions()
    peers = Peers(options.peer_name, options.peer_driver, options.peer_fusermount3, options.peer_starter)
    with private_place() as folder:
        bench = Bench(folder, peers, options.short)
        for name in options.only:
            began = time.monotonic()
            GROUPS[name](bench)
            print(f"bench: {name} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    shown = f"{', '.join(f'{name} {text}' for name, text in said.items())}\n\n{table.markdown(bench.results)}"
    print(shown)
    if options.markdown:
        options.markdown.write_text(shown + "\n")
    if options.json:
        options.json.write_text(table.as_json(bench.results, said))
    worse = table.failures(bench.results) if options.check else []
    for line in worse:
        print(f"bench: worse than its bound: {line}", file=sys.stderr)
    return 1 if worse else 0


def main() -> int:
    """Everything that goes wrong ends in one line."""
    options = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        if os.geteuid() != 0:
            raise BenchError("it mounts file systems and starts containers: run it as root")
        return run(options)
    except (BenchError, AssertionError) as error:  # the harness asserts what must be
        print(f"bench: {str(error).strip()}", file=sys.stderr)
    except pytest.fail.Exception as error:  # by tests/system/harness, which says what is missing
        print(f"bench: {error.msg}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
