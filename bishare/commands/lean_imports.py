"""Runs a command on the shapes of models with half of transformers' imports, in half the time.

Transformers is told that scipy (used in losses of detection) and torch.distributed are absent, a supported case. A
stand-in for torch's compiler leaves every function unchanged. The process must end with the command. After an error
with lean imports the command starts over with whole imports.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from bishare.errors import UserError

WHOLE = "BISHARE_WHOLE_IMPORTS"
"""Environment variable of a command that starts over with whole imports."""
ABSENT = ("is_scipy_available", "is_torch_distributed_available")
"""Functions of transformers that are made to return False."""
COMPILER = {
    "torch._dynamo": ("allow_in_graph", "assume_constant_result", "disable"),
    "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
}
"""Modules of the compiler, and their functions that modelling code and torch use to build a model."""
MODELLING = ("transformers.models", "transformers.modeling_utils", "transformers.masking_utils")
"""Modules that every model's file imports."""


def run(command: Callable[[], None]) -> int:
    """Run a command that prints only at its end; the process must end afterwards.

    Returns:
        The exit code.

    Raises:
        UserError: A mistake in the command's input.
    """
    gc.disable()  # nothing is freed before the end
    try:
        if WHOLE not in os.environ:
            import_modelling_code()
        command()
    except (UserError, BrokenPipeError):
        raise
    except Exception:
        if WHOLE in os.environ:
            raise
        # Nothing is printed yet, so that the command can start over.
        return subprocess.call([sys.executable, *sys.orig_argv[1:]], env={**os.environ, WHOLE: "1"})
    gc.freeze()  # saves half a second, the time of the collection at exit
    return 0


def import_modelling_code() -> None:
    """Import the modules that files of models need, without those for running a model."""
    import torch

    for name, functions in COMPILER.items():
        sys.modules[name] = stand_in = ModuleType(name)
        vars(stand_in).update(dict.fromkeys(functions, _unchanged))
    torch._dynamo = sys.modules["torch._dynamo"]
    with _answers():
        for name in MODELLING:
            import_module(name)


def _unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator that does nothing, with or without arguments."""
    return _unchanged if function is None else function


@contextmanager
def _answers() -> Iterator[None]:
    """Replace some functions of transformers during its import."""
    from transformers import utils
    from transformers.utils import import_utils

    replacements: dict[str, Any] = dict.fromkeys(ABSENT, lambda: False)
    replacements["create_import_structure_from_path"] = _read_once(import_utils)
    originals: list[tuple[ModuleType, str, Any]] = []
    for module in (utils, import_utils):
        for name, replacement in replacements.items():
            if hasattr(module, name):
                originals.append((module, name, getattr(module, name)))
                setattr(module, name, replacement)
    try:
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _read_once(import_utils: ModuleType) -> Callable[[Any], Any]:
    """Transformers' reader of a folder of models, with the cache used for the models' folder.

    The reader caches the folder under its path, and is then called with the path of ``__init__.py``. Unchanged, the
    reader would read all models a second time.
    """
    read: Callable[[Any], Any] = import_utils.create_import_structure_from_path
    models = Path(import_utils.__file__ or "").parents[1] / "models"
    return lambda module_path: read(models if module_path == str(models / "__init__.py") else module_path)
