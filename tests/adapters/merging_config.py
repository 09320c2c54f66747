"""Bi-Share LoRA with merging, on widths that the size does not divide."""

from bishare.adapters.bishare import BiShareConfig

SIZE = 12  # divides none of the tiny Llama's widths


def merging(transform: str, **options: object) -> BiShareConfig:
    ranks = {"r_local": 2, "r_intra": 3, "r_inter": 4}
    return BiShareConfig(**({"transform": transform, "size": SIZE, "merging": True} | ranks | options))
