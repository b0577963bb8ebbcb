"""How long each side waits and how much it takes, in one place. Times are in seconds, sizes in bytes."""

# The client, for the driver's socket.
SOCKET_WAIT = 10.0  # a socket that is missing or refuses: the driver may be starting, or being replaced
SOCKET_WAIT_SILENT = 1.0  # after this the client says what it waits for
SOCKET_RETRY = 0.05
ANSWER_WAIT = 30.0
MOUNT_ANSWER_WAIT = 50.0  # for a mount that waits for the program (sync-init): longer than all that the driver does for it

# The driver, for a client.
REQUEST_WAIT = 5.0
PROCEED_WAIT = 300.0  # for sync-init's proceed, as long as libfuse's helper waits; the client waits as long for the program
SYNC_MOUNT_WAIT = 30.0  # mount(2) of sync-init, until the program has answered INIT

# The driver, for the connections of one volume. One counts until it is closed, and what a pod has queued in it can delay that.
REQUESTS_AT_ONCE = 8  # are served
CONNECTIONS_TO_CLOSE = 64  # more are accepted, and closed without an answer
CONNECTIONS_MAX = REQUESTS_AT_ONCE + CONNECTIONS_TO_CLOSE
CONNECTIONS_IN_QUEUE = 64  # more wait in the kernel's queue of each socket (the backlog of listen(2)), until one is closed
PREPARED_AT_ONCE = 8  # mounts of sync-init whose client has not said `proceed`: each has an fd and a device node
CONNECTION_THREADS = 8  # receive packets with fds, and close connections
LISTENER_THREADS = 1  # close listening sockets

# The driver, for file systems that pods serve.
PROBE_WAIT = 1.0  # one touch of a served file system
STATUS_WAIT = 5.0  # examining all volumes for `status`; 1,000 healthy ones took 0.6 s, and up to 3 s on two cores with a load of 16
SUB_PATH_WAIT = 10.0  # finding the directories of kubelet's subPath binds in a file system that was just mounted
TAKE_OFF_WAIT = 10.0  # unmounting, with everything that it touches
PROCESSES_OF_A_POD = 4  # of each of the following kinds, which are those of all pods; the manifest's limit of memory has room for them
PROCESSES_THAT_ASK = 24  # how a file system is
PROCESSES_THAT_RENEW = 8  # binds of its directories
PROCESSES_THAT_LOOK = 16  # whether a program has died that nobody seems to have any more
PROCESSES_THAT_LOOK_WITHOUT_LOCK = 16  # the same where nothing says so, as of a mount that another driver made
WORKER_WAIT = 5.0  # for a process to touch it in: the node is out of memory, or the like
LOOK_AGAIN = 10.0  # until the next look at a mount whose end nobody would tell

# The driver, for whoever reads its metrics.
SCRAPE_WAIT = 5.0  # from the connection to the last byte
SCRAPES_AT_ONCE = 8  # further connections are closed
SCRAPE_REQUEST_MAX = 8192  # bytes of the request's head

# The wire (docs/protocol.md).
PACKET_MAX = 64 * 1024
MOUNTPOINT_MAX = 4095  # PATH_MAX of <linux/limits.h>, without the NUL
OPTIONS_MAX = 16 * 1024  # mount(2) takes a page of them; reading many more takes the driver's time
ORIGINAL_MESSAGE_MAX = 500
