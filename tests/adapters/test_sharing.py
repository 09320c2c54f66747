"""Parameters are shared as the method says, stored once, and as many as the formulas count."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.factors import Slot
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vblora import VBLoRAConfig
from bishare.adapters.vera import VeRAConfig
from bishare.models.attach import adapter_of, attach, remove
from tests.adapters.configurations import SIZE
from tests.adapters.dense import dense_update, logits
from tests.reference.counts import gate_count, kronecker_count, lora_count, slice_count, vblora_count, vera_count


def readers(adapter: Adapter, level: str) -> dict[Slot, set[int]]:
    """Storage of every parameter that a slot's level reads, found by autograd."""
    read = {}
    for slot in adapter.slots:
        A, B = adapter.parts(slot)[level]
        gradients = torch.autograd.grad(A.sum() + B.sum(), list(adapter.parameters()), allow_unused=True)
        read[slot] = {p.data_ptr() for p, g in zip(adapter.parameters(), gradients, strict=True) if g is not None}
    return read


def shares_an_a(config: AdapterConfig, level: str, slot: Slot, other: Slot) -> bool:
    """Whether these slots read one parameter besides the shared pairs: an A, over which Bs can be compared."""
    if isinstance(config, VBLoRAConfig):
        return True  # not an A but the bank
    if level == "local":
        return config.mergeable and slot.kind == other.kind
    return config.mergeable and level == "intra" and getattr(config, "transform", "") != "gate"


def test_stores_are_shared_by_layer_and_model(adapted: PreTrainedModel) -> None:
    adapter = adapter_of(adapted)
    slots = adapter.slots
    for level in adapter.parts(slots[0]):
        read = readers(adapter, level)
        for i, slot in enumerate(slots):
            for other in slots[i + 1 :]:
                together = level == "inter" or (level == "intra" and slot.layer == other.layer)
                num_shared = 2 if together else int(shares_an_a(adapter.config, level, slot, other))  # the pair, or A
                assert len(read[slot] & read[other]) == num_shared, (slot, other, level)


def test_every_parameter_is_stored_once(adapted: PreTrainedModel, tmp_path: Path) -> None:
    adapter = adapter_of(adapted)

    save_adapter(adapter, tmp_path)

    tensors = load_file(tmp_path / "adapter_model.safetensors")
    parameters = {name for name, _ in adapter.named_parameters()}
    assert set(tensors) == parameters | {name for name in adapter.state_dict() if name.endswith((".owner", "checksum"))}
    assert len({p.data_ptr() for p in adapter.parameters()}) == len(parameters)
    assert len({tuple(tensors[name].flatten().tolist()) for name in parameters}) == len(parameters)
    assert sum(tensors[name].numel() for name in parameters) == adapter.num_parameters()
    stored = {name.removeprefix("bishare.") for name in adapted.state_dict() if name.startswith("bishare.")}
    assert stored == set(adapter.state_dict())


def test_copied_model_shares_within_itself(adapted: PreTrainedModel, token_ids: Tensor) -> None:
    before = logits(adapted, token_ids)

    duplicate = copy.deepcopy(adapted)
    with torch.no_grad():
        for p in adapter_of(duplicate).parameters():
            p.zero_()

    assert torch.equal(logits(adapted, token_ids), before)
    remove(adapted)
    assert torch.equal(logits(duplicate, token_ids), logits(adapted, token_ids))


def counted(config: AdapterConfig, slots: tuple[Slot, ...]) -> int:
    weights = [(slot.layer, slot.in_features, slot.out_features) for slot in slots]
    if isinstance(config, LoRAConfig):
        return lora_count(weights, r=config.r)
    if isinstance(config, ASLoRAConfig):
        return lora_count(weights, r=config.r) - spared_count(slots, r=config.r)
    if isinstance(config, VeRAConfig):
        return vera_count(weights, r=config.r)
    if isinstance(config, VBLoRAConfig):
        return vblora_count(weights, r=config.r, num_vectors=config.num_vectors, vector_length=4)
    assert isinstance(config, BiShareConfig)
    return bishare_count(config, weights) - (spared_by_merging(config, slots) if config.merging else 0)


def spared_count(slots: tuple[Slot, ...], *, r: int) -> int:
    """Values that are gone when the layers of each kind share one A."""
    kinds = {slot.kind: slot.in_features for slot in slots}
    return r * (sum(slot.in_features for slot in slots) - sum(kinds.values()))


def spared_by_merging(config: BiShareConfig, slots: tuple[Slot, ...]) -> int:
    others = len({slot.layer for slot in slots}) - 1
    width = {"slice": max(slot.in_features for slot in slots), "gate": 0, "kronecker": SIZE}[config.transform]
    return spared_count(slots, r=config.r_local) + others * config.r_intra * width


def bishare_count(config: BiShareConfig, weights: list[tuple[int, int, int]]) -> int:
    ranks = {"local": config.r_local, "intra": config.r_intra, "inter": config.r_inter}
    match config.transform:
        case "slice":
            return slice_count(weights, **ranks)
        case "gate":
            return gate_count(weights, **ranks, size=SIZE)
        case _:
            return kronecker_count(weights, **ranks, size=SIZE, kernel=config.kernel)


def test_count_and_file_size_follow_the_formula(adapted: PreTrainedModel, tmp_path: Path) -> None:
    adapter = adapter_of(adapted)
    expected = counted(adapter.config, adapter.slots)

    save_adapter(adapter, tmp_path)

    assert adapter.num_parameters() == expected
    assert sum(p.numel() for p in adapter.parameters()) == expected
    num_tensors = len(load_file(tmp_path / "adapter_model.safetensors"))
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert 4 * expected < size <= 4 * expected * 1.01 + 128 * num_tensors


@pytest.fixture(scope="module")
def wide_model() -> LlamaForCausalLM:
    """A Llama whose narrowest weight, 48, leaves room for rank 22."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=96,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.1,
        )
    )


@pytest.mark.parametrize(
    ("transform", "kernel", "lowest", "highest"),
    [
        ("slice", "shared", 22, 22),
        ("gate", "shared", 4, 4),  # each shared level has rank 1
        ("kronecker", "r_1", 21, 22),
        ("kronecker", "per_rank", 21, 22),
    ],
)
def test_numerical_rank_after_training(
    wide_model: LlamaForCausalLM, transform: str, kernel: str, lowest: int, highest: int
) -> None:
    torch.manual_seed(1)
    config = BiShareConfig(transform=transform, kernel=kernel, r_local=2, r_intra=4, r_inter=16, size=32)
    adapter = attach(wide_model, config)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(8):
        token_ids = torch.randint(64, (4, 48))
        wide_model(input_ids=token_ids, labels=token_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ranks = []
    for slot in adapter.slots:
        values = torch.linalg.svdvals(dense_update(adapter.factors(slot)).detach())
        tolerance = max(slot.in_features, slot.out_features) * torch.finfo(torch.float32).eps * values[0]
        ranks.append(int((values > tolerance).sum()))
    remove(wide_model)

    assert min(ranks) >= lowest
    assert max(ranks) <= highest
