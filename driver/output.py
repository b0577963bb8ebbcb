"""Prints what the commands of meta-fuse-csi-plugin list."""

from collections.abc import Callable
from typing import TypeVar

import click

from driver.observe.logs import shown

Command = TypeVar("Command", bound=Callable[..., None])


def output_option(*formats: str) -> Callable[[Command], Command]:
    """Return the decorator that gives a command the option --output; the first format is the default."""
    return click.option("--output", type=click.Choice(formats), default=formats[0], show_default=True, help="The format of the output.")


def print_table(rows: list[list[str]], columns: tuple[str, ...]) -> None:
    """Print a table with a headline."""
    table = [[column.upper() for column in columns], *([shown(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
