"""Finds the weights to adapt by kind and layer, from the module tree of a model of any family."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from bishare.adapters.base import AdapterConfig
from bishare.adapters.factors import Slot
from bishare.errors import UserError
from bishare.models.adapted_linear import ADAPTED, features

KINDS: dict[str, tuple[str, ...]] = {
    "q": ("q_proj", "query", "q_lin", "q"),
    "k": ("k_proj", "key", "k_lin", "k"),
    "v": ("v_proj", "value", "v_lin", "v"),
    "qkv": ("qkv_proj", "c_attn", "query_key_value", "Wqkv"),
    "o": ("o_proj", "out_proj", "attention.output.dense", "attn.c_proj", "attention.dense", "out_lin", "o"),
    "gate": ("gate_proj", "wi_0"),
    "up": ("up_proj", "fc1", "c_fc", "intermediate.dense", "dense_h_to_4h", "lin1", "wi", "wi_1"),
    "gate_up": ("gate_up_proj",),
    "down": ("down_proj", "fc2", "mlp.c_proj", "output.dense", "dense_4h_to_h", "lin2", "wo"),
}
"""Names of each kind of weight in the model families; the longest fitting name decides."""

FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Weights that do the work of several kinds: adapted once if any of the kinds is a target."""

SIBLINGS = (("q", "k", "v"), ("gate", "up"))
"""Kinds that read the same input inside a layer."""


class _Candidate(NamedTuple):
    name: str  # in the model
    path: str  # inside its layer
    layer: int
    kind: str
    module: nn.Module


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


def _kind(path: str) -> str:
    """The kind of a weight by path, or the path itself if no name fits."""
    fits = [(0, path)]
    for kind, ends in KINDS.items():
        for end in ends:
            if _ends(path, end):
                fits.append((len(end), kind))
    return max(fits)[1]


def _candidates(model: nn.Module) -> list[_Candidate]:
    """Every weight inside a list of layers; layers are numbered in the order of the module tree."""
    modules = dict(model.named_modules())
    layers: dict[str, int] = {}
    found: list[_Candidate] = []
    for name, module in modules.items():
        stack = _length_of_stack(name, modules)
        if stack and hasattr(module, "weight") and not isinstance(module, nn.Embedding) and _is_matrix(module.weight):
            parts = name.split(".")
            layer = layers.setdefault(".".join(parts[: stack + 1]), len(layers))
            path = ".".join(parts[stack + 1 :])
            found.append(_Candidate(name, path, layer, _kind(path), module))
    # Several weights of a layer may have the same kind (a decoder's self- and cross-attention). Paths tell them apart.
    counts = Counter((candidate.layer, candidate.kind) for candidate in found)
    for place, candidate in enumerate(found):
        if counts[candidate.layer, candidate.kind] > 1:
            found[place] = candidate._replace(kind=candidate.path)
    return found


def _length_of_stack(name: str, modules: Mapping[str, nn.Module]) -> int:
    """Parts of the name up to the first list of layers; 0 for a module outside any list."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        if isinstance(modules[".".join(parts[:length])], nn.ModuleList):
            return length
    return 0


def _is_matrix(weight: Tensor) -> bool:
    return len(getattr(weight, "ds_shape", weight.shape)) == 2  # ZeRO-3 leaves an empty tensor and notes the shape


def _matches(target: str, candidate: _Candidate) -> bool:
    if target.startswith("re:"):
        return re.fullmatch(target[3:], candidate.name) is not None
    kind = _kind(candidate.path)
    return target == kind or target in FUSED.get(kind, ()) or _ends(candidate.name, target)


def find_slots(model: nn.Module, config: AdapterConfig) -> tuple[Slot, ...]:
    """The weights of ``model`` named by ``config``, in the order of the module tree; works on the meta device.

    Raises:
        UserError: A target or a layer matches nothing, a pattern is no regular expression, or a matched module is
            neither ``nn.Linear`` nor ``Conv1D``.
    """
    candidates = _candidates(model)
    if not candidates:
        raise UserError(f"{type(model).__name__} has no list of layers with linear weights; nothing can be adapted.")
    if config.layers is not None:
        _check_layers(config.layers, max(c.layer for c in candidates) + 1)
        candidates = [c for c in candidates if c.layer in config.layers]
    chosen: set[str] = set()
    for target in config.targets:
        try:
            matched = {c.name for c in candidates if _matches(target, c)}
        except re.error as error:
            raise UserError(f"target {target!r} is not a regular expression: {error}.") from error
        if not matched:
            kinds = sorted({c.kind for c in candidates})
            raise UserError(
                f"target {target!r} matches no weight of {type(model).__name__}; it has {', '.join(kinds)}."
            )
        chosen |= matched
    return tuple(_slot(c) for c in candidates if c.name in chosen)


def _check_layers(layers: Sequence[int], num_layers: int) -> None:
    beyond = [layer for layer in layers if layer >= num_layers]
    if beyond:
        raise UserError(f"layers names {beyond[0]}, but the model's layers are 0 to {num_layers - 1}.")


def _slot(candidate: _Candidate) -> Slot:
    if type(candidate.module) not in ADAPTED:
        raise UserError(
            f"{candidate.name} is a {type(candidate.module).__name__}; only nn.Linear and Conv1D can be adapted. "
            "Load the base without quantisation, or leave this weight out of targets."
        )
    if "forward" in vars(candidate.module):
        raise UserError(
            f"{candidate.name} has a forward of its own (as device_map sets it), which would hide the adapter's; "
            "load the base without device_map."
        )
    in_features, out_features = features(candidate.module)
    return Slot(
        name=candidate.name,
        layer=candidate.layer,
        kind=candidate.kind,
        in_features=in_features,
        out_features=out_features,
    )


def siblings(slot: Slot, slots: Sequence[Slot]) -> tuple[Slot, ...]:
    """The slots that read the same input as ``slot``, including ``slot``."""
    kinds = next((group for group in SIBLINGS if slot.kind in group), (slot.kind,))
    # A k or v of a different width reads a different input, e.g. the output of an encoder.
    return tuple(s for s in slots if s.layer == slot.layer and s.kind in kinds and s.in_features == slot.in_features)
