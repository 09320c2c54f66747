"""Every public name stays importable."""

from importlib import import_module

import pytest

from bishare.cli import COMMANDS

NAMES = {
    "bishare": (
        *("ASLoRAConfig", "AdapterPool", "BiShareConfig", "BiShareModule", "ClassificationModule", "LoRAConfig"),
        *("VBLoRAConfig", "VeRAConfig", "attach", "load_adapter", "merge", "remove", "save_adapter", "unmerge"),
    ),
    "bishare.data": ("ClassificationData", "InstructionData", "MixedData", "PyDocsData", "StreamedData"),
    "callbacks": (
        *("AdapterCheckpoint", "AdaptiveMerging", "ParameterCount", "PredictionWriter", "RankMonitor", "ResultFile"),
        *("RunSummary", "SampleAnswers", "Throughput"),
    ),
    "bishare.deepspeed": ("BiShareDeepSpeed",),
}
EVERY = [(module, name) for module, names in NAMES.items() for name in names]
FIT = ("fit", "validate", "test", "predict")
OTHERS = ("preview", "export", "evaluate", "analyze", "compare", "capacity", "plan")


@pytest.mark.parametrize(("module", "name"), EVERY)
def test_name_is_public(module: str, name: str) -> None:
    found = import_module(module)
    assert name in found.__all__
    assert name in dir(found)
    assert getattr(found, name).__name__ == name


def test_callbacks_are_loaded_once() -> None:
    ours = import_module("bishare.callbacks")
    for name in NAMES["callbacks"]:
        assert getattr(ours, name) is getattr(import_module("callbacks"), name)


def test_numbers_of_names_are_as_promised() -> None:
    assert {module: len(names) for module, names in NAMES.items()} == {
        "bishare": 14,
        "bishare.data": 5,
        "callbacks": 9,
        "bishare.deepspeed": 1,
    }


def test_every_command_stays() -> None:
    assert {*FIT, *OTHERS} <= set(COMMANDS)
    assert len({*FIT, *OTHERS}) == 11


@pytest.mark.parametrize("command", OTHERS)
def test_command_leads_to_a_function(command: str) -> None:
    module, _, function = COMMANDS[command].function.partition(":")
    assert callable(getattr(import_module(module), function))
