def escape(value: str) -> str:
    """The opposite of options.unescape(): the value as it stands in a -o text."""
    return value.replace("\\", "\\\\").replace(",", "\\,")
