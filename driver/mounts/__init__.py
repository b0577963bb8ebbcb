"""One FUSE mount: its device node, how it is attached, how the death of its program is noticed, how it is detached.

A mount (life.py) and its place (place.py) are two things. target.py is the place of volumes: the target path with its
placeholder, propagation and subPath. The core reaches the kernel through one object (kernel.py) that tests replace.
"""
