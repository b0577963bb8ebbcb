"""Holds the programs that run in containers: fusermount3, fuse-starter and install.

FUSE libraries run fusermount3 at each mount and wait for it. So everything here imports only modules that are built into
Python, or nearly (`posix`, `_socket`, `_signal`, `_json`): see docs/decisions.md, "Start-up".
"""
