"""The log of merges is written and read line by line."""

from dataclasses import replace
from pathlib import Path

from bishare.analysis.merge_log import FILE, MergeRecord, read_merges

RECORD = MergeRecord(
    step=1200,
    group="local.q",
    layer=1,
    uses=2,
    distance=0.5,
    next_distance=None,
    groups_left=2,
    live_parameters=10,
    fraction_of_lora=0.1,
)


def test_lines_are_read_in_order(tmp_path: Path) -> None:
    records = [RECORD, replace(RECORD, step=1300, next_distance=0.75)]
    (tmp_path / FILE).write_text("".join(record.line() for record in records))
    assert read_merges(tmp_path) == records


def test_run_without_merges_has_none(tmp_path: Path) -> None:
    assert read_merges(tmp_path) == []


def test_record_reads_as_a_sentence() -> None:
    assert str(RECORD) == (
        "step 1,200, local.q: layer 1 now uses the B of layer 2; distance 0.5, next best none; 2 left"
    )
    assert "next best 0.75" in str(replace(RECORD, next_distance=0.75))
