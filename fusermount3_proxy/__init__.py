"""The programs in the container: fusermount3, fuse-starter and install.

FUSE libraries run fusermount3 at each mount and wait for it, so everything here imports built-in modules alone (`posix`,
`_socket`, `_signal`, `_json`): docs/decisions.md, "Start-up".
"""
