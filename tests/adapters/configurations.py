"""A configuration of every method and form."""

from collections.abc import Callable

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vblora import VBLoRAConfig
from bishare.adapters.vera import VeRAConfig

SIZE = 12  # divides none of the tiny models' widths: 16, 32, 56, 96


def bishare(transform: str, *, ranks: tuple[int, int, int] = (2, 3, 4), **options: object) -> BiShareConfig:
    r_local, r_intra, r_inter = ranks
    return BiShareConfig(transform=transform, r_local=r_local, r_intra=r_intra, r_inter=r_inter, size=SIZE, **options)


CONFIGS: dict[str, Callable[[], AdapterConfig]] = {
    "lora": lambda: LoRAConfig(r=3),
    "lora-rslora": lambda: LoRAConfig(r=4, scaling="rslora"),
    "slice-center": lambda: bishare("slice"),
    "slice-top-left": lambda: bishare("slice", position="top-left"),
    "slice-bottom-right": lambda: bishare("slice", position="bottom-right"),
    "slice-no-local": lambda: bishare("slice", ranks=(0, 3, 4)),
    "gate": lambda: bishare("gate"),
    "gate-no-intra": lambda: bishare("gate", ranks=(2, 0, 4), fit_init="ones"),
    "kronecker": lambda: bishare("kronecker", kernel="shared"),
    "kronecker-no-inter": lambda: bishare("kronecker", ranks=(2, 3, 0), fit_init="kaiming_normal"),
    "kronecker-per_rank": lambda: bishare("kronecker", kernel="per_rank"),
    "kronecker-r_1": lambda: bishare("kronecker", kernel="r_1"),
    "kronecker-1_r": lambda: bishare("kronecker", kernel="1_r"),
    "kronecker-r_2": lambda: bishare("kronecker", kernel="r_2"),
    "kronecker-2_r": lambda: bishare("kronecker", kernel="2_r"),
    "aslora": lambda: ASLoRAConfig(r=3),
    "slice-merging": lambda: bishare("slice", merging=True),
    "gate-merging": lambda: bishare("gate", merging=True),
    "kronecker-merging": lambda: bishare("kronecker", merging=True),
    "vera": lambda: VeRAConfig(r=5),
    "vblora": lambda: VBLoRAConfig(r=3, num_vectors=7, vector_length=4),
}


ARCHITECTURES = ["llama", "gpt2", "bert"]
