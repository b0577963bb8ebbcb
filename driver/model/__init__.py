"""Defines the driver's values and errors: what was published, its paths, the options of a mount, states, and limits.

Nothing here does input or output, so all of it can be tested with values alone.
"""
