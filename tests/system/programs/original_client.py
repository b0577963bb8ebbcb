"""Do what the Go plugin's client does: original_client.py SOCKET PROGRAM ARGUMENT...

Removes the socket that it has used, prints the message that came with the fd, and becomes the program with that fd as fd 3.
"""

import os
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as driver:
    driver.connect(sys.argv[1])
    message, fds, _, _ = socket.recv_fds(driver, 500, 1)
if not message:
    sys.exit("the driver closed the connection")
os.unlink(sys.argv[1])
print(message.decode(), flush=True)
os.dup2(fds[0], 3)
os.execvp(sys.argv[2], sys.argv[2:])
