import errno
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from bishare.data.row_files import read_lines, read_parquet, read_rows
from bishare.data.row_stream import RowStream, open_reader
from bishare.data.rows import Completion, Row, Text
from bishare.errors import UserError

GOOD = {"instruction": "Add.", "input": "1 + 1", "output": "2", "source": "me"}


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def jsonl(path, objects):
    return write(path, "".join(json.dumps(value) + "\n" for value in objects))


def test_jsonl_and_json_give_the_same_rows(tmp_path):
    objects = [GOOD, {"instruction": "Say\u2028hi.", "output": "Hi."}, {**GOOD, "input": None}]
    lines = "\n".join(json.dumps(value, ensure_ascii=False) for value in objects) + "\n\n"
    expected = [Row("Add.", "1 + 1", "2"), Row("Say\u2028hi.", "", "Hi."), Row("Add.", "", "2")]
    assert read_rows(write(tmp_path / "a.jsonl", lines)) == expected
    assert read_rows(write(tmp_path / "b.json", json.dumps(objects, indent=1))) == expected
    assert read_rows(write(tmp_path / "c.json", "\ufeff" + lines)) == expected  # Windows editors; lines in a .json


def test_parquet_gives_the_same_rows(tmp_path):
    pa.parquet.write_table(pa.Table.from_pylist([GOOD] * 5), tmp_path / "a.parquet", row_group_size=2)
    assert read_rows(str(tmp_path / "a.parquet")) == [Row("Add.", "1 + 1", "2")] * 5
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"b\.parquet is not a Parquet file that can be read"):
        read_rows(str(tmp_path / "b.parquet"))
    with pytest.raises(UserError, match=r"none\.parquet does not exist"):
        read_rows(str(tmp_path / "none.parquet"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_file_is_read_from_any_row(tmp_path, suffix):
    objects = [{"text": str(n)} for n in range(7)]
    pa.parquet.write_table(pa.Table.from_pylist(objects), tmp_path / "rows.parquet", row_group_size=3)
    jsonl(tmp_path / "rows.jsonl", objects)
    read = read_lines if suffix == "jsonl" else read_parquet
    for start in range(9):
        assert [number for number, _ in read(tmp_path / f"rows.{suffix}", start)] == list(range(start + 1, 8))


def test_first_row_decides_the_format_unless_given(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [{"text": "a", "prompt": "b", "completion": "c"}, {"text": "d"}])
    assert read_rows(path, format="text") == [Text("a"), Text("d")]
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: the field prompt is missing; fields found: text"):
        read_rows(path)


def test_folder_in_hub_format_is_read_by_split(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "train.jsonl", [GOOD, {**GOOD, "input": None}])
    jsonl(folder / "test.jsonl", [{**GOOD, "output": "two"}])
    assert read_rows(str(folder)) == [Row("Add.", "1 + 1", "2"), Row("Add.", "", "2")]
    assert read_rows(str(folder), split="test") == [Row("Add.", "1 + 1", "two")]
    with pytest.raises(UserError, match=r"has no split dev; it has train, test"):
        read_rows(str(folder), split="dev")


def test_unknown_name_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(UserError, match=r"nobody/nothing .*cannot be loaded.*network") as error:
        read_rows("nobody/nothing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("[]", "holds no rows"),
        ("\n \n", "holds no rows"),
        ('{"instruction": "a", "output": "b"}\n' * 16 + '{"instruction": "a"\n', r"row 17: broken JSON .*line 17"),
        ('[{"instruction": "a", "output": "b"},\n{"instruction": "a" "output": 1}]', r"row 2: broken JSON .*line 2"),
        ('[{"instruction": "a", "output": "b"}\n{"instruction": "a"}]', r"row 1: broken JSON"),
        ('{"instruction": "a"}\n', r"row 1: the field output is missing; fields found: instruction\."),
        ('{"question": "a"}\n', r"row 1: no known format has the fields question; want one of: messages \(chat\)"),
        ('{"instruction": "a", "output": 3}\n', r"row 1: the field output is int, want text"),
        ('{"instruction": "a", "output": "b", "input": []}\n', r"row 1: the field input is list, want text"),
        ('"text"\n', r"row 1: str found, want an object"),
        ("[1]", r"row 1: int found, want an object"),
    ],
)
def test_faults_name_the_file_and_row(tmp_path, text, message):
    with pytest.raises(UserError, match=rf"rows\.jsonl.*{message}") as error:
        read_rows(write(tmp_path / "rows.jsonl", text))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        read_rows(str(tmp_path / "none.jsonl"))


def test_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "rows.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"rows\.json is not UTF-8"):
        read_rows(str(tmp_path / "rows.json"))


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "rows.jsonl", [GOOD])

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read whatever its mode says
    with pytest.raises(UserError, match=r"rows\.jsonl cannot be read: Permission denied"):
        read_rows(path)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize(("value", "reason"), [("[" * 100_000, "nested too deeply"), ("1" * 5000, "4300 digits")])
def test_json_beyond_pythons_limits_is_named(tmp_path, kind, value, reason):
    good = '{"instruction": "a", "output": "b"}'
    bad = '{"instruction": "a", "output": "b", "extra": ' + value + "}"
    text = f"{good}\n{bad}\n" if kind == "jsonl" else f"[{good},\n{bad}]"
    path = tmp_path / f"rows.{kind}"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"rows\.{kind}, row 2: this JSON cannot be read \(.*{reason}"):
        read_rows(str(path))


def write_set(folder, kind):
    """Two files of 20 rows; an answer of the second is a number."""
    folder.mkdir()
    rows = [{"instruction": f"Count to {n}.", "output": str(n)} for n in range(40)]
    rows[33]["output"] = 33
    jsonl(folder / "a.jsonl", rows[:20])
    if kind == "parquet":  # a column has one type
        numbers = [{**row, "output": int(row["output"])} for row in rows[20:]]
        pa.parquet.write_table(pa.Table.from_pylist(numbers), folder / "b.parquet")
    else:
        jsonl(folder / "b.jsonl", rows[20:])
    if kind == "card":
        card = "configs: [{config_name: default, data_files: [{split: train, path: '*.jsonl'}]}]"
        (folder / "README.md").write_text(f"---\n{card}\n---\n")


@pytest.mark.parametrize(
    ("kind", "name", "row"), [("plain", "b.jsonl", 14), ("card", "b.jsonl", 14), ("parquet", "b.parquet", 1)]
)
def test_a_number_among_answers_is_named(tmp_path, kind, name, row):
    write_set(tmp_path / "set", kind)
    message = rf"{name}, row {row}: the field output is int, want text"
    with pytest.raises(UserError, match=message):
        read_rows(str(tmp_path / "set"))
    with pytest.raises(UserError, match=message):
        RowStream(open_reader(str(tmp_path / "set")), format="auto", block_size=50, seed=0).take(1)


def test_files_of_a_folder_may_differ(tmp_path):
    jsonl(tmp_path / "a.jsonl", [GOOD])
    jsonl(tmp_path / "b.jsonl", [{"prompt": "1 + 1 =", "completion": " 2", "day": "2026-01-01"}])
    rows = [Row("Add.", "1 + 1", "2"), Completion("1 + 1 =", " 2")]
    assert read_rows(str(tmp_path)) == rows
    taken = RowStream(open_reader(str(tmp_path)), format="auto", block_size=1, seed=0).take(2)
    assert taken == rows
