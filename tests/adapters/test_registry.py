"""The registry is text, and names existing classes."""

import ast
import subprocess
import sys

import pytest

import bishare
from bishare.adapters.registry import METHODS, config_class, config_classes, config_modules
from tests.places import PROJECT


@pytest.mark.parametrize("method", METHODS)
def test_class_carries_the_registered_name(method: str) -> None:
    assert config_class(method).method == method
    assert getattr(bishare, config_class(method).__name__) is config_class(method)


def test_every_method_has_its_class() -> None:
    assert list(config_classes()) == list(METHODS)
    assert len(set(config_classes().values())) == len(METHODS)


def test_unknown_method_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        config_class("unheard of")


def test_labels_of_variants_are_distinct() -> None:
    labels: list[str] = []
    for config in config_classes().values():
        labels += config.variants()
    assert labels == ["LoRA r=8", "slice", "gate", "kronecker", "ASLoRA", "VeRA", "VB-LoRA"]


def test_names_need_no_torch() -> None:
    code = (
        "import sys, bishare.adapters.registry as r; assert r.config_modules(); assert dir(sys.modules['bishare']);"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, timeout=60)


def test_type_checkers_see_the_registered_names() -> None:
    """The block under TYPE_CHECKING names each class, since a type checker runs no code."""
    tree = ast.parse((PROJECT / "bishare" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen: dict[str, str | None] = {}
    for node in imports:
        seen |= dict.fromkeys([alias.name for alias in node.names], node.module)
    assert seen == bishare._MODULES | config_modules()
    assert set(bishare.__all__) == set(seen)
