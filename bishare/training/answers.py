"""Greedy answers of a language model to prompts.

Shapes: input_ids and attention_mask [b, n], prompts padded on the left.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bishare.data.encoding import stop_tokens


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
) -> list[str]:
    """Write an answer to each prompt, up to a stop token.

    Args:
        model: The model, on any device.
        tokenizer: The tokenizer of the prompts.
        input_ids: Tokens of the prompts.
        attention_mask: 0 at padding.
        max_new_tokens: The most tokens of an answer.

    Returns:
        The answers without special tokens and without surrounding spaces.
    """
    generate: Any = model.generate
    output = generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stop_tokens(model, tokenizer),
    )
    answers = tokenizer.batch_decode(output[:, input_ids.shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]
