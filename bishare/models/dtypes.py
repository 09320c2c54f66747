"""The type of the frozen weights: which one ``auto`` stands for, and which ones a processor multiplies slowly."""

from typing import Literal

import torch

Dtype = Literal["bfloat16", "float16", "float32"]
Asked = Literal["auto", "bfloat16", "float16", "float32"]


def base_type(asked: Asked, device_type: str) -> Dtype:
    """The type that was asked for; for ``auto`` bfloat16, but float32 on processors that multiply bfloat16 slowly."""
    if asked != "auto":
        return asked
    return "float32" if is_slow("bfloat16", device_type) else "bfloat16"


def is_slow(dtype: Dtype, device_type: str) -> bool:
    """Whether a product in this type takes many times as long as in float32.

    A processor without instructions for it, such as one without AVX-512, took 30 times as long (torch 2.13, AMD Milan).
    """
    if device_type != "cpu" or dtype == "float32":
        return False
    name = "_is_mkldnn_bf16_supported" if dtype == "bfloat16" else "_is_mkldnn_fp16_supported"
    return not (torch._C._has_mkldnn and getattr(torch.ops.mkldnn, name)())
