"""The adapters in a model and a training loop of the user's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import bishare

CONFIGS = [
    bishare.BiShareConfig(size=12),
    bishare.ASLoRAConfig(r=4),
    bishare.VeRAConfig(r=16, d_initial=1.0),
    bishare.VBLoRAConfig(r=4),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_attach_train_save_load_generate(
    architecture: str,
    config: bishare.BiShareConfig,
    tiny_model: Callable[..., PreTrainedModel],
    token_ids: Tensor,
    tmp_path: Path,
) -> None:
    def generate(model: PreTrainedModel) -> list[list[int]]:
        mask = torch.tensor([[1] * 10, [0] * 4 + [1] * 6])
        output = model.eval().generate(token_ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        return output[:, token_ids.shape[1] :].tolist()

    torch.manual_seed(0)  # a near tie of two tokens would decide the test
    model = tiny_model(architecture).train()
    before = generate(model)
    adapter = bishare.attach(model, config)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        loss = model.train()(input_ids=token_ids, labels=token_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    bishare.save_adapter(adapter, tmp_path, base="tiny")

    fresh = tiny_model(architecture)
    loaded = bishare.load_adapter(fresh, tmp_path)

    assert loaded.num_parameters() == adapter.num_parameters()
    answers = generate(fresh)
    assert answers == generate(model) != before
    with torch.no_grad():  # the cache of keys and values changes nothing
        sequence = torch.cat([token_ids[0], torch.tensor(answers[0])])
        assert fresh(input_ids=sequence[None]).logits[0, 9:-1].argmax(-1).tolist() == answers[0]
    bishare.remove(fresh)
    assert generate(fresh) == before
