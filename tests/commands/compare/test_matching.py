"""The largest rank that fits is found, and counts are those of the plan."""

import pytest

from bishare.commands.compare.comparison import read_comparison
from bishare.commands.compare.matching import HIGHEST, count, largest
from tests.places import CONFIGS

COMPARISONS = CONFIGS / "compare"


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 100, HIGHEST - 1, HIGHEST, HIGHEST + 5])
def test_the_largest_that_fits_is_found(limit: int) -> None:
    assert largest(lambda n: n <= limit) == min(limit, HIGHEST)


def test_aslora_has_a_quarter_of_loras_parameters() -> None:
    comparison = read_comparison(COMPARISONS / "minilm_glue.yaml")
    lora, aslora = (count(comparison, method) for method in ("lora", "aslora"))
    assert lora == 6 * 2 * 8 * (384 + 384)
    assert aslora == 2 * 8 * 384 + 2 * 2 * 8 * 384
    assert aslora <= 0.26 * lora
