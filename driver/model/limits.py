"""Sets the driver's limits: how long it waits, and how many of its resources a pod can use. Times are in seconds, sizes in bytes.

The limits of the client's waits are in fusermount3_proxy/limits.py, and those of packets in fusermount3_proxy/wire/protocol.py.
docs/security.md explains who can use what. A test compares the documentation with the numbers here.
"""

# Requests of containers.
REQUEST_WAIT = 5.0  # from accepting a connection until its request has arrived
MOUNT_WAIT = 5.0  # mount(2) of a usual mount, which waits if a pod holds a lock that it needs
SYNC_MOUNT_WAIT = 30.0  # mount(2) of a mount with synchronous INIT, which returns when the FUSE program has answered INIT

# Directories that a pod can lock (driver/blocking/directories.py).
DIRECTORY_WAIT = 5.0  # making or looking at the sockets of one volume
RESTORE_WAIT = 1.0  # making them at the driver's start; kubelet's next republish makes those that take longer

# Connections of one volume. A connection counts until it is closed, and file descriptors that a pod has queued in it can delay
# the close.
REQUESTS_AT_ONCE = 8  # connections that are served at the same time
CONNECTIONS_TO_CLOSE = 64  # further connections, which are accepted and closed without an answer
CONNECTIONS_MAX = REQUESTS_AT_ONCE + CONNECTIONS_TO_CLOSE
ACCEPTS_IN_WINDOW = 5  # connections that are accepted in each ACCEPT_WINDOW; further ones wait in the kernel's queue
ACCEPT_WINDOW = 0.01
CONNECTIONS_IN_QUEUE = 64  # further connections, which wait in the kernel's queue of each socket (the backlog of listen(2))
PREPARED_AT_ONCE = 8  # mounts with synchronous INIT that wait for `proceed`: each has an fd and a device node
CONNECTION_THREADS = 8  # threads that receive packets with fds, and that close connections
LISTENER_THREADS = 1  # threads that close listening sockets

# FUSE file systems, whose programs may never answer.
PROBE_WAIT = 1.0  # one question to one file system
STATUS_WAIT = 5.0  # all questions of one `status` command
SUB_PATH_WAIT = 10.0  # rebinding kubelet's subPath mounts of one volume
DETACH_WAIT = 10.0  # detaching a mount everywhere, with the subPath mounts that show it
LAZY_WAIT = 4.0  # detaching lazily; then the file system is ended. A driver that stops waits longer than that (GRACE in api/services.py)
DETACHED_MAX = 4  # lazily unmounted file systems of one volume that are still in use; one more ends the oldest
REPAIR_INTERVAL = 10.0  # between two repairs of the volumes without Kubernetes; kubelet republishes those of pods as often
CHECK_INTERVAL = 10.0  # between two checks of a mount whose end the kernel does not report

# Processes that ask FUSE programs, for all volumes together. All of them fit into the DaemonSet's memory limit.
PROCESSES_OF_A_POD = 4  # of each kind, for all volumes of one pod
PROCESSES_FOR_USAGE = 24  # ask how full a file system is
PROCESSES_FOR_REBINDING = 8  # rebind subPath mounts
PROCESSES_FOR_CHECKS = 16  # check whether a program has died after the lock on its device node was released
PROCESSES_FOR_CHECKS_WITHOUT_LOCK = 16  # check mounts that have no lock, because another driver made them
PROCESS_WAIT = 5.0  # until a process has started, which may fail on a node without free memory

# Fuse devices. A visit is a process in a container's mount namespace.
VISIT_WAIT = 5.0  # one visit that mounts or unmounts
VISITS_OF_AN_ALLOCATION = 2  # that mount, and as many that ask and unmount: they may wait where no signal reaches them
VISITS = 64  # of all allocations
DEVICE_MOUNTS = 64  # of one allocation, unless --fuse-mounts-max says otherwise
DEVICE_LEFT_MAX = 64  # mountpoints of one allocation whose programs have died, and which may be unmounted once more
CONTAINER_CHECK_INTERVAL = 2.0  # between two looks whether the first process of a container with mounts is ending

# Connections to the metrics page.
SCRAPE_WAIT = 5.0  # from the connection to the last byte
SCRAPES_AT_ONCE = 8  # connections that are served at the same time; further ones are closed
SCRAPE_REQUEST_MAX = 8192  # bytes of a request's head
