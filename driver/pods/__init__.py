"""The sockets that containers talk to: made in a folder that a pod controls, listened on, and served one request at a time."""
