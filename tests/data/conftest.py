"""A small byte-level tokenizer with a chat template, and rows to encode with it."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bishare.data.rows import Row
from tests.data.given import Given

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "a b c d e 1 2 3",
]


def build_tokenizer(*, with_start: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE; ``with_start`` puts <s> in front of every text, as Llama's tokenizers do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if with_start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_with_start() -> PreTrainedTokenizerFast:
    return build_tokenizer(with_start=True)


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    """Sixty rows of clearly different lengths."""
    return [Row(f"Count to {n}.", "", " ".join(map(str, range(1, 2 + n % 23)))) for n in range(60)]


@pytest.fixture
def make(tokenizer, rows):
    def make(given=rows, **options):
        return Given(given, tokenizer=tokenizer, **{"batch_size": 8, "tokens_per_micro_batch": 256, **options})

    return make
