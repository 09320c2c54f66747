"""Reads and writes values of which each process holds only a piece (DeepSpeed ZeRO), as whole fp32 tensors.

Under one process and DDP there are no pieces and the same functions read the parameters themselves. All functions
are collective: every process calls them with the same parameters in the same order.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn


@torch.no_grad()
def full_fp32(parameters: Sequence[nn.Parameter], *, state: str | None = None) -> list[Tensor]:
    """The parameters' fp32 values, the same on every process; under ZeRO with a single reduction of one flat buffer.

    Args:
        parameters: All partitioned or none; trainable ones give their fp32 masters.
        state: Read this state of the optimizer (``exp_avg``) instead; under ZeRO only.

    Returns:
        Tensors in the parameters' shapes, not to be written to: plain fp32 parameters are returned as they are.
    """
    if not any(is_partitioned(p) for p in parameters):
        assert state is None
        return [p.detach().float() for p in parameters]
    shapes = [full_shape(p) for p in parameters]
    sizes = [shape.numel() for shape in shapes]
    buffer = torch.zeros(sum(sizes), dtype=torch.float32, device=parameters[0].device)
    flats = torch.split(buffer, sizes)
    for flat, parameter in zip(flats, parameters, strict=True):
        start, piece = _piece(parameter, state)
        flat[start : start + piece.numel()] = piece
    distributed.all_reduce(buffer)
    return [flat.view(shape) for flat, shape in zip(flats, shapes, strict=True)]


@torch.no_grad()
def write_fp32(parameters: Sequence[nn.Parameter], values: Sequence[Tensor], *, state: str | None = None) -> None:
    """Set parameters to whole values [the parameter's shape]: the fp32 masters, and the copies that forwards read.

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
    """Whether ZeRO-3 holds the module's parameters in pieces, which it puts together when a forward pass reads them."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the whole parameter, of which ZeRO-3 may have left an empty shell."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def whole_parameters() -> Iterator[None]:
    """Modules made in this context are initialised whole, also while ZeRO-3 makes every new module a partitioned one.

    DeepSpeed partitions them when it sets up its engine, as any parameter it has not seen yet.
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
    """This process's part of a flattened parameter: where it starts, and a view of its master or its state."""
    if not hasattr(parameter, "ds_id"):  # ZeRO-1 and 2: pieces end anywhere
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, parameter.detach().flatten()[:0]
        return mapping.lp_fragment_address.start, mapping.get_hp_fragment(state)
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if not (parameter.requires_grad and hasattr(parameter, "_z3_optimizer")):
        piece: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
    elif state is None:
        piece = safe_get_local_fp32_param(parameter)
    else:
        piece = safe_get_local_optimizer_state(parameter, state)
    start, size = _share(parameter)
    return start, piece.flatten()[:size]


def _share(parameter: nn.Parameter) -> tuple[int, int]:
    """Start and size of this process's part under ZeRO-3: equal parts, the last ones padded."""
    numel: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    start = distributed.get_rank() * numel
    return start, max(0, min(numel, full_shape(parameter).numel() - start))


def _write_live(parameter: nn.Parameter, value: Tensor) -> None:
    if hasattr(parameter, "ds_id"):
        start, size = _share(parameter)
        parameter.ds_tensor.data[:size].copy_(value.flatten()[start : start + size])  # type: ignore[attr-defined]
        if parameter.shape != full_shape(parameter):
            return
    parameter.data.copy_(value)
