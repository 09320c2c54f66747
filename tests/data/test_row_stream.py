import json
from itertools import count

import pyarrow as pa
import pyarrow.parquet
import pytest

from bishare.data.row_stream import RowStream, open_reader
from bishare.data.rows import Text
from bishare.errors import UserError

NUM_ROWS = 53


@pytest.fixture(params=["jsonl", "parquet", "folder", "csv"])
def source(request, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": str(n)} for n in range(NUM_ROWS)]

    def lines(rows):
        return "".join(json.dumps(row) + "\n" for row in rows)

    match request.param:
        case "jsonl":
            (tmp_path / "rows.jsonl").write_text(lines(rows[:20]) + "\n" + lines(rows[20:]))
            return str(tmp_path / "rows.jsonl")
        case "parquet":
            pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=9)
            return str(tmp_path / "rows.parquet")
        case "folder":
            (tmp_path / "set").mkdir()
            for number in range(3):
                (tmp_path / "set" / f"train-{number}.jsonl").write_text(lines(rows[number::3]))
            return str(tmp_path / "set")
        case "csv":  # read by datasets
            (tmp_path / "set").mkdir()
            for number in range(3):
                texts = [f"#{row['text']}" for row in rows[number::3]]
                (tmp_path / "set" / f"train-{number}.csv").write_text("\n".join(["text", *texts]) + "\n")
            return str(tmp_path / "set")


def stream(source, **options):
    return RowStream(open_reader(source), **{"format": "auto", "block_size": 8, "seed": 0, **options})


def numbers(rows):
    return [int(row.text.lstrip("#")) for row in rows]


def test_every_pass_has_every_row_once(source):
    rows = stream(source)
    passes = [numbers(rows.take(NUM_ROWS)) for _ in range(3)]
    assert all(sorted(one) == list(range(NUM_ROWS)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert numbers(stream(source).take(3 * NUM_ROWS)) == [number for one in passes for number in one]
    assert numbers(stream(source, seed=1).take(NUM_ROWS)) != passes[0]


def test_any_position_is_resumed_exactly(source):
    whole = numbers(stream(source).take(130))
    rows = stream(source)
    for place in count(0, 7):
        if place + 7 > 130:
            break
        again = stream(source)
        again.load_state_dict(json.loads(json.dumps(rows.state_dict())))
        assert numbers(again.take(7)) == numbers(rows.take(7)) == whole[place : place + 7]


def test_block_of_one_row_keeps_the_order(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(9)))
    assert numbers(stream(str(tmp_path / "rows.jsonl"), block_size=1).take(12)) == [*range(9), 0, 1, 2]


def test_pass_may_begin_behind_some_rows(source):
    reader = open_reader(source)
    objects = reader.open(None)
    first = {int(next(objects)[1]["text"].lstrip("#")) for _ in range(10)}
    rows = stream(source, begin=reader.position())
    for _ in range(2):
        assert set(numbers(rows.take(NUM_ROWS - 10))) == set(range(NUM_ROWS)) - first


def test_rows_are_read_as_needed(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n' * 8 + '{"text": broken\n')
    rows = stream(str(tmp_path / "rows.jsonl"))
    assert rows.take(8) == [Text("good")] * 8
    with pytest.raises(UserError, match=r"rows\.jsonl, row 9: broken JSON"):
        rows.take(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows to train on"),
        ('[\n{"text": "a"}]', "one JSON list, which cannot be streamed"),
        ('{"text": 3}\n', "row 1: the field text is int"),
    ],
)
def test_what_cannot_be_streamed_is_named(tmp_path, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"rows\.jsonl.*{message}"):
        stream(str(tmp_path / "rows.jsonl")).take(1)
