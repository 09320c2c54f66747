"""Updates as whole matrices, and a model's logits."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bishare.adapters.factors import Factors


def logits(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


def dense_update(factors: Factors) -> Tensor:
    return factors.B.double() @ factors.A.double()
