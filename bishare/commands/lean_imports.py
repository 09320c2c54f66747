"""Runs a command that needs only the shapes of models, with half of what transformers imports, in half of the time.

Transformers is told that scipy (used in losses of detection) and torch.distributed are not there, which it supports,
and a stand-in for torch's compiler leaves every function as it is. All this is for a process that ends with the
command; where it does not work, the command is started over without it.
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
"""Set in the environment of a command that is started over."""
ABSENT = ("is_scipy_available", "is_torch_distributed_available")
"""Questions of transformers that are answered with no."""
COMPILER = {
    "torch._dynamo": ("allow_in_graph", "assume_constant_result", "disable"),
    "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
}
"""Modules of the compiler, and what modelling code and torch take from them to build a model."""
MODELLING = ("transformers.models", "transformers.modeling_utils", "transformers.masking_utils")
"""What every model's own file imports."""


def run(command: Callable[[], None]) -> int:
    """Run a command that prints when it is done; its process must end afterwards.

    Returns:
        The exit code.

    Raises:
        UserError: The command's.
    """
    gc.disable()  # all that is made is needed to the end
    try:
        if WHOLE not in os.environ:
            import_modelling_code()
        command()
    except UserError:
        raise
    except Exception:
        if WHOLE in os.environ:
            raise
        return subprocess.call([sys.executable, *sys.orig_argv[1:]], env={**os.environ, WHOLE: "1"})
    gc.freeze()  # or the last collection, at exit, takes another half second
    return 0


def import_modelling_code() -> None:
    """Import what the files of models import, without what only running a model needs."""
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
    """Answer some questions of transformers, while it is imported."""
    from transformers import utils
    from transformers.utils import import_utils

    answers: dict[str, Any] = dict.fromkeys(ABSENT, lambda: False)
    answers["create_import_structure_from_path"] = _read_once(import_utils)
    before = [(m, name, getattr(m, name)) for m in (utils, import_utils) for name in answers if hasattr(m, name)]
    try:
        for module, name, _ in before:
            setattr(module, name, answers[name])
        yield
    finally:
        for module, name, original in before:
            setattr(module, name, original)


def _read_once(import_utils: ModuleType) -> Callable[[Any], Any]:
    """Its reader of the files in a folder, which remembers too few folders and so reads all models twice.

    It has just read the models' folder, under its path; now it is asked for the same by a file in it.
    """
    read: Callable[[Any], Any] = import_utils.create_import_structure_from_path
    models = Path(import_utils.__file__ or "").parents[1] / "models"
    return lambda module_path: read(models if module_path == str(models / "__init__.py") else module_path)
