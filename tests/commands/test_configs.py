"""The list of shipped files, and copies to be changed."""

from pathlib import Path

import pytest
import yaml

from bishare.cli import main
from bishare.commands.config.shipped_files import shipped_names
from bishare.commands.config.trees import read_tree
from bishare.commands.configs import copy, listing
from bishare.errors import UserError
from tests.places import CONFIGS


def test_the_list_begins_with_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    printed = capsys.readouterr().out
    headings = [line for line in printed.splitlines() if line and not line.startswith(("  ", "`"))]
    assert headings[:2] == ["python -m bishare fit --config NAME", "python -m bishare compare --config NAME"]
    assert headings[2:] == sorted(headings[2:])
    assert {"parts, configs/adapter", "parts, configs/base", "parts, configs/data"} <= set(headings[2:])


def test_list_has_every_file_with_its_sentence() -> None:
    lines = "\n".join(listing()).splitlines()
    entries = dict(line.strip().split(maxsplit=1) for line in lines if line.startswith("  "))
    assert set(entries) == set(shipped_names())
    for name, sentence in entries.items():
        ending = name.split("/")[-1].removesuffix(".json").replace("--", "/") if name.endswith(".json") else "."
        assert sentence.endswith(ending), f"{name} begins with half a sentence: {sentence}"


@pytest.mark.parametrize("name", ["llama7b", "configs/smollm2.yaml", "compare/ranks", "adapter/lora"])
def test_copy_has_the_parts_it_names(name: str, tmp_path: Path) -> None:
    copy(name, tmp_path)
    file = f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    assert read_tree(tmp_path / file) == read_tree(CONFIGS / file)
    for copied in tmp_path.rglob("*.yaml"):
        assert copied.read_bytes() == (CONFIGS / copied.relative_to(tmp_path)).read_bytes()


def test_copy_says_how_to_run_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "llama7b", "--out", str(tmp_path / "my configs")]) == 0
    *written, run = capsys.readouterr().out.splitlines()
    assert len(written) == len(list(tmp_path.rglob("*.yaml"))) == 4
    file = f"'{tmp_path / 'my configs' / 'llama7b.yaml'}'"
    assert run == f"run it  python -m bishare fit --config {file} --trainer.default_root_dir runs/llama7b"


def test_the_working_folder_gets_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "minilm_glue"]) == 0
    assert (tmp_path / "configs" / "minilm_glue.yaml").is_file()


def test_no_file_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy("llama7b", tmp_path)
    part = tmp_path / "trainer" / "one_gpu.yaml"
    part.write_text(yaml.safe_dump({"devices": 2}))
    with pytest.raises(UserError, match=r"llama7b\.yaml is there already and stays as it is"):
        copy("llama7b", tmp_path)
    capsys.readouterr()
    copy("llama7b_vera", tmp_path)
    assert f"kept    {part}" in capsys.readouterr().out
    assert part.read_text() == "devices: 2\n"


def test_unknown_name_comes_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "vera_r63"]) == 1
    assert "no shipped file is called vera_r63; did you mean adapter/vera_r64" in capsys.readouterr().err
