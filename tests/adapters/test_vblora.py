import pytest
import torch
from torch import nn

from bishare.adapters.factors import Slot
from bishare.adapters.vblora import VBLoRA, VBLoRAConfig
from bishare.errors import UserError
from bishare.training.optimization import parameter_groups
from tests.reference.baselines_reference import vblora_update

SLOTS = [
    Slot(name=f"blocks.{layer}.{kind}", layer=layer, kind=kind, in_features=num_in, out_features=num_out)
    for layer in (0, 1)
    for kind, num_in, num_out in (("q", 8, 8), ("k", 8, 4), ("up", 8, 12), ("down", 12, 8))
]


def build(**options: object) -> VBLoRA:
    torch.manual_seed(0)
    adapter = VBLoRAConfig(**options).build(SLOTS)
    for p in adapter.parameters():
        nn.init.normal_(p)
    return adapter


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_update_is_that_of_the_equations(top_k: int, scale: float) -> None:
    adapter = build(r=3, num_vectors=5, vector_length=4, top_k=top_k, scale=scale).double()
    for slot in SLOTS:
        A, B = adapter.factors(slot)
        assert (A.shape, B.shape) == ((3, slot.in_features), (slot.out_features, 3))
        logits = adapter.logits_A[slot.key], adapter.logits_B[slot.key]
        expected = scale * vblora_update(*logits, adapter.bank, top_k=top_k)
        torch.testing.assert_close(B @ A, expected, rtol=0, atol=1e-10)


def test_chosen_logits_of_one_bank_get_gradients() -> None:
    adapter = build(r=3, num_vectors=5, vector_length=4)
    for slot in SLOTS:
        A, B = adapter.factors(slot)
        logits = adapter.logits_A[slot.key]
        of_bank, of_logits = torch.autograd.grad((B @ A).square().sum(), [adapter.bank, logits])
        assert of_bank.any()
        assert (of_logits != 0).sum(-1).eq(2).all()


def test_starts_as_published_beside_the_base() -> None:
    torch.manual_seed(0)
    adapter = VBLoRAConfig().build(SLOTS)

    assert not VBLoRA.starts_as_noop
    assert 0.019 < adapter.bank.abs().max() <= 0.02
    logits = torch.cat([p.detach().flatten() for p in adapter.logits_A.values()])
    assert logits.std() == pytest.approx(0.1, rel=0.05)
    A, B = adapter.factors(SLOTS[0])
    assert (B @ A).any()


@pytest.mark.parametrize(("sizes", "length"), [((8, 12), 4), ((4096, 11008), 256), ((576, 192), 192), ((7, 5), 1)])
def test_default_length_is_the_greatest_that_fits(sizes: tuple[int, int], length: int) -> None:
    slots = [Slot(name="x", layer=0, kind="q", in_features=sizes[0], out_features=sizes[1])]
    with torch.device("meta"):
        assert VBLoRAConfig().build(slots).bank.shape == (90, length)


def test_published_learning_rates_are_role_factors() -> None:
    groups = parameter_groups(VBLoRAConfig().build(SLOTS), learning_rate=0.01, lr_factors={"bank": 0.1})
    assert {group["name"]: group["lr"] for group in groups} == {"inter.bank": 0.001, "local.logits": 0.01}


def test_length_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"vector_length is 8.*blocks\.0\.k \(4 x 8\); try 4\."):
        VBLoRAConfig(vector_length=8).build(SLOTS)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"r": 0}, "r is 0"),
        ({"vector_length": 0}, "vector_length is 0"),
        ({"top_k": 6, "num_vectors": 5}, "top_k is 6"),
    ],
    ids=lambda value: str(value),
)
def test_wrong_options_are_refused(options: dict[str, int], match: str) -> None:
    with pytest.raises(UserError, match=match):
        VBLoRAConfig(**options)
