"""What an adapter with a classification head is refused for."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from bishare.adapters.checkpoint import AdapterFile
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.uses import FOR_LANGUAGE_MODELS, Use, check_use
from bishare.errors import UserError

PLAIN = AdapterFile(config=LoRAConfig(), base="", slots=(), tensors={}, head={})
WITH_HEAD = replace(PLAIN, head={"classifier.weight": torch.zeros(2, 4)})


@pytest.mark.parametrize("use", get_args(Use))
def test_a_head_has_no_place(use: Use) -> None:
    check_use(PLAIN, "runs/mine/adapter", use)
    with pytest.raises(UserError, match=f"mine/adapter comes with a classification head; {FOR_LANGUAGE_MODELS[use]}"):
        check_use(WITH_HEAD, Path("runs/mine/adapter"), use)


def test_every_use_has_its_reason() -> None:
    assert set(FOR_LANGUAGE_MODELS) == set(get_args(Use))
