"""A table of figures for a terminal: names on the left, numbers aligned on the right."""

from collections.abc import Iterable

from rich.table import Table


def table_of_figures(title: str, columns: Iterable[str]) -> Table:
    """An empty one; ``title`` heads the names."""
    table = Table()
    table.add_column(title, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
