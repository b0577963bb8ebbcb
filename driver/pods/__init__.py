"""Serves the sockets that containers connect to: makes them in a folder that a pod controls, listens, and answers requests."""
