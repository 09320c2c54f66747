"""Compiles what a compiler can fuse in a model of packs and adapters: its normalisation layers.

A whole layer was tried: it is cut into a dozen pieces at the adapted weights and at the attention, whose documents
differ from pack to pack, and is compiled anew with every pack. The products are one autograd node each already. A norm
is the same code in every layer and takes any number of tokens, so that one compilation serves the model. The module is
compiled where it stands: it keeps its name in the model and in the state dict.
"""

import os
import shutil

import torch
from torch import nn

from bishare.errors import UserError


def check_compiler(device: torch.device) -> None:
    """Raise a UserError on the CPU without a C++ compiler; for GPUs torch brings its own."""
    compiler = os.environ.get("CXX", "g++")  # as torch looks for it
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(f"model.compile is on, but there is no C++ compiler {compiler}; install it, or set CXX to one.")


def compile_norms(model: nn.Module) -> None:
    """Let every module whose only parameters are vectors be compiled when it first runs."""
    for module in model.modules():
        parameters = list(module.parameters())
        if not list(module.children()) and parameters and all(p.dim() == 1 for p in parameters):
            module.compile(dynamic=True)  # packs differ in length
