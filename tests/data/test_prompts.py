import pytest

from bishare.data.prompts import render_prompt, render_reply
from bishare.data.rows import Chat, Message, Row
from bishare.errors import UserError

ROW = Row("Name a colour.", "", "Blue is a colour.")
WITH_INPUT = Row("Translate.", "Guten Tag", "Good day")
TURNS = ("user", "Say user."), ("assistant", "user"), ("user", "Again, please."), ("assistant", " user user ")
CHAT = Chat(tuple(Message(role, content) for role, content in (("system", "Be brief."), *TURNS)))


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


def test_chat_without_a_template_is_refused(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = None
        with pytest.raises(UserError, match="no chat template"):
            render_reply(tokenizer, ROW, "chat")
    finally:
        tokenizer.chat_template = template


def test_template_that_drops_the_answer_is_refused(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        with pytest.raises(UserError, match="leaves out the answer"):
            render_reply(tokenizer, ROW, "chat")
    finally:
        tokenizer.chat_template = template


def test_chat_refused_by_the_template_is_named(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
        with pytest.raises(UserError, match=r"refuses the chat that begins 'Be brief\.': System role not supported"):
            render_reply(tokenizer, CHAT, "alpaca")
    finally:
        tokenizer.chat_template = template


def test_chat_prompt_ends_before_the_last_answer(tokenizer):
    prompt = render_prompt(tokenizer, CHAT, "alpaca")
    assert prompt.endswith("user\nAgain, please.<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.count("<|im_start|>assistant") == 2
