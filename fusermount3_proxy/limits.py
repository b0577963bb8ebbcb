"""Sets how long the programs in the container wait for the driver, in seconds."""

SOCKET_WAIT = 10.0  # for a socket that is missing or refuses: the driver may be starting, or being replaced
SOCKET_WAIT_SILENT = 1.0  # after this time the program prints what it waits for
SOCKET_RETRY = 0.05  # between two attempts to connect
ANSWER_WAIT = 30.0  # for the driver's answer
IN_FLIGHT_WAIT = 1.0  # for other processes of the user to receive fds, where too many of them are in flight
MOUNT_ANSWER_WAIT = 50.0  # for the answer to `proceed`: longer than all waits of the driver for it
