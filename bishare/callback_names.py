"""The name ``callbacks``: bishare's callbacks first, then the user's own module with the same name.

The classes are loaded once, as ``bishare.callbacks``. A configuration calls them ``callbacks``:

    callbacks.AdapterCheckpoint   the class bishare.callbacks.AdapterCheckpoint
    callbacks.Mine                Mine of the user's callbacks.py or callbacks/__init__.py
    callbacks.mine.Mine           Mine of the user's callbacks/mine.py
    callbacks.run                 the module bishare.callbacks.run, unless the user has a callbacks/run.py

The command line installs a module with these names, and so does ``import callbacks`` in a clone, where the folder
``callbacks/`` lies at the top. In every further process ``import callbacks`` is left to Python. The user's module runs
only for a name missing in bishare: a mistake in the module cannot stop a run without the user's callbacks.
"""

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from typing_extensions import override

from bishare.shipped import shipped_folder

NAME = "callbacks"
OURS = "bishare.callbacks"


def install() -> None:
    """Let ``callbacks`` stand for both packages; a second call changes nothing."""
    found = sys.modules.get(NAME)
    if isinstance(found, CallbackNames):
        return
    # A program that calls the command line may have imported its own module before.
    is_users = found is not None and found.__spec__ is not None and not _is_ours(found.__spec__)
    sys.modules[NAME] = CallbackNames(found if is_users else None)
    sys.meta_path.insert(0, Submodules())


class CallbackNames(ModuleType):
    """The module ``callbacks``.

    Args:
        theirs: The user's module, if Python has loaded the module before.
    """

    def __init__(self, theirs: ModuleType | None) -> None:
        super().__init__(NAME, __doc__)
        file = shipped_folder(NAME) / "__init__.py"
        self.__spec__ = spec_from_file_location(NAME, file)
        self.__file__: str | None = str(file)
        self.__path__: list[str] = []
        self._theirs: ModuleType | None = None
        if theirs is not None:
            self._theirs = theirs
            self.__path__ += getattr(theirs, "__path__", [])

    def __getattr__(self, name: str) -> Any:
        """Find a public name of bishare, or a name of the user's module; Python calls this once for each name."""
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        ours = self.load_ours()
        if name == "__all__" or name in ours.__all__:
            value = getattr(ours, name)
        else:
            theirs = self.load_theirs()
            if not hasattr(theirs, name):
                raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
            value = getattr(theirs, name)
        vars(self)[name] = value
        return value

    @override
    def __dir__(self) -> list[str]:
        return sorted({*self.load_ours().__all__, *dir(self.load_theirs())})

    def load_ours(self) -> ModuleType:
        """The package ``bishare.callbacks``."""
        return import_module(OURS)

    def load_theirs(self) -> ModuleType | None:
        """The user's module, run at the first call; None where there is none."""
        if self._theirs is None and (spec := _find_theirs()) is not None:
            self._theirs = module_from_spec(spec)
            self.__path__ += spec.submodule_search_locations or []
            try:
                if spec.loader is not None:  # a folder without __init__.py has none
                    spec.loader.exec_module(self._theirs)
            except BaseException:
                self._theirs = None
                self.__path__.clear()
                raise
        return self._theirs


class Submodules(MetaPathFinder, Loader):
    """Finds ``callbacks.NAME``: the user's module, or else the loaded ``bishare.callbacks.NAME``."""

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        package = sys.modules.get(NAME)
        if parent != NAME or not isinstance(package, CallbackNames):
            return None
        package.load_theirs()
        file = shipped_folder(NAME) / f"{name}.py"
        spec = PathFinder.find_spec(fullname, package.__path__)
        return spec_from_file_location(fullname, file, loader=self) if spec is None and file.is_file() else spec

    @override
    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(f"bishare.{module.__name__}")  # Python takes it from there


def with_public_names(configuration: str) -> str:
    """A configuration in YAML or JSON, with ``callbacks.NAME`` in the place of ``bishare.callbacks.NAME``."""
    return re.sub(rf'(class_path"?: *"?){re.escape(OURS)}\.', rf"\1{NAME}.", configuration)


def _find_theirs() -> ModuleSpec | None:
    """The user's module. The working folder goes first, since the script ``bishare`` has no path to the folder."""
    folder = str(Path.cwd())
    for entry in (folder, *sys.path):
        spec = PathFinder.find_spec(NAME, [entry or folder])
        if spec is not None and not _is_ours(spec):
            return spec
    return None


def _is_ours(spec: ModuleSpec) -> bool:
    """Whether a module is the ``callbacks`` of a clone, where ``bishare`` lies beside the folder."""
    return spec.origin is not None and (Path(spec.origin).resolve().parents[1] / "bishare" / "cli.py").is_file()
