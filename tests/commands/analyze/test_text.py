"""Text as tokenised documents, and the loss on its answers."""

import json
from pathlib import Path

import pytest
import torch

from bishare.commands.analyze import text
from bishare.commands.analyze.text import documents, loss_on, read_text
from bishare.data.examples import Examples
from bishare.errors import UserError
from bishare.models.loading import load_base, load_tokenizer
from bishare.models.packed_attention import use_packed_attention


def read(base: str, rows: str, *, num_rows: int = 32, max_length: int = 256) -> Examples:
    return read_text(rows, load_tokenizer(base), num_rows=num_rows, max_length=max_length, prompt="alpaca")


def test_only_first_rows_are_read(base: str, rows: str) -> None:
    few, many = list(documents(read(base, rows, num_rows=2))), list(documents(read(base, rows)))
    assert (len(few), len(many)) == (2, 6)
    for short, whole in zip(few, many, strict=False):
        assert torch.equal(short, whole)


def test_document_is_tokenised_prompt_and_answer(base: str, rows: str) -> None:
    third = list(documents(read(base, rows)))[2]
    decoded = load_tokenizer(base).decode(third)
    assert "Count to 3." in decoded
    assert decoded.endswith("0 1 2</s>")


def test_rows_without_answer_are_refused(base: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "Count.", "output": "1"}) + "\n")
    with pytest.raises(UserError, match=r"none of the first 1 rows of .*rows\.jsonl.*max_length 3"):
        read(base, str(rows), max_length=3)


def test_loss_is_independent_of_packs(base: str, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_base(base, dtype="float32").requires_grad_(False)
    use_packed_attention(model)
    examples = read(base, rows)
    together = loss_on(model, examples)
    monkeypatch.setattr(text, "TOKENS_PER_PACK", 1)
    assert loss_on(model, examples) == pytest.approx(together, rel=1e-5)
