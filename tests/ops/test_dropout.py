"""Masks of dropout: how often, how independent, and what they do to values and gradients."""

import pytest
import torch

from bishare.ops.dropout import draw_keep, dropped
from bishare.ops.lora_linear import Frozen, LowRank, lora_linear, sibling_lora_linear

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_values_drop_with_the_given_probability(p: float) -> None:
    torch.manual_seed(0)
    keep = draw_keep((1000, 1001), p, CPU)
    deviation = (p * (1 - p) / keep.mask.numel()) ** 0.5
    assert abs(1 - keep.mask.double().mean().item() - p) < 4 * deviation + 2**-17
    assert keep.factor == pytest.approx(1 / (1 - p), rel=2**-16 / (1 - p))


@pytest.mark.parametrize(("p", "kept"), [(2**-18, 1.0), (1 - 2**-18, 2**-16)])
def test_extreme_probabilities_keep_all_or_nearly_none(p: float, kept: float) -> None:
    torch.manual_seed(0)
    keep = draw_keep((1000, 1000), p, CPU)
    assert keep.factor == 1 / kept
    assert keep.mask.double().mean().item() == pytest.approx(kept, abs=1e-5)


def test_empty_input_has_an_empty_mask() -> None:
    assert draw_keep((0, 7), 0.5, CPU).mask.shape == (0, 7)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    mask = draw_keep((4000, 500), 0.3, CPU).mask.double().flatten() - 0.7
    for distance in (1, 2, 3, 4, 5, 500):
        correlation = (mask[:-distance] * mask[distance:]).mean() / (0.3 * 0.7)
        assert abs(correlation.item()) < 4 / len(mask) ** 0.5


def test_mask_follows_the_seed() -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(draw_keep((3, 7), 0.5, CPU).mask)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_kept_values_keep_their_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 9).to(dtype)
    mask = draw_keep((5, 9), 0.5, CPU).mask
    assert torch.equal(dropped(x, mask), torch.where(mask, x, torch.zeros_like(x)))


def test_value_and_gradients_follow_the_equations() -> None:
    torch.manual_seed(0)
    x, A, B1, B2 = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 5), (3, 5), (2, 4), (1, 7))
    )
    W1, W2 = torch.randn(4, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    keep = draw_keep(x.shape, 0.4, CPU)

    y1, h = lora_linear(x, Frozen(W1, None, False), LowRank(A, B1, rows=((0, 2),)), keep=keep, dtype=x.dtype)
    y2 = sibling_lora_linear(x, h, Frozen(W2, None, False), B2, ((2, 3),), dtype=x.dtype)
    read = x * keep.mask * keep.factor
    wanted = x @ W1.T + read @ A[:2].T @ B1, x @ W2.T + read @ A[2:].T @ B2

    for leaves in ((y1, y2), (y1,), (y2,)):
        got = torch.autograd.grad(
            [y.square().sum() for y in leaves], (x, A, B1, B2), retain_graph=True, allow_unused=True
        )
        same = [w for y, w in zip((y1, y2), wanted, strict=True) if any(y is leaf for leaf in leaves)]
        right = torch.autograd.grad(
            [w.square().sum() for w in same], (x, A, B1, B2), retain_graph=True, allow_unused=True
        )
        for a, b, name in zip(got, right, ("x", "A", "B1", "B2"), strict=True):
            assert (a is None) == (b is None), name
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((y1, y2), wanted, rtol=1e-12, atol=1e-12)
