"""The methods by the names that adapter files use; a file never names a class to import."""

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vblora import VBLoRAConfig
from bishare.adapters.vera import VeRAConfig

METHODS: dict[str, type[AdapterConfig]] = {
    config.method: config for config in (LoRAConfig, BiShareConfig, ASLoRAConfig, VeRAConfig, VBLoRAConfig)
}
