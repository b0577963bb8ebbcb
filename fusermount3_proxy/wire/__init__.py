"""What the programs in the container and the driver share: the protocol, fd passing, the `-o` grammar, the mount table's form.

Nothing here imports anything of either side. The same rule for imports holds as in fusermount3_proxy.
"""
