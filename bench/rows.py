"""Lists every row of the table, in its order. What each should reach, and what --check allows, is in bounds.toml."""

from collections.abc import Sequence
from dataclasses import dataclass

OURS = "ours"
BARE = "bare"  # python3 -I -S -c pass, of the interpreter that is frozen
C = "C"  # libfuse's fusermount3, with privileges
GRPC = "grpcio"  # a grpc.aio server whose methods do nothing
NATIVE = "native"  # the same FUSE program, mounted by root without us
ALONE = "alone"  # ours, without the load that the row adds
VOLUME = "volume"  # ours, with a volume in place of a fuse device
GO = "Go"  # the Go plugin: the only peer that bounds.toml has bounds for
SUBJECTS = (OURS, BARE, C, GRPC, NATIVE, ALONE, VOLUME)  # names that a peer cannot have


@dataclass(frozen=True)
class Row:
    """Describes one row. `reference` is the subject that ours is divided by, or "" where there is none."""

    key: str
    what: str
    unit: str
    reference: str = ""
    more_is_better: bool = False
    statistic: str = "median"  # or p99

    def best(self, values: Sequence[float]) -> float:
        return max(values) if self.more_is_better else min(values)


ROWS = [
    Row("start-version", "`fusermount3 -V`, tree", "ms", BARE),
    Row("start-mount", "`fusermount3 M`, tree, against a driver that answers at once", "ms", BARE),
    Row("start-mount-busy-2", "the same beside two busy processes", "ms", BARE),
    Row("start-mount-busy-4", "the same beside four busy processes", "ms", BARE),
    Row("start-starter", "`fuse-starter -- true`, tree, against a driver that answers at once", "ms", BARE),
    Row("single-version", "`fusermount3 -V`, single file", "ms", BARE),
    Row("single-mount", "`fusermount3 M`, single file", "ms", BARE),
    Row("modules", "mount path: modules imported", "", BARE),
    Row("files", "mount path: files opened", "", BARE),
    Row("calls", "mount path: system calls", "", BARE),
    Row("faults", "mount path: page faults", "", BARE),
    Row("container-bindfs", "in a container: bindfs, start to mounted", "ms", C),
    Row("container-bindfs-answers", "in a container: bindfs, start to the first answer", "ms", C),
    Row("container-bindfs-more", "in a container: bindfs, start to mounted, longer than with C by", "ms", BARE),
    Row("container-bindfs-more-go", "in a container: bindfs, start to mounted, longer than with Go by", "ms", BARE),
    Row("container-starter", "in a container: fuse-starter with sshfs, start to mounted (before sshfs starts)", "ms", C),
    Row("container-sshfs", "in a container: sshfs by fuse-starter, start to the first answer", "ms", C),
    Row("container-sshfs-more", "in a container: sshfs by fuse-starter, start to the first answer, longer than with C by", "ms", BARE),
    Row("container-sshfs-more-go", "in a container: sshfs by fuse-starter, start to the first answer, longer than with Go by", "ms", BARE),
    Row("left-processes", "helper processes left in the pod per mount, with auto_unmount", ""),
    Row("left-memory", "their memory", "KiB"),
    Row("publish-1", "publish, one caller", "/s", GRPC, more_is_better=True),
    Row("republish-1", "republish, one caller", "/s", GRPC, more_is_better=True),
    Row("unpublish-1", "unpublish, one caller", "/s", GRPC, more_is_better=True),
    Row("publish-8", "publish, eight callers", "/s", GRPC, more_is_better=True),
    Row("republish-8", "republish, eight callers", "/s", GRPC, more_is_better=True),
    Row("unpublish-8", "unpublish, eight callers", "/s", GRPC, more_is_better=True),
    Row("cpu-publish", "CPU of the driver per publish", "ms", GRPC),
    Row("cpu-republish", "CPU of the driver per republish", "ms", GRPC),
    Row("cpu-unpublish", "CPU of the driver per unpublish", "ms", GRPC),
    Row("many-publish", "CPU per publish with ten times as many volumes", "ms", ALONE),
    Row("many-republish", "CPU per republish with ten times as many volumes", "ms", ALONE),
    Row("many-unpublish", "CPU per unpublish with ten times as many volumes", "ms", ALONE),
    Row("namespaces-publish", "CPU per publish with 20 more mount namespaces in the peer group", "ms", ALONE),
    Row("namespaces-republish", "CPU per republish with 20 more mount namespaces in the peer group", "ms", ALONE),
    Row("namespaces-unpublish", "CPU per unpublish with 20 more mount namespaces in the peer group", "ms", ALONE),
    Row("latency-publishing", "one volume's mount while others are published, p99 of a round", "ms", ALONE),
    Row("latency-flood", "one volume's mount while another pod floods its socket, p99 of a round", "ms", ALONE),
    Row("memory-idle", "driver's memory, idle", "MiB", GRPC),
    Row("memory-300", "driver's memory, 300 volumes", "MiB", GRPC),
    Row("memory-waiting", "driver's memory per waiting volume", "KiB"),
    Row("memory-mounted", "driver's memory per mounted volume", "KiB"),
    Row("fds", "driver's fds per mounted volume", ""),
    Row("threads", "driver's threads per mounted volume", ""),
    Row("death-removed", "a FUSE program's death to the dead mount's removal, p99", "ms", statistic="p99"),
    Row("death-mounted", "a FUSE program's death to mounted again, p99", "ms", statistic="p99"),
    Row("killed", "driver killed to all of 1,000 volumes answering", "ms", GRPC),
    Row("device-bindfs", "with a fuse device in a container: bindfs, start to mounted", "ms", VOLUME),
    Row("device-cycle", "with a fuse device: mounts and unmounts, one after the other", "/s", more_is_better=True),
    Row("device-many", "with a fuse device: a mount and its unmount beside ten times as many containers", "ms", ALONE),
    Row("device-death", "with a fuse device: a program's death to its mount's removal, p99", "ms", statistic="p99"),
    Row("device-memory-waiting", "driver's memory per fuse device", "KiB"),
    Row("device-memory-mounted", "driver's memory per mount with a fuse device", "KiB"),
    Row("device-container", "start of a container with a fuse device", "ms", ALONE),
    Row("data-write", "data path: sequential write", "ms", NATIVE),
    Row("data-read", "data path: sequential read", "ms", NATIVE),
    Row("data-random-write", "data path: random write", "ms", NATIVE),
    Row("data-random-read", "data path: random read", "ms", NATIVE),
    Row("data-metadata", "data path: create, stat, rename, list, unlink", "ms", NATIVE),
    Row("size-tree", "size of the tree", "MB"),
    Row("size-single", "size of the single file fusermount3", "MB"),
    Row("size-driver", "size of the driver's tree", "MB"),
    Row("size-image", "driver's tree and its libraries, compressed as a layer of an image", "MB"),
    Row("cpu-idle", "CPU per hour with 1,000 mounted volumes and no calls", "s", GRPC),
]

BY_KEY = {row.key: row for row in ROWS}
