"""Plans and counts on the architectures that the project ships."""

from functools import cache
from typing import Any

from transformers import PreTrainedModel

from bishare.adapters.base import AdapterConfig
from bishare.analysis.parameters import ParameterReport, count_parameters
from bishare.commands.config.settings import read_settings
from bishare.commands.plan.plan import as_json, make_plan
from bishare.models.architectures import build_adapter, build_on_meta, find_architecture
from tests.places import CONFIGS

QWEN = "Qwen/Qwen2.5-7B"


@cache
def shipped(base: str) -> PreTrainedModel:
    return build_on_meta(find_architecture(base))


def counted(base: str, config: AdapterConfig) -> ParameterReport:
    model = shipped(base)
    return count_parameters(build_adapter(model, config), model)


def plan_of(*arguments: str, config: str = "llama7b") -> dict[str, Any]:
    return as_json(make_plan(read_settings(["--config", str(CONFIGS / f"{config}.yaml"), *arguments])))
