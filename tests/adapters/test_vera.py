from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.factors import Slot
from bishare.adapters.vera import VeRA, VeRAConfig
from bishare.errors import UserError
from bishare.models.attach import attach, load_adapter
from bishare.ops.assembly import assemble
from tests.randomised import randomise
from tests.reference.baselines_reference import vera_update

SLOTS = [
    Slot(name=f"blocks.{layer}.{kind}", layer=layer, kind=kind, in_features=num_in, out_features=num_out)
    for layer in (0, 1)
    for kind, num_in, num_out in (("q", 8, 8), ("k", 8, 3), ("up", 8, 11), ("down", 11, 8))
]
WEIGHTS = "adapter_model.safetensors"


def build(**options: object) -> VeRA:
    torch.manual_seed(0)
    adapter = VeRAConfig(**options).build(SLOTS)
    for p in adapter.parameters():
        nn.init.normal_(p)
    return adapter


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_update_is_that_of_the_equation(scale: float) -> None:
    adapter = build(r=6, scale=scale).double()
    for slot in SLOTS:
        A, B = adapter.factors(slot)
        d, b = adapter.d[slot.key], adapter.b[slot.key]
        expected = scale * vera_update(adapter.A[:, : slot.in_features], adapter.B, d=d, b=b)
        torch.testing.assert_close(B @ A, expected, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(update.square().sum(), [d, b]) for update in (B @ A, expected)]
        for mine, wanted in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)


def test_blocks_equal_the_factors_with_gradients() -> None:
    adapter = build(r=6, scale=0.5)
    for slot in SLOTS:
        blocks, (A, B) = adapter.blocks(slot), adapter.factors(slot)
        sides = {
            "A": (assemble(blocks.A, length=slot.in_features, dtype=torch.float32, side="A"), A),
            "B": (assemble(blocks.B, length=slot.out_features, dtype=torch.float32, scale=0.5, side="B"), B.T),
        }
        for side, (assembled, factor) in sides.items():
            torch.testing.assert_close(assembled, factor, rtol=1e-6, atol=1e-7)
            assert assembled.requires_grad == factor.requires_grad == (side == "B")
        trained = adapter.d[slot.key], adapter.b[slot.key]
        gradients = [torch.autograd.grad(x.square().sum(), trained) for x in sides["B"]]
        for mine, wanted in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


def test_bf16_vectors_have_gradients_beside_fp32_pair() -> None:
    adapter = build(r=6)
    for p in adapter.parameters():
        p.data = p.data.bfloat16()
    for slot in SLOTS:
        blocks, (_, B) = adapter.blocks(slot), adapter.factors(slot)
        assembled = assemble(blocks.B, length=slot.out_features, dtype=torch.float32, side="B")
        trained = adapter.d[slot.key], adapter.b[slot.key]
        gradients = [torch.autograd.grad(x.square().sum(), trained) for x in (assembled, B)]
        for mine, wanted in zip(*gradients, strict=True):
            assert mine.dtype == torch.bfloat16
            torch.testing.assert_close(mine, wanted, rtol=1e-2, atol=1e-2)


def test_starts_with_given_d_and_zero_b() -> None:
    adapter = VeRAConfig(r=6, d_initial=0.25).build(SLOTS)
    assert all(torch.equal(d, torch.full((6,), 0.25)) for d in adapter.d.values())
    assert not any(b.any() for b in adapter.b.values())


def test_random_pair_comes_from_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = VeRAConfig(r=64, seed=3).build(SLOTS)
    torch.manual_seed(2)
    same, other = VeRAConfig(r=64, seed=3).build(SLOTS), VeRAConfig(r=64, seed=4).build(SLOTS)

    assert torch.equal(first.A, same.A)
    assert torch.equal(first.B, same.B)
    assert not torch.equal(first.A, other.A)
    for random, columns in ((first.A, 11), (first.B, 64)):
        bound = (6 / columns) ** 0.5
        assert 0.95 * bound < random.abs().max() <= bound
        assert random.mean().abs() < 0.1 * bound
    assert {name for name, _ in first.named_parameters()} & {"A", "B"} == set()


def test_random_pair_is_equal_on_every_machine() -> None:
    digest = bytes(VeRAConfig(r=64, seed=3).build(SLOTS).checksum.tolist()).hex()
    assert digest.startswith("82a79ed273a7e702")


def test_random_pair_is_never_saved(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    adapter = attach(tiny_model("llama"), VeRAConfig(r=512))
    save_adapter(adapter, tmp_path)

    tensors = load_file(tmp_path / WEIGHTS)
    assert {"A", "B"} & (set(tensors) | set(adapter.state_dict())) == set()
    assert (tmp_path / WEIGHTS).stat().st_size < 4 * adapter.num_parameters() * 1.01 + 128 * len(tensors)


def test_adapter_of_another_random_pair_is_refused(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    adapter = attach(tiny_model("llama"), VeRAConfig(r=4, seed=5))
    randomise(adapter)
    save_adapter(adapter, tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["checksum"][7] ^= 1
    save_file(tensors, tmp_path / WEIGHTS, metadata=metadata)

    with pytest.raises(UserError, match="random matrices of seed 5 are not those"):
        load_adapter(tiny_model("llama"), tmp_path)


def test_checkpoint_of_another_random_pair_is_refused() -> None:
    other = VeRAConfig(r=4, seed=2).build(SLOTS)
    adapter = VeRAConfig(r=4, seed=1).build(SLOTS)
    adapter.load_state_dict(other.state_dict())

    with pytest.raises(UserError, match="random matrices of seed 1"):
        adapter.refresh()  # as training does when it starts


@pytest.mark.parametrize(
    ("options", "match"), [({"r": 0}, "r is 0"), ({"d_initial": 0.0}, "never moves")], ids=["r", "d_initial"]
)
def test_wrong_options_are_refused(options: dict[str, float], match: str) -> None:
    with pytest.raises(UserError, match=match):
        VeRAConfig(**options)
