"""The driver's values and errors: what was published, where its places are, which options a mount gets, states, limits.

Nothing here does input or output, so all of it can be tested with values alone.
"""
