"""Attaches an adapter to a Hugging Face model, removes the adapter, and merges updates into the weights on request.

Only :func:`merge` changes frozen weights, and keeps the originals. No update is ever subtracted, so :func:`unmerge` and
:func:`remove` give back the base model bit by bit.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.checkpoint import WEIGHTS, check_slots, copy_tensors, load_tensors, read_adapter
from bishare.errors import UserError
from bishare.models.adapted_linear import ADAPTED, AdaptedWeight, SharedInput, delta
from bishare.models.classifier import head_parameters, train_head
from bishare.models.factor_assembly import FactorAssembly
from bishare.models.packed_attention import can_pack, patch_attention
from bishare.models.targets import find_slots, siblings
from bishare.ops.frozen_linear import patch_linears, unpatch_linears
from bishare.ops.rms_norm import patch_rms_norms, unpatch_rms_norms
from bishare.ops.swiglu import patch_swiglu, unpatch_swiglu

NAME = "bishare"
"""Attribute of the base model for the adapter."""
HOOKS = "bishare_hooks"
"""Attribute of the base model for the hook handles of :class:`~bishare.models.factor_assembly.FactorAssembly`.

The handles refer to the model. An attribute of the adapter would make a copy of the adapter copy the model too."""


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter in ``model``.

    Raises:
        UserError: The model has no adapter.
    """
    adapter = getattr(model, NAME, None)
    if not isinstance(adapter, Adapter):
        raise UserError(f"this {type(model).__name__} carries no adapter; call attach(model, config) first.")
    return adapter


def attach(model: nn.Module, config: AdapterConfig) -> Adapter:
    """Freeze ``model``, build the adapter of ``config`` in fp32 on the model's device and adapt the weights.

    The model stays the same object, so that training loops and ``generate`` work as before.

    Raises:
        UserError: ``model`` carries an adapter already, or a target matches nothing.
    """
    if hasattr(model, NAME):
        raise UserError(f"this {type(model).__name__} carries an adapter already; call remove(model) first.")
    slots = find_slots(model, config)
    for name, other in _tied(model, {slot.name for slot in slots}):
        warnings.warn(f"{name} is tied to {other}: only the first is adapted, and merging is refused.", stacklevel=2)
    with torch.device(next(model.parameters()).device):
        adapter = config.build(slots).float()
    adapter.trainable_before = [name for name, p in model.named_parameters() if p.requires_grad]
    model.requires_grad_(False)
    inputs: dict[frozenset[str], SharedInput] = {}
    for slot in slots:
        module = model.get_submodule(slot.name)
        module.__class__ = ADAPTED[type(module)]
        assert isinstance(module, AdaptedWeight)
        readers = siblings(slot, slots)
        module.slot, module._adapter = slot, (adapter,)
        # Siblings share the object, and with it the product x Aᵀ.
        module.shared = inputs.setdefault(frozenset(s.key for s in readers), SharedInput(readers, config.dropout))
    patch_linears(model)
    patch_rms_norms(model)
    patch_swiglu(model)
    adapter.attention = patch_attention(model)
    setattr(model, HOOKS, FactorAssembly(adapter, _adapted(model)).hook(model))
    model.add_module(NAME, adapter)
    return adapter


def remove(model: nn.Module) -> None:
    """Remove the adapter; weights, module types and ``requires_grad`` are as before :func:`attach`, bitwise."""
    adapter = adapter_of(model)
    if adapter.merged:
        unmerge(model)
    _detach(model, adapter)


def merge_and_remove(model: nn.Module) -> None:
    """Merge the updates and leave a plain model without a trace of the adapter.

    Raises:
        UserError: As in :func:`merge`.
    """
    adapter = adapter_of(model)
    merge(model, keep_originals=False)
    _detach(model, adapter)


def _detach(model: nn.Module, adapter: Adapter) -> None:
    for hook in getattr(model, HOOKS):
        hook.remove()
    delattr(model, HOOKS)
    for module in _adapted(model):
        del module.slot, module._adapter, module.shared
        plain = next(plain for plain, adapted in ADAPTED.items() if isinstance(module, adapted))
        module.__class__ = plain  # type: ignore[assignment]  # no longer the type of the iterator
    unpatch_linears(model)
    unpatch_rms_norms(model)
    unpatch_swiglu(model)
    if adapter.attention is not None and can_pack(model):  # otherwise the user changed the attention since
        model.set_attn_implementation(adapter.attention)  # type: ignore[operator]  # the model is a PreTrainedModel
    delattr(model, NAME)
    for name in adapter.trainable_before:
        model.get_parameter(name).requires_grad_(True)


@torch.no_grad()
def merge(model: nn.Module, *, keep_originals: bool = True) -> None:
    """Add every update to its weight: computed in fp32, cast once to the weight's type.

    Args:
        model: A model with an adapter; forward passes then read the merged weights alone.
        keep_originals: Keep a copy of each weight in main memory, for :func:`unmerge`.

    Raises:
        UserError: The adapter is merged already, or merging would change a tied weight too.
    """
    adapter = adapter_of(model)
    if adapter.merged:
        raise UserError("the adapter is merged already.")
    for name, other in _tied(model, {slot.name for slot in adapter.slots}):
        raise UserError(f"merging would change {other} too, which is tied to {name}; untie them or export to PEFT.")
    try:
        for module in _adapted(model):
            weight = module.matrix()
            if keep_originals:
                adapter.originals[module.slot.key] = weight.detach().to("cpu", copy=True)
            weight.copy_(weight.float() + delta(adapter.factors(module.slot)))
    except BaseException:  # out of memory, an interrupt: half a merged model would answer wrongly
        _restore(model, adapter)
        raise
    adapter.merged = True


@torch.no_grad()
def unmerge(model: nn.Module, fresh: nn.Module | None = None) -> None:
    """Restore the weights from before :func:`merge`, bitwise.

    Args:
        model: A merged model.
        fresh: The base model, loaded again, to copy from when the originals were not kept.

    Raises:
        UserError: The adapter is not merged, or no originals were kept and ``fresh`` is not given.
    """
    adapter = adapter_of(model)
    if not adapter.merged:
        raise UserError("the adapter is not merged.")
    if fresh is None and not adapter.originals:
        raise UserError("the originals were not kept; give unmerge a freshly loaded base model to copy from.")
    if fresh is None:
        _restore(model, adapter)
    else:
        for module in _adapted(model):
            module.get_parameter("weight").copy_(fresh.get_submodule(module.slot.name).get_parameter("weight"))
        adapter.originals.clear()
    adapter.merged = False


def _restore(model: nn.Module, adapter: Adapter) -> None:
    """Put the kept originals back."""
    for module in _adapted(model):
        if module.slot.key in adapter.originals:
            module.matrix().copy_(adapter.originals.pop(module.slot.key))


def _adapted(model: nn.Module) -> Iterator[AdaptedWeight]:
    return (module for module in model.modules() if isinstance(module, AdaptedWeight))


def _tied(model: nn.Module, names: set[str]) -> Iterator[tuple[str, str]]:
    """Pairs of the parameter of a named module and a second name of the same parameter in the model."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    for same in names_of.values():
        if len(same) == 1:
            continue
        for name in same:
            if name.removesuffix(".weight") in names:
                yield name, next(other for other in same if other != name)


def load_adapter(model: nn.Module, folder: str | Path) -> Adapter:
    """Attach the adapter of ``folder`` to ``model``, with the classification head of the folder, if any.

    Raises:
        UserError: As in :func:`read_adapter`; or the adapter was trained on a model of different shapes; or a tensor
            is missing, unknown or of a different shape. The model is then unchanged.
    """
    file = read_adapter(folder)
    if file.head:
        _check_head(model, file.head, folder)
    adapter = attach(model, file.config)
    try:
        check_slots(file, adapter.slots, folder)
        load_tensors(adapter, file.tensors, where=str(Path(folder, WEIGHTS)))
    except UserError:
        # A failed load leaves the model as before.
        remove(model)
        raise
    if file.head:
        assert isinstance(model, PreTrainedModel)
        train_head(model)
        with torch.no_grad():
            copy_tensors(file.head, head_parameters(model))
    return adapter


def _check_head(model: nn.Module, head: Mapping[str, Tensor], folder: str | Path) -> None:
    parameters = head_parameters(model) if isinstance(model, PreTrainedModel) else {}
    wanted = {name: list(tensor.shape) for name, tensor in head.items()}
    found = {name: list(parameter.shape) for name, parameter in parameters.items()}
    if wanted != found:
        name = next(n for n in (*wanted, *found) if wanted.get(n) != found.get(n))
        raise UserError(
            f"{folder} comes with a classification head that this {type(model).__name__} has not: {name} is "
            f"{wanted.get(name, 'absent')} there and {found.get(name, 'absent')} here; load it into "
            "AutoModelForSequenceClassification with as many classes."
        )
