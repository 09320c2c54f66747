"""The adapter on disk: a folder with ``adapter_model.safetensors`` and ``adapter_config.json``.

Each stored tensor stands in the file once, under the name of its parameter. The file holds only tensors read by the
factors, among them the owner map of shared layers. Dead parameters are left out, and so are the running means, which
serve training only.

The safetensors file carries the configuration in its header, and nothing else is read back. Replacing this single file
is atomic: a crash leaves the old adapter or the new adapter. The header's text is deflated, since the list of weights
would outweigh a small adapter. The JSON file holds the same text for people and tools.
"""

import json
import zlib
from base64 import b85decode, b85encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.factors import Slot
from bishare.adapters.registry import METHODS, config_class
from bishare.errors import UserError
from bishare.files import write_bytes, write_text

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PICKLES = frozenset((".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"))
FORMAT = 1
HEAD = "head."
"""Prefix of the head's names in the file; no parameter of an adapter begins so."""
MAX_HEADER = 1 << 24
"""Most bytes of inflated header to read; a model of 10,000 weights needs a sixteenth."""


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as read from a folder, without a base model."""

    config: AdapterConfig
    base: str
    slots: tuple[Slot, ...]
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    """Parameters trained in full beside the adapter, by name in the model; empty for language models."""


def save_adapter(
    adapter: Adapter,
    folder: str | Path,
    *,
    base: str = "",
    values: Mapping[str, Tensor] | None = None,
    head: Mapping[str, Tensor] | None = None,
) -> None:
    """Write ``adapter`` into ``folder`` atomically, over an earlier adapter if the folder holds one.

    Args:
        adapter: Live parameters are written, and buffers read by the factors.
        folder: Created if absent.
        base: Name of the base model, to be found again.
        values: Values of the live parameters by name, where the adapter itself does not hold the whole in fp32.
        head: Parameters trained in full beside the adapter, by name in the model: a classification head.

    Raises:
        UserError: A tensor is empty (partitioned by ZeRO-3), or the folder can't be written.
    """
    if values is None:
        values = {name: p.detach() for name, p in adapter.live_parameters().items()}
    # The head's prefix tells classifier weights from those of the adapter when the file is read.
    stored = dict(values) | adapter.file_buffers()
    for name, value in (head or {}).items():
        stored[HEAD + name] = value
    tensors = {name: value.detach().cpu().contiguous() for name, value in stored.items()}
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise UserError(f"{name} is empty: its values are partitioned; gather them before saving.")
    about = {
        "format": FORMAT,
        "method": adapter.config.method,
        "base": base,
        "config": asdict(adapter.config),
        "slots": [[s.name, s.layer, s.kind, s.in_features, s.out_features] for s in adapter.slots],
    }
    data = save(tensors, metadata={"bishare": _deflate(about)})
    try:
        # The weights come last: only their file is read back.
        write_text(Path(folder, CONFIG), json.dumps(about, indent=1) + "\n")
        write_bytes(Path(folder, WEIGHTS), data)
    except OSError as error:
        raise UserError(
            f"the adapter was not saved to {folder}: {error.strerror}; an earlier one is intact."
        ) from error


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read and check an adapter folder; only numbers and JSON are read, no code.

    Raises:
        UserError: The file is missing, cut short, not an adapter, of an unknown method or of a newer format, or the
            folder holds a pickle.
    """
    path = Path(folder, WEIGHTS)
    _check_folder(folder)
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("bishare")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} can't be read ({error}); copy it again from its source.") from error
    if header is None:
        raise UserError(f"{path} was not written by bishare; a PEFT adapter is loaded with peft.")
    about = _inflate(header, path)
    if about["format"] > FORMAT:
        raise UserError(f"{path} has format {about['format']}, this version reads up to {FORMAT}; upgrade bishare.")
    config = _config(about["method"], about["config"], path)
    slots: list[Slot] = []
    for name, layer, kind, n, m in about["slots"]:
        slots.append(Slot(name=name, layer=layer, kind=kind, in_features=n, out_features=m))
    head = {name.removeprefix(HEAD): tensors.pop(name) for name in list(tensors) if name.startswith(HEAD)}
    return AdapterFile(config, about["base"], tuple(slots), tensors, head)


def _check_folder(folder: str | Path) -> None:
    """Raise a UserError if the folder holds a pickle or no adapter."""
    if pickles := sorted(file.name for file in Path(folder).glob("*") if file.suffix in PICKLES):
        raise UserError(
            f"{folder} holds {pickles[0]}, a pickle, which may run code and is never read; an adapter folder has "
            f"{WEIGHTS} and {CONFIG} only."
        )
    if Path(folder, WEIGHTS).is_file():
        return
    # A run's folder holds the adapter in a folder of its own.
    inner = Path(folder, "adapter")
    hint = f"; did you mean {inner}?" if Path(inner, WEIGHTS).is_file() else "."
    raise UserError(f"{folder} holds no adapter: {WEIGHTS} is missing{hint}")


def _deflate(about: Mapping[str, Any]) -> str:
    return b85encode(zlib.compress(json.dumps(about, separators=(",", ":")).encode(), 9)).decode()


def _inflate(header: str, path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(zlib.decompressobj().decompress(b85decode(header), MAX_HEADER))
    except (ValueError, zlib.error) as error:
        raise UserError(f"{path} has a damaged header ({error}); copy it again from its source.") from error
    return about


def _config(method: str, options: dict[str, Any], path: Path) -> AdapterConfig:
    # A file names a method, never a class, so reading a file imports nothing.
    if method not in METHODS:
        raise UserError(f"{path} is of method {method!r}; this version knows {', '.join(sorted(METHODS))}.")
    config = config_class(method)
    known = {field.name for field in fields(config)}
    if unknown := sorted(set(options) - known):
        raise UserError(f"{path}: {method} has no option {unknown[0]!r}; upgrade bishare.")
    return config(**options)


def check_slots(file: AdapterFile, slots: Sequence[Slot], folder: str | Path) -> None:
    """Compare the slots of a model with the slots that the adapter in ``folder`` was trained on.

    Raises:
        UserError: A slot differs.
    """
    if file.slots == tuple(slots):
        return
    trained = {slot.name: slot for slot in file.slots}
    found = {slot.name: slot for slot in slots}
    for name in (*trained, *found):
        if trained.get(name) != found.get(name):
            raise UserError(
                f"{folder} was trained on another base ({file.base or 'unnamed'}): "
                f"{name} is {_shape(trained.get(name))} there and {_shape(found.get(name))} here."
            )


def _shape(slot: Slot | None) -> str:
    return f"{slot.out_features} x {slot.in_features}" if slot else "absent"


@torch.no_grad()
def load_tensors(adapter: Adapter, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy stored values into the adapter.

    Args:
        adapter: Changed only if all tensors fit.
        tensors: Values by name of parameter or buffer.
        where: Name of the source in errors.

    Raises:
        UserError: A live tensor is missing, a tensor is unknown, or a shape differs.
    """
    buffers = adapter.file_buffers()
    places: dict[str, Tensor] = dict(adapter.named_parameters()) | buffers
    for name, tensor in tensors.items():
        if name not in places:
            raise UserError(f"{where} has a tensor {name!r} that this adapter does not.")
        if tensor.shape != places[name].shape:
            given, wanted = list(tensor.shape), list(places[name].shape)
            raise UserError(f"{where}: {name} has shape {given}, the adapter {wanted}.")
    # The owner maps among the buffers decide which parameters are live, so buffers come first.
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    copy_tensors({name: tensor for name, tensor in tensors.items() if name in buffers}, buffers)
    try:
        adapter.refresh()
        if missing := sorted(set(adapter.live_parameters()) - set(tensors)):
            raise UserError(f"{where} lacks {missing[0]!r} ({len(missing)} missing of {len(places)}).")
    except UserError:
        # A failed load leaves the adapter as before.
        copy_tensors(before, buffers)
        adapter.refresh()
        raise
    copy_tensors(tensors, places)


def copy_tensors(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Copy each tensor over the tensor of the same name in ``places``."""
    for name, tensor in tensors.items():
        places[name].copy_(tensor)


def read_whole_adapter(folder: str | Path) -> Adapter:
    """The adapter of a folder, ready to assemble factors, without a base model.

    Raises:
        UserError: As in :func:`read_adapter`, or the tensors do not fit the configuration.
    """
    file = read_adapter(folder)
    with torch.random.fork_rng(devices=[]):  # the initial values are overwritten, so draw nothing from the run's
        adapter = file.config.build(file.slots).float()
    load_tensors(adapter, file.tensors, where=str(Path(folder, WEIGHTS)))
    return adapter
