"""Every method on three families of models."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from bishare.adapters.base import AdapterConfig
from bishare.models.attach import attach
from tests.adapters.configurations import ARCHITECTURES, CONFIGS
from tests.randomised import randomise


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(architecture: str, tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return tiny_model(architecture)


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> AdapterConfig:
    torch.manual_seed(3)
    return CONFIGS[request.param]()


@pytest.fixture
def pristine(architecture: str, tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The same base model a second time."""
    return tiny_model(architecture)


@pytest.fixture
def adapted(base: PreTrainedModel, config: AdapterConfig) -> PreTrainedModel:
    """The base model with a randomised adapter."""
    randomise(attach(base, config))
    return base
