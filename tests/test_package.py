"""The package as it is built and installed."""

import tomllib

import pytest

import bishare
from bishare.cli import main
from bishare.version import __version__
from tests.places import PROJECT


def test_the_version_has_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "bishare/version.py"
    assert bishare.__version__ == __version__
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bishare {__version__}\n"
