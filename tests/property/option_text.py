def escape(value: str) -> str:
    """Return the value as it stands in the text of -o; options.unescape() returns the value again."""
    return value.replace("\\", "\\\\").replace(",", "\\,")
