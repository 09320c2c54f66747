"""A configuration without callbacks."""

from pathlib import Path

import pytest
import yaml


@pytest.fixture
def bare_config(config: Path) -> Path:
    """The configuration of two optimizer steps, as a user writes who names no callbacks."""
    content = yaml.safe_load(config.read_text())
    del content["trainer"]["callbacks"], content["trainer"]["enable_model_summary"]
    config.write_text(yaml.safe_dump(content))
    return config
