"""A tiny BERT with a tokenizer of letters, and files of a task that it can learn: is there an ``a`` in the text?"""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh"]


def save_base(folder: Path) -> Path:
    """Without dropout, so that runs with other numbers of processes can be compared."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def save_task(folder: Path, task: str = "sst2", *, num_train: int = 64, num_validation: int = 24) -> Path:
    folder.mkdir(exist_ok=True)
    source = random.Random(0)
    for split, count in (("train", num_train), ("validation", num_validation)):
        rows = []
        for number in range(count):
            letters = source.choices("bcdefgh", k=3 + number % 5)
            if number % 2:
                letters[source.randrange(len(letters))] = "a"
            label = number % 2 if task != "stsb" else 5.0 * (number % 2)
            rows.append({"sentence1": " ".join(letters), "sentence2": "b c", "label": label})
        (folder / f"{task}_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
