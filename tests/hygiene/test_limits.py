"""Compare the limits that the pages name with those of the code.

Each text here is part of a page; the numbers in it come from the code.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from driver.model import limits, policy  # noqa: E402
from driver.observe import logs  # noqa: E402
from fusermount3_proxy import limits as client_limits  # noqa: E402
from fusermount3_proxy.wire import protocol  # noqa: E402

KIB = 1024
MOUNTING_THREADS = 1  # driver/mounts/linuxkernel.py
UNMOUNTING_THREADS = 1
DIRECTORY_THREADS = 1  # driver/blocking/directories.py
WORDS = {8: "eight"}

SECURITY = [
    f"| {limits.CONNECTIONS_MAX} are accepted: {limits.REQUESTS_AT_ONCE} are served, and {limits.CONNECTIONS_TO_CLOSE} more are closed "
    f"without an answer. {limits.CONNECTIONS_IN_QUEUE} more wait in the kernel's queue of each socket. |",
    f", {limits.PREPARED_AT_ONCE} of prepared mounts,",
    f"| threads | {limits.CONNECTION_THREADS + limits.LISTENER_THREADS + MOUNTING_THREADS + UNMOUNTING_THREADS + DIRECTORY_THREADS}: "
    f"{limits.CONNECTION_THREADS} receive and close, {limits.LISTENER_THREADS} closes listening sockets, "
    f"{MOUNTING_THREADS} mounts, {UNMOUNTING_THREADS} unmounts, {DIRECTORY_THREADS} works in the sockets' directory |",
    f"| {DIRECTORY_THREADS + MOUNTING_THREADS}, however often kubelet tries: one in the sockets' directory, for all volumes with sockets "
    f"there, and one that mounts on the target. Each call waits {limits.DIRECTORY_WAIT:g} s for one of them. |",
    f"| lazily unmounted file systems that are still in use | {limits.DETACHED_MAX}; one more ends the oldest.",
    f"| a packet, and the time for it | {protocol.PACKET_MAX // KIB} KiB, {limits.REQUEST_WAIT:g} s |",
    f"| log, refusals and lines about mounts | {logs._LINES_MAX} of each a minute; {logs._TEXT_MAX} characters each |",
    f"| log, lines about what is wrong | {logs._LINES_MAX} a minute; {logs._TEXT_MAX} characters each |",
    f"| {limits.PROCESSES_OF_A_POD} of each of four kinds (below).",
    f"| {limits.PROCESSES_FOR_USAGE} for usage, {limits.PROCESSES_FOR_REBINDING} for subPath binds, "
    f"{limits.PROCESSES_FOR_CHECKS} for checks, and {limits.PROCESSES_FOR_CHECKS_WITHOUT_LOCK} for checks without a lock |",
    f"each mount with a synchronous INIT has a process for {limits.SYNC_MOUNT_WAIT:g} s",
    f"| mount options of a volume | {policy.OPTIONS_MAX} characters; {policy._WARNINGS_MAX} warnings about them |",
    f"one of the {WORDS[limits.CONNECTION_THREADS]} of the volume that the fd was sent to",
    f"| {limits.DEVICE_MOUNTS} (`--fuse-mounts-max`), with those that were unmounted lazily and are in use |",
    f"| {limits.VISITS_OF_AN_ALLOCATION} that mount, and as many that ask and unmount; {limits.VISITS} of each kind for all containers.",
    f"| {limits.VISIT_WAIT:g} s, with a synchronous INIT {limits.SYNC_MOUNT_WAIT:g} s; then it is refused |",
    f"| {limits.DEVICE_LEFT_MAX} of a device |",
    f"| twice {limits.CONTAINER_CHECK_INTERVAL:g} s |",
]

OPERATIONS = [
    f"No request arrived within {limits.REQUEST_WAIT:g} s, or a mount with synchronous INIT was not continued within "
    f"{protocol.PROCEED_WAIT:g} s.",
    f"A connection arrived while {limits.REQUESTS_AT_ONCE} of the same volume were served.",
    f"At most {limits.SCRAPES_AT_ONCE} connections are served at once, each for {limits.SCRAPE_WAIT:g} s at most.",
]

PROTOCOL = [
    f"waits up to {client_limits.SOCKET_WAIT:g} s for a socket",
    f"After {client_limits.SOCKET_WAIT_SILENT:g} s the client prints on standard error",
    f"one message of at most {protocol.ORIGINAL_MESSAGE_MAX} bytes",
    f"A packet is one JSON object (UTF-8) of at most {protocol.PACKET_MAX // KIB} KiB.",
    f"as its mountpoint. It has at most {protocol.MOUNTPOINT_MAX} bytes.",
    f"the text of the program's `-o`. It has at most {protocol.OPTIONS_MAX // KIB} KiB.",
    f"until the program has answered INIT, {limits.SYNC_MOUNT_WAIT:g} s at most.",
    f"| nothing for {limits.REQUEST_WAIT:g} s | It closes the connection. |",
    f"| no `proceed` for {protocol.PROCEED_WAIT:g} s | It closes the connection. |",
    f"| no answer to INIT for {limits.SYNC_MOUNT_WAIT:g} s,",
    f"| a connection while {limits.REQUESTS_AT_ONCE} of the same volume are served | It closes the connection without an answer. |",
    f"| a connection while {limits.CONNECTIONS_MAX} of the same volume are not closed yet | It leaves the connection in the "
    f"kernel's queue until one is closed. {limits.CONNECTIONS_IN_QUEUE} wait in that queue,",
]

DECISIONS = [f"threads of the volume's own, {WORDS[limits.CONNECTION_THREADS]} at the most,"]


@pytest.mark.parametrize(
    ("page", "sentences"), [("security", SECURITY), ("operations", OPERATIONS), ("protocol", PROTOCOL), ("decisions", DECISIONS)]
)
def test_a_page_names_the_limits_of_the_code(page: str, sentences: list[str]) -> None:
    text = " ".join((ROOT / f"docs/{page}.md").read_text().split())
    assert [sentence for sentence in sentences if sentence not in text] == []
