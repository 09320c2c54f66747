"""A table of figures for a terminal: names on the left, numbers aligned on the right."""

from collections.abc import Iterable

from rich.table import Table


def table_of_figures(title: str, columns: Iterable[str]) -> Table:
    """An empty table.

    Args:
        title: Head of the column of names.
        columns: Heads of the columns of figures.
    """
    table = Table()
    table.add_column(title, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def size(num_bytes: int) -> str:
    """A size in MB or GB of 1000."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
