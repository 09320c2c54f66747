import pytest

from bishare.data.prompts import NO_LABEL, encode, encode_prompts, render_prompt
from bishare.data.rows import Row
from bishare.errors import UserError

ROW = Row("Name a colour.", "", "Blue is a colour.")
WITH_INPUT = Row("Translate.", "Guten Tag", "Good day")


def encode_one(tokenizer, row=ROW, *, prompt="alpaca", loss_on="answer", max_length=1000):
    return encode(tokenizer, [row], prompt=prompt, loss_on=loss_on, max_length=max_length)[0]


def labelled(tokenizer, example):
    return tokenizer.decode([label for label in example.labels if label != NO_LABEL])


def test_alpaca_prompt_has_stanfords_wording(tokenizer):
    assert render_prompt(tokenizer, ROW, "alpaca") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a colour.\n\n### Response:"
    )
    assert render_prompt(tokenizer, WITH_INPUT, "alpaca") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n"
        "### Instruction:\nTranslate.\n\n### Input:\nGuten Tag\n\n### Response:"
    )


def test_braces_in_a_row_are_plain_text(tokenizer):
    row = Row("Explain {input} and {0}.", "{instruction}", "{}")
    assert "Explain {input} and {0}." in render_prompt(tokenizer, row, "alpaca")
    assert labelled(tokenizer, encode_one(tokenizer, row)) == "{}</s>"


def test_labels_are_the_answer_and_the_end_token(tokenizer):
    example = encode_one(tokenizer)
    assert labelled(tokenizer, example) == "Blue is a colour.</s>"
    assert example.input_ids[-1] == example.labels[-1] == tokenizer.eos_token_id
    assert len(example.labels) == len(example.input_ids)
    assert not example.cut


def test_chat_labels_end_with_the_turns_end_token(tokenizer):
    example = encode_one(tokenizer, WITH_INPUT, prompt="chat")
    assert tokenizer.decode(example.input_ids) == (
        "<|im_start|>user\nTranslate.\n\nGuten Tag<|im_end|>\n<|im_start|>assistant\nGood day<|im_end|>"
    )
    assert labelled(tokenizer, example) == "Good day<|im_end|>"


def test_chat_template_that_opens_the_answer_differently_is_followed(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
        assert labelled(tokenizer, encode_one(tokenizer, prompt="chat")) == "Blue is a colour.<|im_end|>"
    finally:
        tokenizer.chat_template = template


def test_chat_template_without_an_end_token_gets_the_tokenizers(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
        example = encode_one(tokenizer, prompt="chat")
        assert labelled(tokenizer, example).strip() == "Blue is a colour.</s>"
    finally:
        tokenizer.chat_template = template


def test_answers_of_several_bytes_per_character_are_labelled_whole(tokenizer):
    row = Row("Écris.", "", "naïve 🙂🙂")
    assert labelled(tokenizer, encode_one(tokenizer, row)) == "naïve 🙂🙂</s>"
    assert labelled(tokenizer, encode_one(tokenizer, row, prompt="chat")) == "naïve 🙂🙂<|im_end|>"


def test_an_answer_that_repeats_the_question_is_found_at_its_own_place(tokenizer):
    row = Row("Say yes", "", "Say yes")
    example = encode_one(tokenizer, row, prompt="chat")
    assert labelled(tokenizer, example) == "Say yes<|im_end|>"
    assert example.labels[:3] == [NO_LABEL] * 3


@pytest.mark.parametrize("prompt", ["alpaca", "chat"])
def test_a_cut_example_keeps_its_end_token(tokenizer, prompt):
    whole = encode_one(tokenizer, prompt=prompt)
    cut = encode_one(tokenizer, prompt=prompt, max_length=len(whole.input_ids) - 3)
    assert cut.cut
    assert len(cut.input_ids) == len(whole.input_ids) - 3
    assert cut.input_ids == [*whole.input_ids[:-4], whole.input_ids[-1]]
    assert cut.labels == [*whole.labels[:-4], whole.labels[-1]]


def test_a_prompt_that_fills_the_maximum_length_has_no_labels(tokenizer):
    whole = encode_one(tokenizer)
    num_prompt = whole.labels.count(NO_LABEL)
    assert set(encode_one(tokenizer, max_length=num_prompt + 1).labels) == {NO_LABEL}
    assert len([x for x in encode_one(tokenizer, max_length=num_prompt + 2).labels if x != NO_LABEL]) == 2


@pytest.mark.parametrize("prompt", ["alpaca", "chat"])
def test_an_empty_answer_has_no_labels(tokenizer, prompt):
    assert set(encode_one(tokenizer, Row("Say nothing.", "", ""), prompt=prompt).labels) == {NO_LABEL}


def test_loss_on_all_labels_every_token(tokenizer):
    example = encode_one(tokenizer, loss_on="all")
    assert example.labels == example.input_ids


def test_start_token_is_written_once_and_carries_no_label(tokenizer_with_start):
    example = encode_one(tokenizer_with_start)
    start = tokenizer_with_start.bos_token_id
    assert example.input_ids[0] == start
    assert example.input_ids.count(start) == 1
    template = tokenizer_with_start.chat_template
    try:
        tokenizer_with_start.chat_template = "{{ bos_token }}" + template
        assert encode_one(tokenizer_with_start, prompt="chat").input_ids.count(start) == 1
    finally:
        tokenizer_with_start.chat_template = template


class Slow:
    """The fast tokenizer without what only fast ones have."""

    is_fast = False

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, texts, **options):
        return {"input_ids": self._tokenizer(texts, **options)["input_ids"]}


@pytest.mark.parametrize("prompt", ["alpaca", "chat"])
def test_prefix_tokenisation_gives_the_same_labels_as_offsets(tokenizer, rows, prompt):
    options = {"prompt": prompt, "loss_on": "answer", "max_length": 60}
    assert encode(Slow(tokenizer), rows, **options) == encode(tokenizer, rows, **options)


def test_prompts_for_generation_are_the_training_prompts_padded_on_the_left(tokenizer_with_start):
    prompts = [render_prompt(tokenizer_with_start, row, "alpaca") for row in (ROW, WITH_INPUT)]
    batch = encode_prompts(tokenizer_with_start, prompts)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for row, ids, mask in zip((ROW, WITH_INPUT), batch["input_ids"], batch["attention_mask"], strict=True):
        assert mask.tolist() == sorted(mask.tolist())  # zeros come first
        example = encode_one(tokenizer_with_start, row)
        assert ids[mask.bool()].tolist() == example.input_ids[: example.labels.count(NO_LABEL)]


def test_chat_without_a_template_is_refused(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = None
        with pytest.raises(UserError, match="no chat template"):
            encode_one(tokenizer, prompt="chat")
    finally:
        tokenizer.chat_template = template


def test_a_template_that_drops_the_answer_is_refused(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        with pytest.raises(UserError, match="leaves out the answer"):
            encode_one(tokenizer, prompt="chat")
    finally:
        tokenizer.chat_template = template
