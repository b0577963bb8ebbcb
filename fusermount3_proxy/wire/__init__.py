"""Holds what the client and the driver share: the protocol, fd passing, the grammar of `-o`, and the format of mountinfo.

Modules here import nothing of either side, and only those modules of Python that fusermount3_proxy may import.
"""
