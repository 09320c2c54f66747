import pytest

from bishare.data import cache
from bishare.data.cache import cached, fingerprint
from bishare.data.encoding import encode
from bishare.data.rows import Completion, Row, Text

OPTIONS = {"prompt": "alpaca", "loss_on": "answer", "max_length": 70}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "MIN_ROWS", 10)
    return tmp_path / "bishare"


@pytest.fixture
def load(rows, tokenizer):
    """The examples, and whether they had to be made."""

    def load():
        made = []

        def make():
            made.append(1)
            return encode(tokenizer, rows, **OPTIONS)

        return cached(rows, tokenizer, OPTIONS, make), bool(made)

    return load


def test_second_run_reads_what_the_first_made(load, folder):
    first, made = load()
    assert made
    assert any(example.cut for example in first)
    assert not all(example.cut for example in first)
    assert load() == (first, False)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_made_again(load, folder, damage):
    first, _ = load()
    (path,) = folder.iterdir()
    path.write_bytes(damage)
    assert load() == (first, True)
    assert load() == (first, False)


def test_unwritable_disk_is_no_error(load, folder):
    folder.write_text("a file where the folder should be")
    assert load()[1]
    assert load()[1]


def test_few_rows_leave_no_file(tokenizer, rows, folder):
    cached(rows[:9], tokenizer, OPTIONS, list)
    assert not folder.exists()


def test_name_depends_on_rows_tokenizer_and_options(tokenizer, tokenizer_with_start, rows):
    names = {
        fingerprint(rows, tokenizer, OPTIONS),
        fingerprint(rows, tokenizer_with_start, OPTIONS),
        fingerprint(rows[1:], tokenizer, OPTIONS),
        fingerprint(rows[::-1], tokenizer, OPTIONS),
        fingerprint([Text("a b")], tokenizer, OPTIONS),
        fingerprint([Completion("a", " b")], tokenizer, OPTIONS),
        fingerprint([Row("a", "", " b")], tokenizer, OPTIONS),
        *(fingerprint(rows, tokenizer, OPTIONS | change) for change in ({"max_length": 71}, {"loss_on": "all"})),
    }
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = template + " "
        names.add(fingerprint(rows, tokenizer, OPTIONS))
    finally:
        tokenizer.chat_template = template
    assert len(names) == 10
    assert fingerprint(rows, tokenizer, OPTIONS) in names
