"""The methods by name. A new method is a file in this folder and a line below.

Adapter files hold the name of their method and never a class to import. A class is imported on request, so that
``import bishare`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from bishare.adapters.base import AdapterConfig

METHODS = {
    "lora": "bishare.adapters.lora:LoRAConfig",
    "bishare": "bishare.adapters.bishare:BiShareConfig",
    "aslora": "bishare.adapters.aslora:ASLoRAConfig",
    "vera": "bishare.adapters.vera:VeRAConfig",
    "vblora": "bishare.adapters.vblora:VBLoRAConfig",
}
"""``module:class`` of each method's configuration. The class is public as ``bishare.CLASS``."""


def config_class(method: str) -> "type[AdapterConfig]":
    """The configuration class of a method.

    Raises:
        KeyError: The name is unknown.
    """
    module, _, name = METHODS[method].partition(":")
    return cast("type[AdapterConfig]", getattr(import_module(module), name))


def config_classes() -> "dict[str, type[AdapterConfig]]":
    """The configuration classes of all methods by name, imported."""
    return {method: config_class(method) for method in METHODS}


def config_modules() -> dict[str, str]:
    """Module of each configuration class, by the name of the class; nothing is imported."""
    modules: dict[str, str] = {}
    for path in METHODS.values():
        module, _, name = path.partition(":")
        modules[name] = module
    return modules
