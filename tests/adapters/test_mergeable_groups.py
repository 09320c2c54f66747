"""Merging is real sharing: one storage, summed gradients, fewer parameters; and it survives saving and loading."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.factors import Slot
from bishare.adapters.mergeable_groups import MergeableGroup
from bishare.models.attach import adapter_of, attach, load_adapter, merge, remove, unmerge
from tests.adapters.merging_config import merging
from tests.randomised import randomise

LOCAL = ["local.q", "local.k", "local.v", "local.up", "local.down"]


CONFIGS: dict[str, tuple[Callable[[], AdapterConfig], list[str]]] = {
    "aslora": (lambda: ASLoRAConfig(r=3), LOCAL),
    "slice": (lambda: merging("slice"), [*LOCAL, "intra"]),
    "gate": (lambda: merging("gate"), LOCAL),
    "kronecker": (lambda: merging("kronecker"), [*LOCAL, "intra"]),
    "kronecker-per_rank": (lambda: merging("kronecker", kernel="per_rank"), [*LOCAL, "intra"]),
}


@pytest.fixture(params=CONFIGS)
def names(request: pytest.FixtureRequest) -> list[str]:
    """The groups that the method must have; ``model`` carries the method."""
    return CONFIGS[request.param][1]


@pytest.fixture
def model(
    request: pytest.FixtureRequest, tiny_model: Callable[..., PreTrainedModel], names: list[str]
) -> PreTrainedModel:
    """A Llama of three layers with a randomised adapter."""
    adapted = tiny_model("llama")
    randomise(attach(adapted, CONFIGS[request.node.callspec.params["names"]][0]()))
    return adapted


def member(adapter: Adapter, group: MergeableGroup, layer: int) -> torch.nn.Parameter:
    return group.members()[group.layers.index(layer)]


def backward(model: PreTrainedModel, token_ids: Tensor) -> None:
    model.zero_grad()
    (model(input_ids=token_ids, labels=token_ids).loss + adapter_of(model).zero_of_dead()).backward()


def weigh(adapter: Adapter, slot: Slot) -> Tensor:
    """A sum over the slot's update whose gradient reaches every parameter that it reads."""
    A, B = adapter.factors(slot)
    weights = torch.linspace(-1, 1, slot.out_features * slot.in_features).view(slot.out_features, slot.in_features)
    return (B @ A * weights).sum()


def test_groups_are_layers_that_read_one_a(model: PreTrainedModel, names: list[str]) -> None:
    groups = adapter_of(model).mergeable_groups()

    assert list(groups) == names
    for group in groups.values():
        assert group.layers == (0, 1, 2)
        assert len({p.data_ptr() for p in group.members()}) == 3
        assert all(p.shape == group.shape for p in group.members())
        assert group.shared_a().shape[0] == group.shape[1]


def test_a_merge_is_real_sharing(model: PreTrainedModel, names: list[str], token_ids: Tensor) -> None:
    adapter = adapter_of(model)
    values = {name: p.detach().clone() for name, p in adapter.named_parameters()}
    for name in names:
        group = adapter.mergeable_groups()[name]
        before, live = adapter.num_parameters(), set(adapter.live_parameters())
        read = [slot for slot in adapter.slots if name in ("intra", f"local.{slot.kind}")]
        lower, upper = member(adapter, group, 0), member(adapter, group, 2)

        group.tie(0, 2)

        assert before - adapter.num_parameters() == lower.numel() == group.shape[0] * group.shape[1]
        assert len(live - set(adapter.live_parameters())) == 1
        of_layer = {}
        for layer in (0, 1, 2):
            total = sum(weigh(adapter, slot) for slot in read if slot.layer == layer)
            gradients = torch.autograd.grad(total, group.members(), allow_unused=True)
            of_layer[layer] = {
                p.data_ptr(): g for p, g in zip(group.members(), gradients, strict=True) if g is not None
            }
        assert set(of_layer[0]) == set(of_layer[2]) == {upper.data_ptr()}
        assert set(of_layer[1]) == {member(adapter, group, 1).data_ptr()}
        together = torch.autograd.grad(sum(weigh(adapter, slot) for slot in read), upper)[0]
        assert of_layer[0][upper.data_ptr()].abs().max() > 1e-3
        torch.testing.assert_close(together, of_layer[0][upper.data_ptr()] + of_layer[2][upper.data_ptr()])
    assert all(torch.equal(p, values[name]) for name, p in adapter.named_parameters())  # no value was written


def test_both_layers_use_the_upper_b(model: PreTrainedModel, names: list[str], token_ids: Tensor) -> None:
    adapter = adapter_of(model)
    copied = copy.deepcopy(model)
    for name, group in adapter.mergeable_groups().items():
        group.tie(0, 1)
        twin = adapter_of(copied).mergeable_groups()[name]
        with torch.no_grad():
            member(adapter_of(copied), twin, 0).copy_(member(adapter_of(copied), twin, 1))

    assert torch.equal(model(input_ids=token_ids).logits, copied(input_ids=token_ids).logits)
    assert adapter_of(copied).dead_parameters() == []


def test_dead_parameters_get_zero_gradients(model: PreTrainedModel, names: list[str], token_ids: Tensor) -> None:
    adapter = adapter_of(model)
    for group in adapter.mergeable_groups().values():
        group.tie(1, 2)
    loss = model(input_ids=token_ids, labels=token_ids).loss
    for p in adapter.dead_parameters():
        p.data.fill_(float("nan"))

    backward(model, token_ids)

    assert len(adapter.dead_parameters()) == len(names)
    for p in adapter.dead_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, torch.zeros_like(p))
    assert torch.equal(loss + adapter.zero_of_dead(), loss)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.live_parameters().values())
    values = [value for group in adapter.mergeable_groups().values() for value in group.compared(group.sources())]
    assert all(value.isfinite().all() for value in values)


def test_chains_go_to_the_root_owner(model: PreTrainedModel, names: list[str]) -> None:
    adapter = adapter_of(model)
    group = adapter.mergeable_groups()[names[0]]

    group.tie(0, 1)
    group.tie(1, 2)

    assert group.owners == (2, 2, 2)
    assert group.owner.tolist() == [2, 2, 2]
    assert group.live == [2]
    assert group.num_merges == 2


def test_running_means_hold_all_steps_exactly(model: PreTrainedModel, names: list[str]) -> None:
    adapter = adapter_of(model)
    group = adapter.mergeable_groups()[names[-1]]
    generator = torch.Generator().manual_seed(0)
    seen: list[list[Tensor]] = []
    for step in range(1, 31):
        for p in adapter.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
        compared = dict(zip(group.live, group.compared(group.sources()), strict=True))
        seen.append([compared[i].double().clone() if i in compared else torch.zeros(()) for i in range(3)])
        group.observe(group.sources())
        if step == 20:
            frozen = group.mean[0].clone()
            group.tie(0, 1)

    assert group.steps == group.num_steps.item() == 30
    for i in (1, 2):
        expected = sum(values[i] for values in seen) / 30
        torch.testing.assert_close(group.mean[i].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(group.mean[0], frozen)
    assert group.mean.dtype == torch.float32


def test_checkpoint_restores_owners_and_means(model: PreTrainedModel, names: list[str], token_ids: Tensor) -> None:
    adapter = adapter_of(model)
    fresh = copy.deepcopy(model)
    for group in adapter.mergeable_groups().values():
        group.observe(group.sources())
        group.tie(0, 2)
    state = {name: value for name, value in model.state_dict().items() if name.startswith("bishare.")}

    for assign in (False, True):
        loaded = copy.deepcopy(fresh)
        loaded.load_state_dict(state, strict=False, assign=assign)

        for group in adapter_of(loaded).mergeable_groups().values():
            saved = adapter.mergeable_groups()[group.name]
            assert group.owners == (2, 1, 2)
            assert group.steps == 1
            assert torch.equal(group.mean, saved.mean)
        assert torch.equal(loaded(input_ids=token_ids).logits, model(input_ids=token_ids).logits)
        assert set(adapter_of(loaded).live_parameters()) == set(adapter.live_parameters())


def test_adapter_file_keeps_owners_and_live_tensors(
    model: PreTrainedModel,
    names: list[str],
    token_ids: Tensor,
    tiny_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
) -> None:
    adapter = adapter_of(model)
    for group in adapter.mergeable_groups().values():
        group.observe(group.sources())
        group.tie(0, 2)

    save_adapter(adapter, tmp_path)

    tensors = load_file(tmp_path / "adapter_model.safetensors")
    owners = {name for name in tensors if name.endswith(".owner")}
    assert len(owners) == len(names)
    assert set(tensors) - owners == set(adapter.live_parameters())
    pristine = tiny_model("llama")
    loaded = load_adapter(pristine, tmp_path)
    assert loaded.num_parameters() == adapter.num_parameters()
    assert all(group.owners == (2, 1, 2) for group in loaded.mergeable_groups().values())
    assert torch.equal(pristine(input_ids=token_ids).logits, model(input_ids=token_ids).logits)


def test_merged_layers_go_into_the_base_and_back(
    model: PreTrainedModel, names: list[str], token_ids: Tensor, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    for group in adapter_of(model).mergeable_groups().values():
        group.tie(0, 1)
    before = model(input_ids=token_ids).logits

    merge(model)
    torch.testing.assert_close(model(input_ids=token_ids).logits, before, rtol=0, atol=1e-5)
    unmerge(model)
    assert torch.equal(model(input_ids=token_ids).logits, before)
    remove(model)
    base = tiny_model("llama").state_dict()
    assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())


def test_starting_over_unties_all_layers(model: PreTrainedModel, names: list[str]) -> None:
    adapter = adapter_of(model)
    for group in adapter.mergeable_groups().values():
        group.observe(group.sources())
        group.tie(0, 1)

    adapter.reset_parameters()

    for group in adapter.mergeable_groups().values():
        assert group.owners == tuple(group.owner.tolist()) == (0, 1, 2)
        assert group.steps == group.num_steps.item() == 0
        assert not group.mean.any()
    assert adapter.dead_parameters() == []
