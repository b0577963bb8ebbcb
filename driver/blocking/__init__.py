"""Work that may never end, done where it can be given up: daemon threads, and one-shot processes.

A FUSE program can leave any question unanswered, and a pod can make the close of a file descriptor wait. So nothing that
touches either runs in the event loop: it runs here, with a limit in time and in number.
"""
