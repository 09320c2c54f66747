"""pyproject.toml names every package that the source imports."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from tests.places import PROJECT

OURS = {"bishare", "callbacks"}


def imported() -> set[str]:
    """Distributions whose modules the source imports, by their normalised names."""
    modules = set()
    for file in [*PROJECT.glob("bishare/**/*.py"), *PROJECT.glob("callbacks/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    installed = packages_distributions()
    third_party = modules - OURS - sys.stdlib_module_names
    return {normalised(installed.get(module, [module])[0]) for module in third_party}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["eval"]]
    names = {normalised(match[0]) for requirement in declared if (match := re.match(r"[\w.-]+", requirement))}
    assert imported()
    assert imported() <= names, sorted(imported() - names)
