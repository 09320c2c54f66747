import json

import pytest

from bishare.data.instruct import InstructionData
from bishare.errors import UserError
from tests.places import SHARED


def test_a_file_becomes_batches(tmp_path, tokenizer, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row._asdict()) for row in rows))
    data = InstructionData(str(path), tokenizer=tokenizer, batch_size=8, prompt="chat")
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert "<|im_start|>user\nCount to" in tokenizer.decode(batch["input_ids"][0])
    assert data.render_prompt("Hi", "you") == "<|im_start|>user\nHi\n\nyou<|im_end|>\n<|im_start|>assistant\n"


def test_missing_file_is_reported_by_setup(tmp_path, tokenizer):
    data = InstructionData(str(tmp_path / "none.jsonl"), tokenizer=tokenizer)
    data.prepare_data()
    with pytest.raises(UserError, match="does not exist"):
        data.setup("fit")


def test_real_instructions_are_read_and_encoded(tokenizer):
    path = SHARED / "data" / "instruct_open.jsonl"
    if not path.exists():
        pytest.skip("there is no shared data beside the project")
    data = InstructionData(str(path), tokenizer=tokenizer, max_examples=200, num_validation=50, max_length=4096)
    data.setup("fit")
    assert len(data.read()) == 7563
    assert len(data.examples) + data.num_dropped >= 200
    assert data.num_dropped < 5
