"""Reads and writes partitioned values (DeepSpeed ZeRO, a piece on each process) as whole fp32 tensors.

On a single process and under DDP nothing is partitioned, and the same functions read the parameters themselves. All
functions are collective: every process calls with the same parameters in the same order.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn


@torch.no_grad()
def full_fp32(parameters: Sequence[nn.Parameter], *, state: str | None = None) -> list[Tensor]:
    """The parameters' fp32 values, the same on every process; under ZeRO by a single reduction of a flat buffer.

    Args:
        parameters: All partitioned or none; a trainable parameter gives the fp32 master.
        state: Read this state of the optimizer (``exp_avg``) instead; under ZeRO only.

    Returns:
        Tensors in the parameters' shapes, not to be written to: a plain fp32 parameter is returned itself.
    """
    if not any(is_partitioned(p) for p in parameters):
        assert state is None
        return [p.detach().float() for p in parameters]
    shapes = [full_shape(p) for p in parameters]
    sizes = [shape.numel() for shape in shapes]
    buffer = torch.zeros(sum(sizes), dtype=torch.float32, device=parameters[0].device)
    # Each process fills in its own pieces; the sum of all buffers is the whole.
    flats = torch.split(buffer, sizes)
    for flat, parameter in zip(flats, parameters, strict=True):
        start, piece = _piece(parameter, state)
        flat[start : start + piece.numel()] = piece
    distributed.all_reduce(buffer)
    return [flat.view(shape) for flat, shape in zip(flats, shapes, strict=True)]


@torch.no_grad()
def write_fp32(parameters: Sequence[nn.Parameter], values: Sequence[Tensor], *, state: str | None = None) -> None:
    """Set parameters to whole values [the parameter's shape]: the fp32 masters, and the copies read by forward passes.

    Args:
        parameters: Partitioned or plain.
        values: The same on every process.
        state: Write this state of the optimizer instead; under ZeRO only.
    """
    for parameter, value in zip(parameters, values, strict=True):
        if is_partitioned(parameter):
            start, piece = _piece(parameter, state)
            piece.copy_(value.flatten()[start : start + piece.numel()])
        if state is None:
            _write_live(parameter, value)


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed has taken the parameter over."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def is_gathered_late(module: nn.Module) -> bool:
    """Whether ZeRO-3 partitions the module's parameters and gathers the whole for each forward pass."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the whole parameter; under ZeRO-3 the tensor itself may be empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def whole_parameters() -> Iterator[None]:
    """Modules created inside the context are initialised whole, even where ZeRO-3 partitions every new module.

    DeepSpeed partitions the parameters later, with the setup of the engine.
    """
    if "deepspeed" not in sys.modules:
        yield
        return
    from deepspeed.runtime.zero import partition_parameters

    partition_parameters.shutdown_init_context()
    try:
        yield
    finally:
        partition_parameters.restore_init_context()


def _piece(parameter: nn.Parameter, state: str | None) -> tuple[int, Tensor]:
    """This process's piece of a flattened parameter: the start, and a view of the master or the state."""
    if not hasattr(parameter, "ds_id"):  # ZeRO-1 and 2, where a piece may end inside a parameter
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, parameter.detach().flatten()[:0]
        return mapping.lp_fragment_address.start, mapping.get_hp_fragment(state)
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if not (parameter.requires_grad and hasattr(parameter, "_z3_optimizer")):
        # A frozen parameter has no master.
        piece: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
    elif state is None:
        piece = safe_get_local_fp32_param(parameter)
    else:
        piece = safe_get_local_optimizer_state(parameter, state)
    start, size = _share(parameter)
    return start, piece.flatten()[:size]


def _share(parameter: nn.Parameter) -> tuple[int, int]:
    """Start and size of this process's piece under ZeRO-3: equal pieces, padded at the end."""
    numel: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    start = distributed.get_rank() * numel
    return start, max(0, min(numel, full_shape(parameter).numel() - start))


def _write_live(parameter: nn.Parameter, value: Tensor) -> None:
    if hasattr(parameter, "ds_id"):
        start, size = _share(parameter)
        parameter.ds_tensor.data[:size].copy_(value.flatten()[start : start + size])  # type: ignore[attr-defined]
        if parameter.shape != full_shape(parameter):
            return  # not gathered at the moment
    parameter.data.copy_(value)
