"""What every adapter owes, for every method and form of it, on three families of models."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare.adapters.base import AdapterConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.factors import Factors
from bishare.errors import UserError
from bishare.models.attach import adapter_of, attach, load_adapter, merge, remove, unmerge
from tests.adapters.dense import dense_update, logits
from tests.randomised import randomise


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, type], dict[str, bool]]:
    """Everything that removing an adapter must bring back: values by key, module types, what is trainable."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: type(module) for name, module in model.named_modules()},
        {name: p.requires_grad for name, p in model.named_parameters()},
    )


def assert_restored(model: nn.Module, before: tuple[dict[str, Tensor], dict[str, type], dict[str, bool]]) -> None:
    values, types, trainable = snapshot(model)
    assert list(values) == list(before[0])
    assert all(torch.equal(values[name], value) for name, value in before[0].items())
    assert (types, trainable) == before[1:]


def test_starts_as_a_noop_unless_declared(base: PreTrainedModel, config: AdapterConfig, token_ids: Tensor) -> None:
    before = logits(base, token_ids)

    adapter = attach(base, config)

    assert adapter.starts_as_noop == (config.method != "vblora")
    assert torch.equal(logits(base, token_ids), before) == adapter.starts_as_noop


def test_factors_are_fp32_and_fit_their_weight(adapted: PreTrainedModel) -> None:
    adapter = adapter_of(adapted)

    assert len(adapter.slots) in (9, 15)  # three layers of c_attn, c_fc, c_proj or of q, k, v, up, down
    for slot in adapter.slots:
        A, B = adapter.factors(slot)
        assert A.shape[1] == slot.in_features
        assert B.shape[0] == slot.out_features
        assert A.shape[0] == B.shape[1] == sum(part.rank for part in adapter.parts(slot).values())
        assert A.dtype == B.dtype == torch.float32
        expected = sum(dense_update(part) for part in adapter.parts(slot).values())
        torch.testing.assert_close(dense_update(Factors(A, B)), expected, rtol=0, atol=1e-5)


def test_every_module_adds_x_at_bt(adapted: PreTrainedModel, pristine: PreTrainedModel, token_ids: Tensor) -> None:
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for slot in adapter_of(adapted).slots:
        adapted.get_submodule(slot.name).register_forward_hook(
            lambda _, inputs, output, name=slot.name: seen.update({name: (inputs[0], output)})
        )

    logits(adapted, token_ids)

    for slot in adapter_of(adapted).slots:
        x, y = seen[slot.name]
        A, B = adapter_of(adapted).factors(slot)
        unadapted = pristine.get_submodule(slot.name)(x)
        assert (y - unadapted).abs().max() > 1e-3
        torch.testing.assert_close(y, unadapted + x @ A.T @ B.T, rtol=1e-5, atol=1e-5)


def test_model_equals_base_plus_updates(adapted: PreTrainedModel, pristine: PreTrainedModel, token_ids: Tensor) -> None:
    unadapted = logits(pristine, token_ids)
    for slot in adapter_of(adapted).slots:
        module = pristine.get_submodule(slot.name)
        update = dense_update(adapter_of(adapted).factors(slot)).detach()  # [out, in]
        with torch.no_grad():
            module.weight += update if isinstance(module, nn.Linear) else update.T

    expected = logits(pristine, token_ids)
    assert (expected - unadapted).abs().max() > 1e-2
    torch.testing.assert_close(logits(adapted, token_ids), expected, rtol=1e-5, atol=1e-5)


def test_merged_model_equals_the_adapted_one(
    adapted: PreTrainedModel, pristine: PreTrainedModel, token_ids: Tensor
) -> None:
    expected = logits(adapted, token_ids)

    merge(adapted)

    torch.testing.assert_close(logits(adapted, token_ids), expected, rtol=1e-5, atol=1e-5)
    for slot in adapter_of(adapted).slots:
        old, new = (model.get_submodule(slot.name).weight for model in (pristine, adapted))
        assert not torch.equal(old, new)


def test_unmerge_gives_the_weights_back_bitwise(adapted: PreTrainedModel, token_ids: Tensor) -> None:
    before, outputs = snapshot(adapted), logits(adapted, token_ids)

    for _ in range(3):
        merge(adapted)
        unmerge(adapted)

    assert_restored(adapted, before)
    assert torch.equal(logits(adapted, token_ids), outputs)


@pytest.mark.parametrize("merged", [False, True], ids=["adapted", "merged"])
def test_remove_leaves_no_trace(base: PreTrainedModel, config: AdapterConfig, token_ids: Tensor, merged: bool) -> None:
    before, outputs = snapshot(base), logits(base, token_ids)
    randomise(attach(base, config))
    assert not torch.equal(logits(base, token_ids), outputs)
    if merged:
        merge(base)

    remove(base)

    assert_restored(base, before)
    assert torch.equal(logits(base, token_ids), outputs)
    with pytest.raises(UserError):
        adapter_of(base)


def test_saved_adapter_loads_with_equal_factors(
    adapted: PreTrainedModel, pristine: PreTrainedModel, token_ids: Tensor, tmp_path: Path
) -> None:
    saved = adapter_of(adapted)
    save_adapter(saved, tmp_path, base="tiny")

    loaded = load_adapter(pristine, tmp_path)

    assert adapter_of(pristine) is loaded
    assert loaded.config == saved.config
    assert loaded.slots == saved.slots
    for slot in saved.slots:
        assert all(torch.equal(a, b) for a, b in zip(saved.factors(slot), loaded.factors(slot), strict=True))
    assert torch.equal(logits(pristine, token_ids), logits(adapted, token_ids))


def test_exactly_the_adapter_trains(adapted: PreTrainedModel, token_ids: Tensor) -> None:
    adapter = adapter_of(adapted)
    adapter.reset_parameters()
    trainable = {id(p) for p in adapted.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapter.parameters()}
    grouped = [p for group in adapter.groups().values() for p in group]
    assert len(grouped) == len(trainable)
    assert {id(p) for p in grouped} == trainable
    assert {id(p) for p in adapter.live_parameters().values()} == trainable
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)  # moves by tiny gradients too
    reached: set[str] = set()

    adapted.train()
    for _ in range(4):
        adapted(input_ids=token_ids, labels=token_ids).loss.backward()
        reached |= {name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        optimizer.zero_grad()

    assert reached == {name for name, _ in adapter.named_parameters()}
    for name, p in adapted.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
        assert p.requires_grad or p.grad is None
