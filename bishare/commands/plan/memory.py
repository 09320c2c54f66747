"""Estimates the memory of a training on each device, from shapes alone and before any download.

Counted are the tensors alive at the peak, when the backward pass starts at the head. Only the adapter is trained, so
that gradients and moments are small. Most memory goes to the frozen weights, to the activations for the backward pass
and to the head over the vocabulary. The lengths of the examples are assumed: see ``MEAN`` and ``SPREAD``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PretrainedConfig

from bishare.adapters.factors import Slot

FP32 = 4
"""Bytes of a value."""
MEAN, SPREAD = 0.4, 0.2
"""Assumed mean and standard deviation of the examples' lengths, as fractions of ``max_length``. Measured at 256
tokens with SmolLM2's tokenizer: 0.46 and 0.23 for Alpaca, 0.34 and 0.16 for the documentation of Python."""
SHARED = 0.09
"""Assumed tokens that neighbours in a pack share and hold once, as a fraction of ``max_length``: the words around an
instruction. Measured: 0.08 and 0.09 on the same data."""
DEVIATIONS = 3
"""Assumed distance of a run's largest step from the mean step, in standard deviations."""
ANSWER_SHARE = 0.55
"""Assumed share of tokens with a label (loss on answers). Measured: 0.57 and 0.52 on the same data."""
CPU_PROCESS = 570_000_000
"""Bytes of a process with torch, Lightning, transformers, tokenizer and data in memory; measured."""
CPU_FRAGMENTS = 1.25
"""Main memory of the activations over their own size, for gaps between blocks; measured at 1.2 to 1.4."""
CPU_KERNELS = 500_000_000
"""Bytes of oneDNN's kernels, of the kept kernels (``bishare.cli.KEPT_KERNELS``) and of gaps around them; measured over
80 optimizer steps in bf16, and the same in fp32."""
GPU_PROCESS = 600 * 2**20
"""Bytes of CUDA and its libraries on each GPU; assumed, not measured."""
HEAD_CHUNK, HEAD_SLICE = 30 * 2**20, 2**20
"""Bytes of logits in memory at a time, and values of the softmax. Repeated from ``bishare.ops.linear_cross_entropy``,
whose import would load transformers' models."""
ZERO3_LIVE_VALUES = 1_000_000_000
"""The most values that a process gathers at a time under ZeRO-3 (DeepSpeed's ``stage3_max_live_parameters``)."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a decoder."""

    num_layers: int
    hidden: int
    """Model width, d."""
    intermediate: int
    """Width of the MLP, f."""
    query: int
    """Width of all query heads together, q."""
    heads: int
    """Query heads."""
    key_value: int
    """Width of all key heads together, k; the value heads have the same width."""
    vocabulary: int
    mlp_kept: int
    """Tensors of the MLP's width kept for the backward pass: 1 without a gate, 2 with ``bishare.ops.swiglu``, 3 with
    any different gate."""
    num_values: int
    """Values of the whole model; a tied weight counts once."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Devices, types and batch of a training."""

    device: Literal["cpu", "gpu"]
    num_devices: int
    zero_stage: Literal[0, 1, 2, 3]
    """0 for one device and DDP."""
    base_bytes: int
    """Bytes of a frozen value: 2 or 4."""
    live_bytes: int
    """Bytes of an adapter value as the forward pass reads it: 4, or 2 under DeepSpeed with bf16-mixed."""
    compute_bytes: int
    """Bytes of an activation: 2 or 4."""
    batch_size: int
    """Examples per optimizer step on all devices."""
    tokens_per_micro_batch: int
    """Token budget of one device's micro-batch."""
    max_length: int
    """Tokens of the longest example."""
    packing: bool
    """Whether the examples of a micro-batch stand end to end, without padding."""
    dropout: bool
    """Whether the adapter drops input features."""
    gradient_checkpointing: bool


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on each device, or of each process on the CPU."""

    weights: int
    """The frozen base; with ZeRO-3 a process's piece of the base, and the gathered values."""
    adapter: int
    """Trained values, with DeepSpeed also fp32 masters, and the method's buffers."""
    gradients: int
    """Gradients of the adapter, and the buffers for their transfer between processes."""
    optimizer: int
    """AdamW's two moments."""
    activations: int
    """Tensors kept for the backward pass."""
    head: int
    """Logits, their softmax and its gradient, at the worst moment."""
    process: int
    """Python with its libraries and their caches on the CPU; CUDA's own share on a GPU."""

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def architecture_of(model: nn.Module, config: PretrainedConfig) -> Architecture:
    """The sizes of a Hugging Face decoder, on any device."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return Architecture(
        num_layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,  # GPT-2 gives no size
        query=heads * head_width,
        heads=heads,
        key_value=(getattr(text, "num_key_value_heads", None) or heads) * head_width,
        vocabulary=text.vocab_size,
        mlp_kept=_mlp_kept(names, getattr(text, "hidden_act", None)),
        num_values=sum(p.numel() for p in model.parameters()),
    )


def _mlp_kept(names: set[str], activation: str | None) -> int:
    """Tensors of the MLP's width kept for the backward pass, from the names of the Linears and the activation."""
    if "gate_proj" in names and activation in ("silu", "swish"):
        return 2
    return 1 if names.isdisjoint({"gate_proj", "gate_up_proj"}) else 3


def micro_batch_positions(setup: Setup) -> int:
    """Tokens of a device's largest micro-batch, with padding for batches of rows.

    As in the data modules, a step has the fewest micro-batches with a mean number of tokens within the budget. The
    examples are spread evenly over the micro-batches, so that the largest micro-batch grows with the whole step.
    """
    mean, spread = MEAN * setup.max_length, SPREAD * setup.max_length
    per_device = setup.batch_size // setup.num_devices
    wanted = math.ceil(per_device * mean / setup.tokens_per_micro_batch)
    rows = per_device / max(1, min(wanted, per_device))
    if not setup.packing:
        return math.ceil(rows) * setup.max_length
    largest = rows * (mean + DEVIATIONS * spread / math.sqrt(setup.batch_size))
    shared = (rows - 1) * SHARED * setup.max_length  # the first example stands there whole
    return min(math.ceil(rows) * setup.max_length, round(largest - shared))


def estimate_memory(
    architecture: Architecture,
    setup: Setup,
    slots: Sequence[Slot],
    *,
    num_adapter: int,
    rank: int,
    buffer_bytes: int = 0,
) -> MemoryEstimate:
    """Bytes on each device at the peak of training.

    Args:
        architecture: Sizes of the base model.
        setup: Strategy, devices, types and batch.
        slots: The adapted weights.
        num_adapter: Trained values.
        rank: The most rows of an assembled A over all slots.
        buffer_bytes: Bytes of the adapter's buffers, such as running means.
    """
    positions = micro_batch_positions(setup)
    activations = activation_bytes(architecture, setup, slots, rank=rank, positions=positions)
    process = GPU_PROCESS
    if setup.device == "cpu":
        activations = round(CPU_FRAGMENTS * activations)
        process = CPU_PROCESS + CPU_KERNELS
    stage, n = setup.zero_stage, setup.num_devices
    weights = architecture.num_values * setup.base_bytes
    if stage == 3:
        gathered = min(architecture.num_values, ZERO3_LIVE_VALUES) * setup.base_bytes
        weights = min(weights, weights // n + gathered)
    masters = FP32 * num_adapter // n if stage else 0
    buffers = setup.live_bytes * num_adapter if n > 1 or stage else 0
    moments = 2 * FP32 * num_adapter
    return MemoryEstimate(
        weights=weights,
        adapter=setup.live_bytes * num_adapter + masters + buffer_bytes,
        gradients=setup.live_bytes * num_adapter // (n if stage >= 2 else 1) + buffers,
        optimizer=moments // n if stage else moments,
        activations=activations,
        head=head_bytes(architecture, setup, labels=round(ANSWER_SHARE * positions)),
        process=process,
    )


def activation_bytes(
    architecture: Architecture, setup: Setup, slots: Sequence[Slot], *, rank: int, positions: int
) -> int:
    """Bytes kept by the forward pass for the backward pass, without the head."""
    per_position = layer_bytes(architecture, setup, {slot.kind for slot in slots}, rank=rank)
    layers = positions * per_position * architecture.num_layers
    if setup.gradient_checkpointing:
        # Only the input of each layer is kept; the layers are computed again, each by itself.
        inputs = positions * architecture.hidden * setup.compute_bytes * architecture.num_layers
        layers = inputs + positions * per_position
    # The assembled factors, in the type of the activations.
    pairs = sum(rank * (slot.in_features + slot.out_features) for slot in slots) * setup.compute_bytes
    if setup.gradient_checkpointing:
        pairs //= architecture.num_layers
    return layers + pairs


def layer_bytes(architecture: Architecture, setup: Setup, kinds: set[str], *, rank: int) -> int:
    """Bytes kept by a layer for each position.

    A frozen Linear keeps nothing; an adapted Linear keeps the input (with dropout also the mask) and ``x Aᵀ``.
    """
    a, e = architecture, setup.compute_bytes
    mask = 1 if setup.dropout else 0
    norms = 2 * e * a.hidden  # their inputs
    reads_norm = [bool(kinds & group) for group in ({"q", "k", "v", "qkv"}, {"gate", "up", "gate_up"})]
    inputs = sum(reads_norm) * a.hidden * (e + mask)
    attention = e * (2 * a.query + 2 * a.key_value)  # query, result, key and value
    if setup.packing and setup.device == "cpu" and e == 2:
        # bishare.ops.causal_attention keeps sums of rows in place of the result.
        attention += FP32 * a.heads - e * a.query
    attention += (a.query * (e + mask)) if "o" in kinds else 0
    mlp = e * a.mlp_kept * a.intermediate
    mlp += (a.intermediate * (e + mask)) if "down" in kinds else 0
    return norms + inputs + attention + mlp + e * rank * len(kinds)


def head_bytes(architecture: Architecture, setup: Setup, *, labels: int) -> int:
    """Bytes of the head at the labelled positions: a chunk of logits, replaced by the gradient, and a softmax slice."""
    values = labels * architecture.vocabulary
    if setup.zero_stage == 3:
        # The logits are not chunked; softmax and gradient are further tensors in fp32.
        return values * (setup.compute_bytes + 3 * FP32)
    gradients = 2 * labels * architecture.hidden * setup.compute_bytes
    return min(values * setup.compute_bytes, HEAD_CHUNK) + min(values, HEAD_SLICE) * FP32 + gradients
