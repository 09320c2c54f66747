"""ASLoRA before any merge: who shares what, its start and its counts."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, RobertaConfig, RobertaModel

from bishare.adapters.aslora import ASLoRA, ASLoRAConfig
from bishare.errors import UserError
from bishare.models.attach import attach


def test_one_a_per_kind_one_b_per_weight(tiny_model: Callable[..., PreTrainedModel]) -> None:
    adapter = attach(tiny_model("llama"), ASLoRAConfig(r=3, alpha=6.0))
    assert isinstance(adapter, ASLoRA)
    assert set(adapter.local.A) == {"q", "k", "v", "up", "down"}
    for slot in adapter.slots:
        with torch.no_grad():
            adapter.local.B[slot.key].normal_()
        A, B = adapter.factors(slot)
        assert torch.equal(A, adapter.local.A[slot.kind])
        assert torch.equal(B, adapter.local.B[slot.key] * 2.0)  # alpha / r


def test_a_is_gaussian_and_b_zero() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=4096, num_hidden_layers=2, vocab_size=8))
    adapter = attach(model, ASLoRAConfig(r=64, targets=["q"])).to_empty(device="cpu")
    assert isinstance(adapter, ASLoRA)
    torch.manual_seed(0)
    adapter.reset_parameters()

    A = adapter.local.A["q"] * (3 * 4096) ** 0.5
    assert A.var().item() == pytest.approx(1, rel=0.02)
    assert A.pow(4).mean().item() == pytest.approx(3, rel=0.03)  # a uniform one has 1.8
    assert not any(B.any() for B in adapter.local.B.values())


def test_equally_wide_kinds_share_one_a(tiny_model: Callable[..., PreTrainedModel]) -> None:
    adapter = attach(tiny_model("llama"), ASLoRAConfig(r=3, a_scope="global", targets=["q", "k", "v", "up"]))
    assert isinstance(adapter, ASLoRA)
    assert len({adapter.factors(slot).A.data_ptr() for slot in adapter.slots}) == 1
    assert {group.shared_a().data_ptr() for group in adapter.mergeable_groups().values()} == {
        adapter.local.A["all"].data_ptr()
    }
    with pytest.raises(UserError, match=r"q 32, k 32, v 32, up 32, down 56"):
        attach(tiny_model("llama"), ASLoRAConfig(r=3, a_scope="global"))


def test_kinds_of_several_shapes_are_refused(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.q_proj = torch.nn.Linear(32, 40)

    with pytest.raises(UserError, match=r"q is 32 x 32 in layer 0 and 40 x 32 in layer 1"):
        attach(model, ASLoRAConfig(r=3))


@pytest.mark.parametrize(("a_scope", "fraction"), [("per_kind", 73_728), ("global", 67_584)])
def test_published_merges_leave_the_published_counts(a_scope: str, fraction: int) -> None:
    with torch.device("meta"):
        model = RobertaModel(RobertaConfig())
    adapter = attach(model, ASLoRAConfig(r=8, targets=["q", "v"], a_scope=a_scope))
    for group in adapter.mergeable_groups().values():
        for lower in range(7):
            group.tie(lower, lower + 1)

    assert adapter.num_parameters() == fraction


def test_rank_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="r is 0"):
        ASLoRAConfig(r=0)
