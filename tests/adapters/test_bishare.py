from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from bishare.adapters.bishare import BiShare, BiShareConfig
from bishare.adapters.factors import Slot
from tests.reference.bishare_reference import (
    bishare_update,
    gate_update,
    kronecker_per_rank_update,
    kronecker_update,
    lora_update,
    slice_update,
)

# Two layers of unequal weights; size 4 divides 8 only.
SLOTS = [
    Slot(name=f"blocks.{layer}.{kind}", layer=layer, kind=kind, in_features=num_in, out_features=num_out)
    for layer in (0, 1)
    for kind, num_in, num_out in (("q", 8, 8), ("k", 8, 3), ("up", 8, 11), ("down", 11, 8))
]
MAX_IN = MAX_OUT = 11
SIZE = 4
RANKS = [(2, 3, 2), (1, 0, 2), (1, 2, 0), (0, 2, 3), (2, 0, 0), (0, 3, 0), (0, 0, 2)]
FITS = [
    *({"transform": "slice", "position": position} for position in ("center", "top-left", "bottom-right")),
    {"transform": "gate", "size": SIZE},
    *(
        {"transform": "kronecker", "size": SIZE, "kernel": kernel}
        for kernel in ("shared", "per_rank", "r_1", "1_r", "r_2", "2_r")
    ),
]


def build(ranks: Sequence[int], **options: object) -> BiShare:
    """An adapter in double precision with every parameter drawn at random, so that nothing is zero."""
    r_local, r_intra, r_inter = ranks
    torch.manual_seed(0)
    adapter = BiShareConfig(r_local=r_local, r_intra=r_intra, r_inter=r_inter, **options).build(SLOTS).double()
    for p in adapter.parameters():
        nn.init.normal_(p)
    return adapter


def fitted(adapter: BiShare, slot: Slot, level: str, name: str) -> Tensor:
    """One shared level of a slot's update by its equation, from the parameters by their names."""
    config, stored = adapter.config, dict(adapter.named_parameters())
    A_s, B_s = stored[f"{level}.A.{name}"], stored[f"{level}.B.{name}"]
    sizes = {"num_in": slot.in_features, "num_out": slot.out_features}
    own = f"{level}_fit.{slot.key}"
    if config.transform == "slice":
        assert A_s.shape[1] == MAX_IN
        assert B_s.shape[0] == MAX_OUT
        return slice_update(A_s, B_s, **sizes, position=config.position)
    assert A_s.shape[1] == B_s.shape[0] == SIZE
    if config.transform == "gate":
        names = {"G_id": "in_down", "G_iu": "in_up", "G_od": "out_down", "G_ou": "out_up"}
        return gate_update(A_s, B_s, **{symbol: stored[f"{own}.{gate}"] for symbol, gate in names.items()})
    reference = kronecker_per_rank_update if config.kernel == "per_rank" else kronecker_update
    return reference(A_s, B_s, K_A=stored[f"{own}.A"], K_B=stored[f"{own}.B"], **sizes)


def expected_update(adapter: BiShare, slot: Slot, scale: float) -> Tensor:
    config, stored = adapter.config, dict(adapter.named_parameters())
    zero = torch.zeros(slot.out_features, slot.in_features, dtype=torch.float64)
    local = zero
    if config.r_local:
        local = lora_update(stored[f"local.A.{slot.key}"], stored[f"local.B.{slot.key}"])
    return bishare_update(
        scale=scale,
        local=local,
        intra=fitted(adapter, slot, "intra", str(slot.layer)) if config.r_intra else zero,
        inter=fitted(adapter, slot, "inter", "all") if config.r_inter else zero,
    )


@pytest.mark.parametrize("ranks", RANKS, ids=str)
@pytest.mark.parametrize("options", FITS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_updates_equal_their_equation_with_gradients(options: dict[str, object], ranks: tuple[int, int, int]) -> None:
    adapter = build(ranks, scale=3.0, **options)
    factors = {slot: adapter.factors(slot) for slot in SLOTS}
    updates = [factors[slot].B @ factors[slot].A for slot in SLOTS]
    expected = [expected_update(adapter, slot, scale=3.0) for slot in SLOTS]
    directions = [torch.randn_like(update) for update in expected]

    torch.testing.assert_close(updates, expected, rtol=0, atol=1e-10)
    # One sum over all weights: the gradient of a shared pair adds up what its weights send back.
    gradients = [
        torch.autograd.grad(sum((u * d).sum() for u, d in zip(us, directions, strict=True)), list(adapter.parameters()))
        for us in (updates, expected)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("ranks", RANKS, ids=str)
def test_levels_of_rank_zero_are_left_out(ranks: tuple[int, int, int]) -> None:
    adapter = build(ranks, transform="slice")

    levels = [level for level, r in zip(("local", "intra", "inter"), ranks, strict=True) if r]
    assert list(adapter.parts(SLOTS[0])) == levels
    assert {name.split(".")[0] for name in adapter.groups()} == set(levels)
    assert all(p.numel() for p in adapter.parameters())
    assert adapter.factors(SLOTS[0]).rank == sum(ranks)


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({"transform": "slice"}, 2 + 3 + 4),
        ({"transform": "gate", "size": SIZE}, 2 + 1 + 1),
        ({"transform": "kronecker", "size": SIZE, "kernel": "1_r"}, 2 + 3 + 4),
        ({"transform": "kronecker", "size": SIZE, "kernel": "r_2"}, 2 + 2 * 3 + 2 * 4),
        ({"transform": "kronecker", "size": SIZE, "kernel": "2_r"}, 2 + 2 * 3 + 2 * 4),
    ],
)
@pytest.mark.parametrize(("scaling", "power"), [("alpha/r", 1.0), ("rslora", 0.5)])
def test_scale_counts_rows_of_the_assembled_a(
    options: dict[str, object], rank: int, scaling: str, power: float
) -> None:
    adapter = build((2, 3, 4), scaling=scaling, alpha=24.0, **options)

    factors = adapter.factors(SLOTS[1])

    assert factors.rank == rank
    expected = expected_update(adapter, SLOTS[1], scale=24.0 / rank**power)
    torch.testing.assert_close(factors.B @ factors.A, expected, rtol=0, atol=1e-10)


def test_fresh_adapter_has_random_a_and_zero_b() -> None:
    torch.manual_seed(0)
    adapter = BiShareConfig(transform="slice").build(SLOTS)

    for name, p in adapter.named_parameters():
        if ".A." in name:
            bound = p.shape[1] ** -0.5  # Kaiming uniform with a = sqrt(5)
            assert p.abs().max() <= bound
            assert p.std().item() == pytest.approx(bound / 3**0.5, rel=0.4)
        else:
            assert not p.any()


@pytest.mark.parametrize("transform", ["slice", "gate", "kronecker"])
def test_same_seed_gives_and_resets_one_adapter(transform: str) -> None:
    first, second = build((2, 3, 4), transform=transform), build((2, 3, 4), transform=transform)
    torch.manual_seed(7)
    first.reset_parameters()
    torch.manual_seed(7)
    second.reset_parameters()

    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_shared_a_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    original = nn.init.kaiming_uniform_

    def counted(weight: Tensor, *args: object, **options: object) -> Tensor:
        drawn.append(id(weight))
        return original(weight, *args, **options)

    adapter = build((2, 3, 4), transform="kronecker")
    monkeypatch.setattr(nn.init, "kaiming_uniform_", counted)
    adapter.reset_parameters()

    assert drawn
    assert len(drawn) == len(set(drawn))


@pytest.mark.parametrize(("transform", "size"), [("gate", 1024), ("kronecker", 256)])
def test_size_is_the_papers_unless_given(transform, size) -> None:
    assert BiShareConfig(transform=transform).shared_size == size
    assert BiShareConfig(transform=transform, size=24).shared_size == 24
