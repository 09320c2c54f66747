"""The counts on the page of methods are those of the code."""

import re
from functools import cache

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import bishare
from bishare.adapters.factors import Slot
from bishare.adapters.lora import LoRAConfig
from bishare.models.targets import find_slots
from tests.adapters.test_golden import ARCHITECTURES
from tests.places import CONFIGS, PROJECT

PAGE = (PROJECT / "docs" / "methods.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)\.yaml` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| (\d+) \|$", PAGE, re.MULTILINE)


@cache
def slots_of(model: str, targets: tuple[str, ...]) -> tuple[Slot, ...]:
    return find_slots(on_meta(model), LoRAConfig(targets=list(targets)))


@cache
def on_meta(model: str) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**ARCHITECTURES[model]))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_counts_are_those_of_the_code(row: tuple[str, ...]) -> None:
    part, *counts, rank = row
    content = yaml.safe_load((CONFIGS / "adapter" / f"{part}.yaml").read_text(encoding="utf-8"))
    config = getattr(bishare, content["class_path"].rpartition(".")[2])(**content["init_args"])
    # A model for each row in turns: all of them would take three times as long.
    column = ROWS.index(row) % len(ARCHITECTURES)
    with torch.device("meta"):
        adapter = config.build(slots_of(list(ARCHITECTURES)[column], tuple(config.targets)))
    assert f"{adapter.num_parameters():,}" == counts[column]
    assert adapter.factors(adapter.slots[0]).rank == int(rank)


def test_every_part_has_its_row() -> None:
    assert {row[0] for row in ROWS} == {path.stem for path in CONFIGS.glob("adapter/*.yaml")}
