"""Names that users import or write into configurations; none of them may go."""

from importlib import import_module

import pytest

from bishare.cli import COMMANDS

CALLBACKS = (
    "AdapterCheckpoint AdaptiveMerging ParameterCount PredictionWriter RankMonitor ResultFile RunSummary SampleAnswers "
    "Throughput"
)
PUBLIC = {
    "bishare": "ASLoRAConfig AdapterPool BiShareConfig BiShareModule ClassificationModule LoRAConfig VBLoRAConfig "
    "VeRAConfig attach load_adapter merge remove save_adapter unmerge",
    "bishare.data": "ClassificationData InstructionData MixedData PyDocsData StreamedData",
    "bishare.deepspeed": "BiShareDeepSpeed",
    "bishare.callbacks": CALLBACKS,
    "callbacks": CALLBACKS,
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_stay(package: str) -> None:
    module = import_module(package)
    for name in PUBLIC[package].split():
        assert getattr(module, name).__name__ == name


def test_commands_stay() -> None:
    commands = "fit validate test predict preview export evaluate analyze compare capacity plan configs"
    assert set(commands.split()) <= set(COMMANDS)
