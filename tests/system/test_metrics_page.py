"""Test --metrics-address: what a real driver counts, and that no reader can delay the driver."""

import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import hostile
from harness.events import wait_until, within
from harness.pod import Node, Pod

DRIVER_OPTIONS = ("--metrics-address", "127.0.0.1:0")

SCRAPE_WAIT, SCRAPES_AT_ONCE = 5, 8


def metrics(node: Node) -> dict[str, float]:
    lines = node.driver.metrics().splitlines()
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


class Counted:
    """Returns what was counted since its beginning."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._before = metrics(node)

    def more(self) -> dict[str, float]:
        now = metrics(self._node)
        ours = {series: value for series, value in now.items() if series.startswith("mfcp_") and "_bucket" not in series}
        return {series: value - self._before.get(series, 0) for series, value in ours.items() if value != self._before.get(series, 0)}


@pytest.fixture
def counted(node: Node) -> Counted:
    return Counted(node)


def durations(more: dict[str, float]) -> dict[str, float]:
    return {
        found[1]: value
        for series, value in more.items()
        if (found := re.fullmatch(r'mfcp_operation_duration_seconds_count{operation="(\w+)"}', series))
    }


def test_a_volume_through_its_life(counted: Counted, pod: Pod) -> None:
    volume = pod.publish()
    volume.republish()
    more = counted.more()
    assert more['mfcp_volumes{state="waiting"}'] == 1
    assert more['mfcp_calls_total{method="NodePublishVolume",code="OK"}'] == 2
    assert durations(more) == {"publish": 1}

    fuse = pod.fuse(volume)
    volume.served_by(fuse).kill("KILL")
    volume.wait_waiting()
    volume.served_by(fuse)
    fuse.check("fusermount3 -u /data")
    volume.served_by(fuse)
    more = counted.more()
    assert 'mfcp_volumes{state="waiting"}' not in more
    assert more['mfcp_volumes{state="mounted"}'] == 1
    assert more["mfcp_mounts_total"] == 3
    assert more["mfcp_recoveries_total"] == 1
    assert more['mfcp_unmounts_total{cause="died"}'] == 1
    assert more['mfcp_unmounts_total{cause="asked"}'] == 1

    volume.unpublish()
    more = counted.more()
    assert 'mfcp_volumes{state="mounted"}' not in more
    assert more['mfcp_unmounts_total{cause="unpublished"}'] == 1
    assert durations(more) == {"publish": 1, "mount": 3, "unmount": 2, "unpublish": 1}
    assert 0 < more['mfcp_operation_duration_seconds_sum{operation="mount"}'] < 10


@pytest.mark.parametrize("dies_first", [True, False])
def test_a_mount_after_a_restart_of_the_driver_is_a_recovery_too(node: Node, pod: Pod, dies_first: bool) -> None:
    volume = pod.publish()
    fuse = pod.fuse(volume)
    program = volume.served_by(fuse)
    if dies_first:
        program.kill("KILL")
        volume.wait_waiting()
    node.driver.stop()
    if not dies_first:
        program.kill("KILL")
        program.wait()
    node.driver.start()
    volume.wait_waiting()
    volume.served_by(fuse)
    now = metrics(node)
    # Counters begin again with each driver.
    assert (now["mfcp_recoveries_total"], now['mfcp_unmounts_total{cause="died"}']) == (1, 0 if dies_first else 1)


def test_requests_that_are_refused(counted: Counted, pod: Pod) -> None:
    volume = pod.publish(attributes={"mountOptions": "bogus"})
    fuse = pod.fuse(volume)
    assert fuse.run("fusermount3 -u /data").code != 0
    volume.served_by(fuse)
    assert fuse.run("mkdir /other && bindfs -f /srv /other").code != 0
    hostile.request(volume, b"garbage")
    more = counted.more()
    refusals = {series: value for series, value in more.items() if "refused" in series}
    assert refusals == {
        'mfcp_refused_requests_total{reason="invalid"}': 1,
        'mfcp_refused_requests_total{reason="busy"}': 1,
        'mfcp_refused_requests_total{reason="bad_request"}': 1,
    }
    assert more["mfcp_troubled_volumes"] == 1


def test_pods_make_no_series_of_their_own(node: Node) -> None:
    node.pod().publish().unpublish()
    before = set(metrics(node))
    for _ in range(5):
        node.pod().publish(volume="other").unpublish()
    assert set(metrics(node)) == before


def test_a_slow_reader_delays_nobody(node: Node, pod: Pod) -> None:
    volume = pod.publish()
    host, port = node.driver.metrics_url.split("/")[2].rsplit(":", 1)
    slow = [socket.create_connection((host, int(port))) for _ in range(SCRAPES_AT_ONCE)]
    try:
        for client in slow:
            client.send(b"GET /metr")
        with pytest.raises((OSError, urllib.error.URLError)):
            for _ in range(1000):  # until all of them were accepted
                metrics(node)
        with within(1, "republish"):
            volume.republish()
        # Their time ends, and other readers are served.
        wait_until("the page is there again", lambda: has_page(node), 10 * SCRAPE_WAIT)
    finally:
        for client in slow:
            client.close()


def has_page(node: Node) -> bool:
    try:
        return "mfcp_mounts_total" in metrics(node)
    except OSError:
        return False


def network_sockets(pid: int) -> list[str]:
    """Return the sockets of a process that belong to the network."""
    owned = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            owned |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}")))
        except FileNotFoundError:
            continue
    found = []
    for kind in ("tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6", "icmp", "packet"):
        file = Path(f"/proc/{pid}/net/{kind}")
        lines = file.read_text().splitlines()[1:] if file.exists() else []
        # The inode is the tenth field, except for packet sockets, where it is the last.
        found += [f"{kind} {line}" for line in lines if owned & {(line.split() + [""] * 10)[9], line.split()[-1]}]
    return found


@pytest.fixture
def without_metrics(node: Node) -> Iterator[Node]:
    node.driver.stop()
    node.driver.options = ()
    node.driver.start()
    yield node
    node.driver.stop()
    node.driver.options = DRIVER_OPTIONS
    node.driver.start()


def test_nothing_is_opened_on_the_network_unless_it_is_asked_for(without_metrics: Node) -> None:
    node = without_metrics
    volume = node.pod().publish()
    volume.republish()
    assert network_sockets(node.driver.pid) == []


def test_only_the_address_that_was_asked_for_is_opened(node: Node) -> None:
    metrics(node)
    wait_until("that alone is open", lambda: len(network_sockets(node.driver.pid)) == 1)
