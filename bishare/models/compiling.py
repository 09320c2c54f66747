"""Compiles the normalisation layers of a model with packs and adapters: nothing else gains from fusion.

Compiling a whole layer was tried. The compiler cuts the layer into a dozen pieces, at the adapted weights and at the
attention, and compiles anew for the documents of every pack. A product is a single autograd node already. A norm is the
same code in every layer, for any number of tokens, so a single compilation serves the model. The module is compiled in
place and keeps its name in the model and in the state dict.
"""

import os
import shutil

import torch
from torch import nn

from bishare.errors import UserError


def check_compiler(device: torch.device) -> None:
    """Raise a UserError on a CPU without a C++ compiler; for GPUs torch brings a compiler."""
    compiler = os.environ.get("CXX", "g++")  # torch's own choice
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(f"model.compile is on, but there is no C++ compiler {compiler}; install it, or set CXX to one.")


def compile_norms(model: nn.Module) -> None:
    """Compile every module whose only parameters are vectors, when the module first runs."""
    for module in model.modules():
        parameters = list(module.parameters())
        if not list(module.children()) and parameters and all(p.dim() == 1 for p in parameters):
            module.compile(dynamic=True)  # packs differ in length
