"""For all tests: the packages of this repository are imported from where they lie, and signals are as in a terminal."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Read when gRPC is imported: with it, a process that forks itself afterwards has no gRPC that works. As in the driver (cli.py).
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# A shell starts background jobs with these ignored, and programs that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
