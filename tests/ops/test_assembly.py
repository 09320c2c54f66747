"""Factors that are assembled together are those assembled one by one, and these those of the definition."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bishare.ops.assembly import Block, assemble, assemble_each, rank, stack_blocks

LENGTH = 11
Layers = list[list[Block]]


def parameter(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def layers(form: str, sharing: str) -> Layers:
    """Blocks of five layers: a pair's own matrix over a fitted one, of which no, some or all layers have the same."""
    torch.manual_seed(0)
    width, rows, kernel, start = {
        "stored": (LENGTH, 3, None, 0),
        "window": (16, 3, None, 2),
        "one row": (4, 3, (1, 3), 0),  # 12 columns, the last is cut
        "several rows": (4, 3, (2, 3), 0),
        "per rank": (4, 3, (3, 3), 0),
        "one copy, cut": (16, 3, (1, 1), 0),
    }[form]
    matrices = [parameter(rows, width) for _ in range(5)]
    which = {"none": [0, 1, 2, 3, 4], "some": [0, 1, 0, 0, 1], "all": [2, 2, 2, 2, 2]}[sharing]
    return [
        [
            Block(parameter(2, LENGTH)),
            Block(matrices[i], None if kernel is None else parameter(*kernel), start, form == "per rank"),
        ]
        for i in which
    ]


def defined(blocks: Sequence[Block], scale: float) -> Tensor:
    """The factor [r, n], row by row."""
    rows = []
    for shared, kernel, start, per_rank in blocks:
        if kernel is None:
            rows.append(shared[:, start : start + LENGTH])
        elif per_rank:
            rows += [torch.kron(k[None], s[None])[:, :LENGTH] for k, s in zip(kernel, shared, strict=True)]
        else:
            rows.append(torch.kron(kernel, shared)[:, :LENGTH])
    return scale * torch.cat(rows)


def gradients(factors: Sequence[Tensor], of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(factors, of, [torch.randn_like(factor) for factor in factors])


def tensors(of_layers: Layers) -> list[Tensor]:
    every = [t for blocks in of_layers for block in blocks for t in block[:2] if t is not None]
    return list({id(t): t for t in every}.values())


@pytest.mark.parametrize("sharing", ["none", "some", "all"])
@pytest.mark.parametrize("form", ["stored", "window", "one row", "several rows", "per rank", "one copy, cut"])
def test_factors_and_gradients_follow_the_definition(form: str, sharing: str) -> None:
    of_layers = layers(form, sharing)
    found = assemble_each(of_layers, length=LENGTH, dtype=torch.float64, scale=1.5, side="A")
    wanted = [defined(blocks, 1.5) for blocks in of_layers]
    torch.testing.assert_close(found, tuple(wanted), rtol=1e-12, atol=1e-12)
    of = tensors(of_layers)
    torch.testing.assert_close(gradients(found, of), gradients(wanted, of), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharing", ["none", "some", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_of_b_equal_separate_assembly_bitwise(sharing: str, dtype: torch.dtype) -> None:
    stored = layers("one row", sharing)
    turned = [
        [b._replace(shared=b.shared.T.float(), kernel=None if b.kernel is None else b.kernel.T.float()) for b in f]
        for f in stored
    ]
    options: dict[str, Any] = {"length": LENGTH, "dtype": dtype, "scale": 2.0, "side": "B"}
    together = assemble_each(turned, **options)
    alone = [assemble(blocks, **options) for blocks in turned]
    for found, wanted in zip(together, alone, strict=True):
        assert found.dtype == dtype
        assert torch.equal(found, wanted)
    assert len(together[0]) == rank(stored[0])
    of = tensors(stored)
    for found, wanted in zip(gradients(together, of), gradients(alone, of), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_unread_factor_has_zero_gradient() -> None:
    of_layers = layers("one row", "all")
    factors = assemble_each(of_layers, length=LENGTH, dtype=torch.float64, side="A")
    own, unread = of_layers[1][0].shared, of_layers[3][0].shared
    read, none = torch.autograd.grad(factors[1].sum(), [own, unread])
    assert torch.equal(read, torch.ones_like(read))
    assert torch.equal(none, torch.zeros_like(none))


def test_stack_holds_each_shared_block_once() -> None:
    own, window = [Block(parameter(2, LENGTH)) for _ in range(3)], Block(parameter(4, 16), start=2)
    moved, fitted = window._replace(start=1), window._replace(kernel=parameter(1, 1))

    stack, rows = stack_blocks([[own[0], window], [own[1], window], [window, own[2]], [moved, fitted]])

    assert [id(block) for block in stack] == [id(b) for b in (own[0], window, own[1], own[2], moved, fitted)]
    assert rows == [((0, 6),), ((6, 8), (2, 6)), ((2, 6), (8, 10)), ((10, 18),)]
