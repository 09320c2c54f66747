"""Chats as their templates write them, over templates of every kind that bases have, written here."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bishare.data.chats import TemplateText, chat_prompt, chat_reply, read_template
from bishare.data.encoding import NO_LABEL, encode, encode_prompts, end_tokens
from bishare.data.rows import Chat, parse_row
from bishare.data.turns import Message
from bishare.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
MARKERS = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|User|>", "<|Assistant|>"),
]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
"""Added tokens that are not special, as such bases have them."""
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


def build(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that itself puts <s> in front of a text, with the template of this name."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["</s>", "<s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(MARKERS)
    inner.add_tokens(TAGS)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", bos_token="<s>", pad_token="</s>")
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


TOKENIZERS = {path.stem: build(path.stem) for path in sorted(TEMPLATES.glob("*.jinja"))}

words = st.text(st.sampled_from("ab é😀\n.,"), min_size=1, max_size=12).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, object]]:
    """User and assistant in turn, perhaps behind a system message; some answers are not trained."""
    turns: list[dict[str, object]] = []
    if draw(st.booleans()):
        turns.append({"role": "system", "content": draw(words)})
    for _ in range(draw(st.integers(1, 3))):
        turns.append({"role": "user", "content": draw(words)})
        answer: dict[str, object] = {"role": "assistant", "content": draw(words)}
        if draw(st.integers(0, 3)) == 0:
            answer["weight"] = 0
        turns.append(answer)
    turns[-1].pop("weight", None)
    return turns


@settings(max_examples=60, deadline=None)
@given(turns=conversations(), name=st.sampled_from(sorted(TOKENIZERS)))
def test_tokens_are_those_of_the_template(turns: list[dict[str, object]], name: str) -> None:
    tokenizer = TOKENIZERS[name]
    if name == "gemma":
        turns = [turn for turn in turns if turn["role"] != "system"]
    chat = parse_row({"messages": turns}, "chat", "row 1")
    assert isinstance(chat, Chat)
    example = encode(tokenizer, [chat], prompt="chat", loss_on="answer", max_length=10_000)[0]
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    whole = tokenizer.apply_chat_template(plain, return_dict=False)
    assert example.input_ids == whole[: len(example.input_ids)]
    assert example.input_ids[-1] in end_tokens(tokenizer)
    # Generation begins where the labels of the last answer begin.
    prompt = tokenizer.apply_chat_template(plain[:-1], add_generation_prompt=True, return_dict=False)
    labels = example.labels
    assert all(label != NO_LABEL for label in labels[len(prompt) :])
    assert labels[len(prompt) - 1] == NO_LABEL
    batch = encode_prompts(tokenizer, [chat_prompt(tokenizer, chat)])
    assert batch["input_ids"][0].tolist() == prompt
    # No answer that counts for nothing has a label.
    trained = sum(turn["role"] == "assistant" and turn.get("weight") != 0 for turn in turns)
    runs = sum(label != NO_LABEL and before == NO_LABEL for before, label in pairwise(labels))
    assert runs + example.num_rewritten == trained


def answers(name: str, turns: list[dict[str, object]], **fields: object) -> list[str]:
    chat = parse_row({"messages": turns, **fields}, "chat", "row 1")
    assert isinstance(chat, Chat)
    reply = chat_reply(TOKENIZERS[name], chat)
    return [reply.text[start:end] for start, end in reply.answers]


THOUGHT = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "<think>x</think>b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "<think>y</think>d"},
]


@pytest.mark.parametrize(
    ("name", "expected"), [("thinking", "<think>\ny\n</think>\n\nd"), ("thinking_opened", "y\n</think>\n\nd")]
)
def test_thoughts_of_the_last_answer_are_trained(name: str, expected: str) -> None:
    chat = Chat(tuple(Message(str(turn["role"]), str(turn["content"])) for turn in THOUGHT))
    reply = chat_reply(TOKENIZERS[name], chat)
    assert answers(name, THOUGHT) == [expected]
    assert reply.num_rewritten == 1


def test_reasoning_beside_the_content_is_trained() -> None:
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "reasoning_content": "two"}]
    assert answers("thinking", turns) == ["<think>\ntwo\n</think>\n\n4"]
    with pytest.raises(UserError, match=r"leaves out or rewrites the reasoning 'two' of the last answer"):
        answers("chatml", turns)


def test_template_that_strips_thoughts_is_refused() -> None:
    assert answers("stripping", [THOUGHT[0], {"role": "assistant", "content": "b"}]) == ["b"]
    with pytest.raises(UserError, match="leaves out or rewrites the text 'y' of the last answer"):
        answers("stripping", THOUGHT)


CALL = {"type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
CALLING = [
    {"role": "user", "content": "time?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "12:00", "tool_call_id": "1"},
    {"role": "assistant", "content": [{"type": "text", "text": "No"}, {"type": "text", "text": "on."}]},
]


def test_calls_of_tools_are_trained() -> None:
    call = '<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call>'
    assert answers("tools", CALLING, tools=[CLOCK]) == [call, "Noon."]
    assert answers("tools", CALLING[:2], tools=[CLOCK]) == [call]


@pytest.mark.parametrize(
    ("turns", "tools", "message"),
    [
        (CALLING[:1] + CALLING[3:], [CLOCK], "leaves out or rewrites the tool clock"),
        (CALLING[:2], None, "leaves out or rewrites the call of 'clock'"),
    ],
)
def test_a_template_without_tools_is_refused(turns: list[dict[str, object]], tools: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        answers("chatml", turns, tools=tools)


def test_a_system_message_is_never_lost() -> None:
    tokenizer = build("chatml")
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}" + str(
        tokenizer.chat_template
    ).removeprefix("{%- for m in messages %}")
    chat = Chat((Message("system", "Be brief."), Message("user", "a"), Message("assistant", "b")))
    with pytest.raises(UserError, match=r"the system's message 'Be brief\.' in the chat that begins 'Be brief\.'"):
        chat_reply(tokenizer, chat)


def test_the_token_behind_answers_ends_them() -> None:
    for name, token in {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}.items():
        tokenizer = TOKENIZERS[name]
        assert end_tokens(tokenizer) == [0, tokenizer.convert_tokens_to_ids(token)]
    assert end_tokens(TOKENIZERS["mistral"]) == [0]


def test_template_comes_from_a_file_or_name(tmp_path: Path) -> None:
    tokenizer = build("chatml")
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    assert read_template("tool_use", tokenizer) == "b"
    (tmp_path / "own.jinja").write_text("c", encoding="utf-8")
    assert read_template(str(tmp_path / "own.jinja"), tokenizer) == "c"
    with pytest.raises(
        UserError, match="no readable file nowhere, and the tokenizer's templates are default, tool_use"
    ):
        read_template("nowhere", tokenizer)


def test_template_text_gets_no_further_tokens() -> None:
    tokenizer = TOKENIZERS["chatml"]
    ids = encode_prompts(tokenizer, [TemplateText("a"), "a"])["input_ids"]
    assert ids.tolist() == [[0, tokenizer.convert_tokens_to_ids("a")], [1, tokenizer.convert_tokens_to_ids("a")]]
