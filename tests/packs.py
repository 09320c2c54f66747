"""Documents as packs and as padded rows, a model with an adapter, and the loss of whole logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare.adapters.bishare import BiShareConfig
from bishare.models.attach import attach

DECODERS = ["llama", "mistral", "qwen2", "gpt2", "gpt_neox"]


TOKENS = torch.randint(3, 64, (3, 12), generator=torch.Generator().manual_seed(2))


LENGTHS = (12, 7, 9)


ModelFactory = Callable[..., PreTrainedModel]


def documents() -> tuple[list[Tensor], list[Tensor]]:
    ids = [row[:length] for row, length in zip(TOKENS, LENGTHS, strict=True)]
    labels = [torch.where(torch.arange(len(row)) < 3, -100, row) for row in ids]
    labels[1] = ids[1].clone()  # loss on all tokens: the first has nothing to predict it from
    return ids, labels


def documents_with_one_prompt() -> tuple[list[Tensor], list[Tensor]]:
    """Of which the second shares nine tokens with the first, the third ten with the second, the fourth nothing."""
    ids = [torch.cat((TOKENS[0, :9], TOKENS[1, :3])), torch.cat((TOKENS[0, :9], TOKENS[2, :6]))]
    ids += [torch.cat((ids[1][:10], TOKENS[1, 4:8])), TOKENS[2]]
    return ids, [torch.where(torch.arange(len(row)) < 11, -100, row) for row in ids]


def adapted(tiny_model: ModelFactory, architecture: str, *, window: int | None = None) -> PreTrainedModel:
    model = tiny_model(architecture)
    if architecture == "mistral":
        model.config.sliding_window = window
    adapter = attach(model, BiShareConfig(targets=["q", "up", "down"], size=24))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.train()


def rows(ids: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
    """The documents padded on the right."""
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def gradients(model: PreTrainedModel, loss: Tensor) -> Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


def reference(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of whole logits, summed, written as the model's own loss is."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
