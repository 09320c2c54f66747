import pytest

from bishare.data.encoding import NO_LABEL, encode, encode_prompts
from bishare.data.prompts import render_prompt
from bishare.data.rows import Chat, Completion, Message, Row, Text
from bishare.errors import UserError

ROW = Row("Name a colour.", "", "Blue is a colour.")
WITH_INPUT = Row("Translate.", "Guten Tag", "Good day")
TURNS = ("user", "Say user."), ("assistant", "user"), ("user", "Again, please."), ("assistant", " user user ")
CHAT = Chat(tuple(Message(role, content) for role, content in (("system", "Be brief."), *TURNS)))


def encode_one(tokenizer, row=ROW, *, prompt="alpaca", loss_on="answer", max_length=1000):
    return encode(tokenizer, [row], prompt=prompt, loss_on=loss_on, max_length=max_length)[0]


def labelled(tokenizer, example):
    return tokenizer.decode([label for label in example.labels if label != NO_LABEL])


def test_braces_in_a_row_are_plain_text(tokenizer):
    row = Row("Explain {input} and {0}.", "{instruction}", "{}")
    assert "Explain {input} and {0}." in render_prompt(tokenizer, row, "alpaca")
    assert labelled(tokenizer, encode_one(tokenizer, row)) == "{}</s>"


def test_labels_are_answer_and_end_token(tokenizer):
    example = encode_one(tokenizer)
    assert labelled(tokenizer, example) == "Blue is a colour.</s>"
    assert example.input_ids[-1] == example.labels[-1] == tokenizer.eos_token_id
    assert len(example.labels) == len(example.input_ids)
    assert not example.cut


def test_chat_labels_end_with_the_turns_token(tokenizer):
    example = encode_one(tokenizer, WITH_INPUT, prompt="chat")
    assert tokenizer.decode(example.input_ids) == (
        "<|im_start|>user\nTranslate.\n\nGuten Tag<|im_end|>\n<|im_start|>assistant\nGood day<|im_end|>"
    )
    assert labelled(tokenizer, example) == "Good day<|im_end|>"


def test_unlike_opening_is_refused(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
        with pytest.raises(UserError, match=r"asks for an answer with .*<think>"):
            encode_one(tokenizer, prompt="chat")
    finally:
        tokenizer.chat_template = template


def test_chat_without_end_token_gets_the_tokenizers(tokenizer):
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


def test_multibyte_answers_are_labelled_whole(tokenizer):
    row = Row("Écris.", "", "naïve 🙂🙂")
    assert labelled(tokenizer, encode_one(tokenizer, row)) == "naïve 🙂🙂</s>"
    assert labelled(tokenizer, encode_one(tokenizer, row, prompt="chat")) == "naïve 🙂🙂<|im_end|>"


def test_answer_that_repeats_the_question_is_found(tokenizer):
    row = Row("Say yes", "", "Say yes")
    example = encode_one(tokenizer, row, prompt="chat")
    assert labelled(tokenizer, example) == "Say yes<|im_end|>"
    assert example.labels[:3] == [NO_LABEL] * 3


@pytest.mark.parametrize("prompt", ["alpaca", "chat"])
def test_cut_example_has_no_end_token(tokenizer, prompt):
    whole = encode_one(tokenizer, prompt=prompt)
    cut = encode_one(tokenizer, prompt=prompt, max_length=len(whole.input_ids) - 3)
    assert cut.cut
    assert cut.input_ids == whole.input_ids[:-3]
    assert cut.labels == whole.labels[:-3]


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_a_cut_leaves_no_half_character(tokenizer, loss_on):
    row = Completion("x: ", "one 👩‍🚀")
    whole = encode_one(tokenizer, row, loss_on=loss_on)
    for max_length in range(4, len(whole.input_ids)):
        ids = encode_one(tokenizer, row, loss_on=loss_on, max_length=max_length).input_ids
        assert "\ufffd" not in tokenizer.decode(ids)
        assert ids == whole.input_ids[: len(ids)]
        assert len(ids) > max_length - 4


def test_prompt_of_maximum_length_has_no_labels(tokenizer):
    whole = encode_one(tokenizer)
    num_prompt = whole.labels.count(NO_LABEL)
    assert set(encode_one(tokenizer, max_length=num_prompt).labels) == {NO_LABEL}
    assert len([x for x in encode_one(tokenizer, max_length=num_prompt + 1).labels if x != NO_LABEL]) == 1


@pytest.mark.parametrize("prompt", ["alpaca", "chat"])
def test_an_empty_answer_has_no_labels(tokenizer, prompt):
    assert set(encode_one(tokenizer, Row("Say nothing.", "", ""), prompt=prompt).labels) == {NO_LABEL}


def test_loss_on_all_labels_every_token(tokenizer):
    example = encode_one(tokenizer, loss_on="all")
    assert example.labels == example.input_ids


def test_start_token_comes_once_without_label(tokenizer_with_start):
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
def test_prefixes_give_the_labels_of_offsets(tokenizer, rows, prompt):
    options = {"prompt": prompt, "loss_on": "answer", "max_length": 60}
    assert encode(Slow(tokenizer), rows, **options) == encode(tokenizer, rows, **options)


def test_generation_prompts_are_padded_on_the_left(tokenizer_with_start):
    prompts = [render_prompt(tokenizer_with_start, row, "alpaca") for row in (ROW, WITH_INPUT)]
    batch = encode_prompts(tokenizer_with_start, prompts)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for row, ids, mask in zip((ROW, WITH_INPUT), batch["input_ids"], batch["attention_mask"], strict=True):
        assert mask.tolist() == sorted(mask.tolist())  # zeros come first
        example = encode_one(tokenizer_with_start, row)
        assert ids[mask.bool()].tolist() == example.input_ids[: example.labels.count(NO_LABEL)]


def spans(tokenizer, example):
    """The runs of labelled tokens, as text."""
    runs = [[]]
    for label in example.labels:
        if label == NO_LABEL:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


def test_every_answer_of_a_chat_is_labelled(tokenizer):
    example = encode_one(tokenizer, CHAT)
    assert spans(tokenizer, example) == ["user<|im_end|>", "user user<|im_end|>"]
    text = tokenizer.decode(example.input_ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay user.<|im_end|>")
    assert text.endswith("user user<|im_end|>")


def test_chat_without_an_answer_has_no_tokens(tokenizer):
    assert encode_one(tokenizer, Chat(())).input_ids == []


def test_loss_on_all_labels_questions_too(tokenizer):
    example = encode_one(tokenizer, CHAT, loss_on="all")
    assert example.labels == example.input_ids


def test_long_chat_is_cut_behind_an_answer(tokenizer):
    whole = encode_one(tokenizer, CHAT)
    first_answer = next(i for i, label in enumerate(whole.labels) if label != NO_LABEL)
    end_of_first = whole.labels.index(tokenizer.convert_tokens_to_ids("<|im_end|>")) + 1
    second_answer = next(i for i in range(end_of_first, len(whole.labels)) if whole.labels[i] != NO_LABEL)
    for max_length in range(first_answer + 1, len(whole.input_ids)):
        example = encode_one(tokenizer, CHAT, max_length=max_length)
        assert example.cut
        assert example.input_ids == whole.input_ids[: len(example.input_ids)]
        assert example.labels[-1] == example.input_ids[-1]
        if max_length <= end_of_first:
            assert len(example.input_ids) == max_length
        elif max_length < second_answer + 1:
            assert len(example.input_ids) == min(end_of_first, max_length)
            assert len(spans(tokenizer, example)) == 1
        else:
            assert len(example.input_ids) == max_length
            assert spans(tokenizer, example)[0] == "user<|im_end|>"
            assert len(spans(tokenizer, example)) == 2
    assert set(encode_one(tokenizer, CHAT, max_length=first_answer).labels) == {NO_LABEL}


def test_text_behind_turns_is_not_labelled(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
        labelled_spans = [span.strip() for span in spans(tokenizer, encode_one(tokenizer, CHAT))]
        # Without a generation prompt, the model itself has to write the opening of its turn.
        assert labelled_spans == ["assistant: user", "assistant: user user</s>"]
    finally:
        tokenizer.chat_template = template


def test_completion_has_no_wording_around_it(tokenizer):
    example = encode_one(tokenizer, Completion("one two", " three"))
    assert tokenizer.decode(example.input_ids) == "one two three</s>"
    assert labelled(tokenizer, example) == " three</s>"
    assert render_prompt(tokenizer, Completion("one two", " three"), "alpaca") == "one two"


def test_text_is_labelled_but_its_start(tokenizer, tokenizer_with_start):
    assert labelled(tokenizer, encode_one(tokenizer, Text("one two"))) == "one two</s>"
    example = encode_one(tokenizer_with_start, Text("one two"))
    assert example.labels == [NO_LABEL, *example.input_ids[1:]]


def test_rows_of_several_forms_are_encoded_alike(tokenizer_with_start):
    template = tokenizer_with_start.chat_template
    try:
        tokenizer_with_start.chat_template = "{{ bos_token }}" + template
        rows = [ROW, CHAT, Text("one two"), Completion("a", "b"), WITH_INPUT, CHAT]
        options = {"prompt": "alpaca", "loss_on": "answer", "max_length": 500}
        alone = [encode(tokenizer_with_start, [row], **options)[0] for row in rows]
        assert encode(tokenizer_with_start, rows, **options) == alone
        start = tokenizer_with_start.bos_token_id
        assert {example.input_ids.count(start) for example in alone} == {1}
        slow = encode(Slow(tokenizer_with_start), rows, **options)
        assert slow == alone
    finally:
        tokenizer_with_start.chat_template = template
