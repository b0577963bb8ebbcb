"""Serve a FUSE fd that another process has mounted: serve_fd.py FD TEXT"""

import sys

from mini_fuse import Server

server = Server(int(sys.argv[1]), f"{sys.argv[2]}\n".encode())
server.answer_init(server.read()[1])
server.serve()
