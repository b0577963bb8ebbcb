"""Measures, prints the table, and checks it: this is what bench/run starts."""

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
os.environ.pop("PYTHONPATH", None)  # bench/run sets it for this process alone
sys.path[:0] = [str(ROOT), str(ROOT / "tests/system"), str(ROOT / "tests")]

import pytest  # noqa: E402
from harness import driver  # noqa: E402

from bench import calls, containers, devices, sizes, startup, table, volumes  # noqa: E402
from bench.place import Bench, BenchError, Peer, private_place  # noqa: E402
from bench.rows import SUBJECTS  # noqa: E402

GROUPS: dict[str, Callable[[Bench], None]] = {
    "startup": startup.measure,
    "containers": containers.measure,
    "calls": calls.measure,
    "volumes": volumes.measure,
    "devices": devices.measure,
    "sizes": sizes.measure,
}


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; try {self.prog} --help\n")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(prog="bench/run", description="Measures the programs in dist/, each row beside its reference, and prints one table.")
    parser.add_argument("--short", action="store_true", help="take few rounds, as CI does")
    parser.add_argument("--check", action="store_true", help="fail where a ratio is worse than bench/bounds.toml allows")
    parser.add_argument(
        "--only", metavar="GROUP[,GROUP]", type=_groups, default=list(GROUPS), help=f"measure only these of {', '.join(GROUPS)}"
    )
    text = "measure another build too; DIR is its dist/, NAME its name in the table (default: peer), and Go is the Go plugin"
    parser.add_argument("--peer", metavar="[NAME=]DIR", type=_peer, help=text)
    parser.add_argument("--json", metavar="FILE", type=_file, help="write all values here")
    return parser.parse_args()


def _groups(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"there is no group {name!r}; there are {', '.join(GROUPS)}")
    return [name for name in GROUPS if name in names]


def _peer(text: str) -> Peer:
    name, _, folder = text.rpartition("=")
    peer = Peer(name or "peer", Path(folder).resolve())
    if peer.name in SUBJECTS:
        raise argparse.ArgumentTypeError(f"the table has another column with the name {peer.name!r}")
    for path in (peer.driver, peer.tree / "fusermount3", peer.tree / "fuse-starter", peer.single_file):
        if not os.access(path, os.X_OK):
            raise argparse.ArgumentTypeError(f"there is no program {path}; name the folder dist/ that packaging/build made")
    return peer


def _file(text: str) -> Path:
    # Checked now, because minutes of measuring would be lost at the end.
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file that can be written")
    return path


def conditions() -> dict[str, str]:
    """Return what the numbers depend on."""
    cpu = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    chosen = os.environ.get(driver.VARIABLE)
    return {
        "kernel": platform.release(),
        "CPU": f"{os.cpu_count()} x {cpu[0] if cpu else platform.machine()}",
        "Python": platform.python_version(),
        **{name: version(name) for name in ("grpcio", "pyinstaller")},
        **({f"driver ({driver.VARIABLE})": chosen} if chosen else {}),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def run(options: argparse.Namespace) -> int:
    """Measure and print, and return the exit code."""
    said = conditions()
    with private_place(options.peer) as folder:
        bench = Bench(folder, options.peer, options.short)
        for name in options.only:
            began = time.monotonic()
            GROUPS[name](bench)
            print(f"bench: {name} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(f"{', '.join(f'{name} {text}' for name, text in said.items())}\n\n{table.markdown(bench.results)}")
    if options.json:
        options.json.write_text(table.as_json(bench.results, said))
    worse = table.failures(bench.results) if options.check else []
    for line in worse:
        print(f"bench: worse than its bound: {line}", file=sys.stderr)
    return 1 if worse else 0


def main() -> int:
    """Run, and report each failure in one line."""
    options = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        if os.geteuid() != 0:
            raise BenchError("must be run as root: it mounts file systems and starts containers")
        return run(options)
    except (BenchError, AssertionError) as error:  # tests/system/harness asserts what it needs
        print(f"bench: {str(error).strip()}", file=sys.stderr)
    except pytest.fail.Exception as error:  # tests/system/harness says what is missing
        print(f"bench: {error.msg}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
