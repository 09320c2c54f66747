"""The logged norm is that of the whole optimizer step's gradient, as it was before clipping."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.plugins import MixedPrecision

from bishare.training.loss import token_loss
from bishare.training.module import BiShareModule
from callbacks import GradientNorm


@pytest.fixture
def first_norm(tiny_module: Callable[..., BiShareModule], tiny_data: Any) -> float:
    """Norm of the first step's gradient, from the mean loss of two micro-batches."""
    module = tiny_module()
    module.configure_model()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    batches = list(tiny_data.train_dataloader())[:2]
    loss = sum(token_loss(module.model, batch).mean() for batch in batches) / 2
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return sum(float((gradient**2).sum()) for gradient in gradients if gradient is not None) ** 0.5


@pytest.mark.parametrize(
    "clipping",
    [{}, {"gradient_clip_val": 1e-3}, {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"}],
    ids=["no clipping", "by norm", "by value"],
)
def test_norm_is_that_before_clipping(
    clipping: dict[str, Any],
    first_norm: float,
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    scalars: Callable[[str], dict[int, float]],
) -> None:
    assert first_norm > 1e-2
    tiny_trainer(GradientNorm(), **clipping).fit(tiny_module(), tiny_data)
    logged = scalars("train/grad_norm")
    assert list(logged) == [0, 1, 2, 3, 4, 5]
    assert logged[0] == pytest.approx(first_norm, rel=1e-5)


def test_loss_scale_of_fp16_is_taken_out(
    first_norm: float,
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    scalars: Callable[[str], dict[int, float]],
) -> None:
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
    tiny_trainer(GradientNorm(), plugins=[precision]).fit(tiny_module(), tiny_data)
    assert scalars("train/grad_norm")[0] == pytest.approx(first_norm, rel=0.05)
