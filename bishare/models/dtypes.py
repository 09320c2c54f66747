"""The type of the frozen weights: the meaning of ``auto``, and types multiplied slowly by a processor."""

from typing import Literal

import torch

Dtype = Literal["bfloat16", "float16", "float32"]
DtypeChoice = Literal["auto", "bfloat16", "float16", "float32"]


def base_type(choice: DtypeChoice, device_type: str) -> Dtype:
    """The chosen type; for ``auto`` bfloat16, but float32 on processors with slow bfloat16 products."""
    if choice != "auto":
        return choice
    return "float32" if is_slow("bfloat16", device_type) else "bfloat16"


def is_slow(dtype: Dtype, device_type: str) -> bool:
    """Whether a product in this type takes many times as long as in float32.

    A processor without instructions for the type, e.g. without AVX-512, took 30 times as long (torch 2.13, AMD Milan).
    """
    if device_type != "cpu" or dtype == "float32":
        return False
    name = "_is_mkldnn_bf16_supported" if dtype == "bfloat16" else "_is_mkldnn_fp16_supported"
    # torch multiplies half precision through oneDNN, or else number by number.
    return not (torch._C._has_mkldnn and getattr(torch.ops.mkldnn, name)())
