"""Parameter-sharing LoRA: Bi-Share LoRA and ASLoRA for any Hugging Face model."""

from typing import TYPE_CHECKING

from bishare.adapters.registry import config_modules
from bishare.lazy import lazy
from bishare.version import __version__ as __version__

if TYPE_CHECKING:
    from bishare.adapters.aslora import ASLoRAConfig
    from bishare.adapters.bishare import BiShareConfig
    from bishare.adapters.checkpoint import save_adapter
    from bishare.adapters.lora import LoRAConfig
    from bishare.adapters.vblora import VBLoRAConfig
    from bishare.adapters.vera import VeRAConfig
    from bishare.models.attach import attach, load_adapter, merge, remove, unmerge
    from bishare.serving.pool import AdapterPool
    from bishare.training.classification import ClassificationModule
    from bishare.training.module import BiShareModule

__all__ = [
    "ASLoRAConfig",
    "AdapterPool",
    "BiShareConfig",
    "BiShareModule",
    "ClassificationModule",
    "LoRAConfig",
    "VBLoRAConfig",
    "VeRAConfig",
    "attach",
    "load_adapter",
    "merge",
    "remove",
    "save_adapter",
    "unmerge",
]

_MODULES = {
    "AdapterPool": "bishare.serving.pool",
    "BiShareModule": "bishare.training.module",
    "ClassificationModule": "bishare.training.classification",
    "attach": "bishare.models.attach",
    "load_adapter": "bishare.models.attach",
    "merge": "bishare.models.attach",
    "remove": "bishare.models.attach",
    "save_adapter": "bishare.adapters.checkpoint",
    "unmerge": "bishare.models.attach",
}

__getattr__, __dir__ = lazy(globals(), lambda: _MODULES | config_modules())
