"""Tables of figures, and sizes as a person reads them."""

import pytest

from bishare.commands.tables import size, table_of_figures


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0.0 MB"), (1_234_567, "1.2 MB"), (999_900_000, "999.9 MB"), (1_000_000_000, "1.00 GB")],
)
def test_size_in_megabytes_or_gigabytes(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


def test_figures_are_aligned_on_the_right() -> None:
    table = table_of_figures("ranks", ("numerical", "effective"))
    assert [column.header for column in table.columns] == ["ranks", "numerical", "effective"]
    assert [column.justify for column in table.columns] == ["left", "right", "right"]
    assert table.row_count == 0
