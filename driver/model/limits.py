"""The driver's limits: how long it waits, and how much of it a pod can use. Times are in seconds, sizes in bytes.

The client's waits are in fusermount3_proxy/limits.py, and the sizes of packets in fusermount3_proxy/wire/protocol.py.
docs/security.md says who can use what; a test compares the pages with the numbers here.
"""

# Requests of containers.
REQUEST_WAIT = 5.0  # from the connection to the end of the request
MOUNT_WAIT = 5.0  # mount(2) of a usual mount; a pod can hold a lock that it needs
SYNC_MOUNT_WAIT = 30.0  # mount(2) of a mount with synchronous INIT, until the FUSE program has answered INIT

# Connections of one volume. A connection counts until it is closed, and what a pod has queued in it can delay that.
REQUESTS_AT_ONCE = 8  # connections that are served at the same time
CONNECTIONS_TO_CLOSE = 64  # further connections, which are accepted and closed without an answer
CONNECTIONS_MAX = REQUESTS_AT_ONCE + CONNECTIONS_TO_CLOSE
CONNECTIONS_IN_QUEUE = 64  # further ones wait in the kernel's queue of each socket (the backlog of listen(2))
PREPARED_AT_ONCE = 8  # mounts with synchronous INIT before `proceed`: each has an fd and a device node
CONNECTION_THREADS = 8  # threads that receive packets with fds, and that close connections
LISTENER_THREADS = 1  # threads that close listening sockets

# FUSE file systems, whose programs need not answer.
PROBE_WAIT = 1.0  # one question to one file system
STATUS_WAIT = 5.0  # all questions of one `status`
SUB_PATH_WAIT = 10.0  # rebinding kubelet's subPath mounts of one volume
DETACH_WAIT = 10.0  # detaching a mount everywhere, with the subPath mounts that show it
CHECK_INTERVAL = 10.0  # until the next check of a mount whose end the kernel does not report

# Processes that ask FUSE programs, for all volumes together. The DaemonSet's limit of memory has room for all of them.
PROCESSES_OF_A_POD = 4  # of each kind, for all volumes of one pod
PROCESSES_FOR_USAGE = 24  # ask how full a file system is
PROCESSES_FOR_REBINDING = 8  # rebind subPath mounts
PROCESSES_FOR_CHECKS = 16  # check whether a program is dead whose lock on its device node is gone
PROCESSES_FOR_CHECKS_WITHOUT_LOCK = 16  # check mounts that have no lock: another driver made them
PROCESS_WAIT = 5.0  # until a process is there; a node without memory has none

# Readers of the metrics.
SCRAPE_WAIT = 5.0  # from the connection to the last byte
SCRAPES_AT_ONCE = 8  # further connections are closed
SCRAPE_REQUEST_MAX = 8192  # bytes of the request's head
