"""Runs work that may never end where the driver can give it up: in daemon threads, and in one-shot processes.

A FUSE program can leave any question unanswered, and a pod can make the close of a file descriptor wait. So no such work runs
in the event loop: it runs here, and its time and number are limited.
"""
