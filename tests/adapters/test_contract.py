"""What every adapter owes, for every method and form of it, on three families of models."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.factors import Factors, Slot
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vblora import VBLoRAConfig
from bishare.adapters.vera import VeRAConfig
from bishare.errors import UserError
from bishare.models.attach import adapter_of, attach, load_adapter, merge, remove, unmerge
from tests.randomised import randomise
from tests.reference.counts import gate_count, kronecker_count, lora_count, slice_count, vblora_count, vera_count

RANKS = {"local": 2, "intra": 3, "inter": 4}
SIZE = 12  # divides none of the tiny models' widths: 16, 32, 56, 96


def bishare(transform: str, *, ranks: tuple[int, int, int] = (2, 3, 4), **options: object) -> BiShareConfig:
    r_local, r_intra, r_inter = ranks
    return BiShareConfig(transform=transform, r_local=r_local, r_intra=r_intra, r_inter=r_inter, size=SIZE, **options)


CONFIGS: dict[str, Callable[[], AdapterConfig]] = {
    "lora": lambda: LoRAConfig(r=3),
    "lora-rslora": lambda: LoRAConfig(r=4, scaling="rslora"),
    "slice-center": lambda: bishare("slice"),
    "slice-top-left": lambda: bishare("slice", position="top-left"),
    "slice-bottom-right": lambda: bishare("slice", position="bottom-right"),
    "slice-no-local": lambda: bishare("slice", ranks=(0, 3, 4)),
    "gate": lambda: bishare("gate"),
    "gate-no-intra": lambda: bishare("gate", ranks=(2, 0, 4), fit_init="ones"),
    "kronecker": lambda: bishare("kronecker", kernel="shared"),
    "kronecker-no-inter": lambda: bishare("kronecker", ranks=(2, 3, 0), fit_init="kaiming_normal"),
    "kronecker-per_rank": lambda: bishare("kronecker", kernel="per_rank"),
    "kronecker-r_1": lambda: bishare("kronecker", kernel="r_1"),
    "kronecker-1_r": lambda: bishare("kronecker", kernel="1_r"),
    "kronecker-r_2": lambda: bishare("kronecker", kernel="r_2"),
    "kronecker-2_r": lambda: bishare("kronecker", kernel="2_r"),
    "aslora": lambda: ASLoRAConfig(r=3),
    "slice-merging": lambda: bishare("slice", merging=True),
    "gate-merging": lambda: bishare("gate", merging=True),
    "kronecker-merging": lambda: bishare("kronecker", merging=True),
    "vera": lambda: VeRAConfig(r=5),
    "vblora": lambda: VBLoRAConfig(r=3, num_vectors=7, vector_length=4),
}
ARCHITECTURES = ["llama", "gpt2", "bert"]


def logits(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


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


def dense_update(factors: Factors) -> Tensor:
    return factors.B.double() @ factors.A.double()


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(architecture: str, tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return tiny_model(architecture)


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> AdapterConfig:
    torch.manual_seed(3)
    return CONFIGS[request.param]()


@pytest.fixture
def pristine(architecture: str, tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The same base model a second time."""
    return tiny_model(architecture)


@pytest.fixture
def adapted(base: PreTrainedModel, config: AdapterConfig) -> PreTrainedModel:
    """The base model with a randomised adapter."""
    randomise(attach(base, config))
    return base


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
